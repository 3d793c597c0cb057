"""Records: text and speech in turns, nothing lost, and what a grammar-driven answer can repeat."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialogue.vita_parts import parts

from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_prompts import CLIP, INTERLEAVES, Message, answer_prompt
from vivavoce.errors import ConfigError

TOKENS = parts().tokens
CODES = TOKENS.codes


def turns(ids: list[int]) -> list[tuple[list[int], list[int]]]:
    """Text tokens and codes of each turn."""
    found: list[tuple[list[int], list[int]]] = [([], [])]
    inside = False
    for token in ids:
        if token == TOKENS.begin_audio:
            inside = True
        elif token == TOKENS.end_audio:
            inside = False
            found.append(([], []))
        elif inside:
            code = TOKENS.code(token)
            assert code is not None
            found[-1][1].append(code)
        else:
            found[-1][0].append(token)
    return found[:-1] if found[-1] == ([], []) else found


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.integers(0, 20), max_size=30), codes=st.lists(st.integers(0, CODES - 1), max_size=60),
    name=st.sampled_from(sorted(INTERLEAVES)), even=st.booleans(),
)  # fmt: skip
def test_nothing_is_lost_and_everything_keeps_its_order(
    text: list[int], codes: list[int], name: str, even: bool
) -> None:
    found = turns(TOKENS.interleaved(text, codes, INTERLEAVES[name], even=even))
    assert [token for words, _ in found for token in words] == text
    assert [code for _, block in found for code in block] == codes


@settings(max_examples=150, deadline=None)
@given(text=st.integers(1, 30), codes=st.integers(1, 60))
def test_even_turns_are_what_the_grammar_lets_pass(text: int, codes: int) -> None:
    interleave = INTERLEAVES["boost"]
    ids = TOKENS.interleaved([5] * text, [1] * codes, interleave, even=True)
    sizes = [(len(words), len(block)) for words, block in turns(ids)]
    wanted = 1 + -(-max(0, text - interleave[0]) // interleave[2])
    if codes < wanted:
        return  # fewer codes than turns: text has to grow, as it does in the published form
    assert len(sizes) >= wanted and sizes[0][0] == interleave[0]
    assert all(words <= interleave[2] for words, _ in sizes[1:]) and all(block for _, block in sizes)
    if wanted * 8 <= codes:
        assert sizes[0][1] >= interleave[1] - 2, "the first block is the sound that is heard first"
    grammar = Grammar(TOKENS, parts().model.config.vocab_size, speaking=True, interleave=interleave)
    for token in [*ids, TOKENS.end]:
        assert bool(grammar.allowed()[token])
        grammar.take(token)


def test_only_what_the_assistant_says_is_learned() -> None:
    messages = [*answer_prompt(), Message("assistant", f"e a\n{CLIP}")]
    ids, labels = TOKENS.record(messages, [[3, 1], [2] * 12], INTERLEAVES["boost"])
    first = next(i for i, label in enumerate(labels) if label >= 0)
    assert labels == [-100] * first + ids[first:] and ids[:first] == TOKENS.prompt(answer_prompt(), [[3, 1]])
    with pytest.raises(ConfigError, match="1 clips have no place"):
        TOKENS.prompt(answer_prompt(), [[3], [1]])
