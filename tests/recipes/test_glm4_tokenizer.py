"""The tokenizer's recipe: it learns to spell, repeats itself, leaves frozen parts alone and begins with Whisper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.spoken import WORDS, write_corpus
from vivavoce.asr.whisper import Whisper, WhisperConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer
from vivavoce.errors import ConfigError
from vivavoce.recipes.glm4_tokenizer import (
    LETTERS,
    Options,
    TokenizerRecipe,
    edits,
    items,
    open,
    pooled_states,
    read,
    start_from_whisper,
    tiny_config,
)
from vivavoce.train.codes import fingerprint, read_tokenizer
from vivavoce.train.loop import CHECKPOINT, train
from vivavoce.train.utterances import Utterances, pad

TINY = Options(size="tiny", whisper="none", budget_s=4.0, rate=1e-3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")


@torch.no_grad()
def spelling(recipe: TokenizerRecipe) -> float:
    """CTC loss a letter over everything held out."""
    held_out = [item for part in recipe.dev_items.values() for item in part]
    wave, lengths = pad([item.corpus.wave(item.number) for item in held_out])
    tokenizer = recipe.model.tokenizer
    assert isinstance(tokenizer, GLM4Tokenizer)
    states, _ = pooled_states(tokenizer, wave, lengths)
    rows = tokenizer.codebook.embed(tokenizer.codebook(states))
    return float(recipe._ctc(rows, lengths, [item.row["text"] for item in held_out]))


def test_it_learns_and_its_tokenizer_can_be_used(corpus: Path, tmp_path: Path) -> None:
    recipe = open(corpus, replace(TINY, steps=24, frozen=12))
    before = spelling(recipe)
    figures = train(recipe, tmp_path / "run")
    assert set(figures) == {"wer_digits", "wer_questions", "wer_teacher"}
    assert spelling(recipe) < 0.5 * before
    recipe.finish(tmp_path / "model")
    tokenizer = recipe.model.tokenizer
    assert isinstance(tokenizer, GLM4Tokenizer)
    assert fingerprint(read_tokenizer(tmp_path / "model")) == fingerprint(tokenizer)


def test_two_runs_are_equal_and_a_third_goes_on(corpus: Path, tmp_path: Path) -> None:
    options = replace(TINY, steps=4, frozen=2)
    for name in ("one", "two"):
        train(open(corpus, options), tmp_path / name)
    one, two = (load_file(tmp_path / name / CHECKPOINT) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    third = open(corpus, replace(options, before=str(tmp_path / "one")))
    assert all(torch.equal(one[f"model.{name}"], tensor) for name, tensor in third.model.state_dict().items())


def test_frozen_steps_teach_the_speller_only(corpus: Path, tmp_path: Path) -> None:
    recipe = open(corpus, replace(TINY, steps=3, frozen=2))
    start = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    seen: list[dict[str, torch.Tensor]] = []
    loss = recipe.loss
    recipe.loss = lambda step: (
        seen.append({name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}) or loss(step)
    )
    train(recipe, tmp_path)
    moved = {name for name in start if not torch.equal(start[name], seen[2][name])}
    assert moved and all(name.startswith("speller.") for name in moved)
    after = recipe.model.state_dict()
    assert not torch.equal(after["tokenizer.conv1.weight"], start["tokenizer.conv1.weight"])
    assert not torch.equal(after["tokenizer.codebook.weight"], start["tokenizer.codebook.weight"])


def test_it_begins_with_whispers_lower_layers() -> None:
    sizes = {"n_mels": 20, "audio_context": 100, "audio_dim": 16, "audio_heads": 2, "audio_layers": 3}
    whisper = Whisper(replace(WhisperConfig.tiny(), **sizes))
    torch.nn.init.normal_(whisper.encoder.positions)
    tokenizer = GLM4Tokenizer(replace(tiny_config(), context=100, ffn_dim=64))
    start_from_whisper(tokenizer, whisper)
    assert torch.equal(tokenizer.conv2.weight, whisper.encoder.conv2.weight)
    assert torch.equal(tokenizer.positions[1:], whisper.encoder.positions[:-1]), "causal padding delays by a frame"
    for layer, source in zip(tokenizer.layers, whisper.encoder.stack.layers, strict=False):
        own, theirs = layer.state_dict(), source.state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in own)
    with pytest.raises(ConfigError, match="the recogniser is 16 wide and the tokenizer 8"):
        start_from_whisper(GLM4Tokenizer(replace(tiny_config(), dim=8, ffn_dim=24)), whisper)


def test_what_is_said_and_what_is_read(corpus: Path) -> None:
    blank, one = 0, [1 + LETTERS.index(letter) for letter in "to oo"]
    spelled = [one[0], one[0], blank, one[1], one[1], one[2], one[3], blank, one[4], blank]
    assert read(torch.tensor(spelled)) == ["to", "oo"]
    assert edits(["a", "b", "c"], ["a", "c", "d"]) == 2 and edits([], ["a"]) == 1 and edits(["a"], []) == 1
    sets = {"digits": Utterances(corpus / "digits")}
    chosen = items(sets, "train")
    assert [item.row["text"] for item in chosen] == [
        word for word in WORDS if word != "eight" and len(word) * 1280 >= 4000
    ]


def test_too_little_speech_is_said(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="states for 2000 codes; make a larger one"):
        TokenizerRecipe(corpus, replace(tiny_config(), codes=2000), None)
