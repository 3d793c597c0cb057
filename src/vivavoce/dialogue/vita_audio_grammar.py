"""The grammar of VITA-Audio's answers: which tokens may stand where, and whether speech is next."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.nn.drafting import DraftPlace
from vivavoce.search.sampling import SamplingOptions


@dataclass(frozen=True)
class Place:
    """What may stand somewhere: ``rows``, a run of the vocabulary that holds all of it, and which of these may, bool
    (R,). Tokens are numbered from the start of the run."""

    rows: slice
    allowed: Tensor

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (..., R) with minus infinity where nothing may stand."""
        return logits.masked_fill(~self.allowed.to(logits.device), float("-inf"))

    def recent(self, tokens: Sequence[int], at: int, options: SamplingOptions) -> list[int]:
        """Those of the last tokens before index ``at`` that are among the rows, as far back as a penalty looks."""
        if options.repetition_penalty == 1.0:
            return []
        first, last = self.rows.start, self.rows.stop
        return [token - first for token in tokens[max(0, at - options.window) : at] if first <= token < last]


class Course(Protocol):
    """What may stand next while modules write, token by token."""

    @property
    def here(self) -> Place:
        """What may stand next."""
        ...

    @property
    def speech(self) -> bool:
        """Whether modules may write it."""
        ...

    @property
    def draft_places(self) -> tuple[tuple[DraftPlace, ...], int]:
        """All that may come while they do, as a table that courses of one kind share, and the number of the one that is
        next."""
        ...

    def take(self, token: int) -> None:
        """Move past a token."""
        ...


SPEECH = ("turn over", "audio first", "audio")


@dataclass(frozen=True)
class _Places:
    """Of each expectation: the place, and what may stand there in the whole vocabulary, bool (V,)."""

    of: dict[str, Place]
    masks: dict[str, Tensor]
    speech: tuple[DraftPlace, ...]


@functools.lru_cache(maxsize=16)  # sessions of one model share theirs
def _places(tokens: VITATokens, vocab_size: int, speaking: bool) -> _Places:
    text = torch.zeros(vocab_size, dtype=torch.bool)
    text[tokens.text_ids.start : tokens.text_ids.stop] = True
    audio = torch.zeros(vocab_size, dtype=torch.bool)
    audio[tokens.first_code : tokens.first_code + tokens.codes] = True
    masks, places = dict[str, Tensor](), dict[str, Place]()
    for name, mask, extra in (
        ("text first", text, [tokens.end]),  # after a block: more text, or the end
        ("text", text, [tokens.begin_audio] if speaking else [tokens.end]),
        ("turn over", torch.zeros_like(text), [tokens.begin_audio]),
        ("audio first", audio, []),
        ("audio", audio, [tokens.end_audio]),
    ):
        masks[name] = mask.clone()
        masks[name][extra] = True
        found = masks[name].nonzero()
        rows = slice(int(found.min()), int(found.max()) + 1)
        places[name] = Place(rows, masks[name][rows])
    rows = places["audio"].rows  # one run for all of a block, so that its places can be scored together
    places["audio first"] = Place(rows, masks["audio first"][rows])
    ends = torch.arange(rows.start, rows.stop) == tokens.end_audio
    speech = [
        DraftPlace(places[name].rows, places[name].allowed, ends if name == "audio" else None, min(number + 1, 2))
        for number, name in enumerate(SPEECH)
    ]
    return _Places(places, masks, tuple(speech))


class Grammar:
    """Which tokens may follow: text, then a block of speech, in turns, and the end after a block.

    ``speaking`` False: text only (a transcript). ``interleave``: the checkpoint's, whose text counts end a turn.
    """

    def __init__(self, tokens: VITATokens, vocab_size: int, *, speaking: bool, interleave: Sequence[int]):
        self.tokens, self.speaking = tokens, speaking
        self.turns = [interleave[i] for i in range(0, len(interleave), 2)]
        self.turn = self.in_turn = self.in_block = 0
        self.in_audio = self.done = False
        self._places = _places(tokens, vocab_size, speaking)

    @property
    def here(self) -> Place:
        """What may stand next."""
        return self._places.of[self.place]

    @property
    def draft_places(self) -> tuple[tuple[DraftPlace, ...], int]:
        """The places of a block of speech, from its beginning to its end, and the number of the one that is next."""
        return self._places.speech, SPEECH.index(self.place)

    @property
    def speech(self) -> bool:
        """Is speech, or its beginning, next?"""
        return self.in_audio or self.place == "turn over"

    @property
    def place(self) -> str:
        """What is expected next, in a word."""
        if self.in_audio:
            return "audio" if self.in_block else "audio first"
        if not self.speaking:
            return "text"
        if self.in_turn == 0:
            return "text first" if self.turn else "text"
        return "turn over" if self.in_turn >= self.turns[min(self.turn, len(self.turns) - 1)] else "text"

    def allowed(self) -> Tensor:
        """bool (V,): the tokens that may stand here."""
        return self._places.masks[self.place]

    def take(self, token: int) -> None:
        """Move past a token."""
        if token == self.tokens.end:
            self.done = True
        elif token == self.tokens.begin_audio:
            self.in_audio, self.in_block = True, 0
        elif token == self.tokens.end_audio:
            self.in_audio, self.in_turn, self.turn = False, 0, self.turn + 1
        elif self.in_audio:
            self.in_block += 1
        else:
            self.in_turn += 1
