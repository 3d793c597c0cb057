"""Who writes which token of a VITA-Audio answer: the schedules of arXiv 2505.03739, section 3.2, and one that looks.

A mode is a list (M1, m1, M2, m2, ...): M1 tokens by the backbone, m1 by modules 0, 1, ..., and so on, the last pair for
ever. :func:`write_scheduled` follows it blindly, as the authors' code does. :func:`write_by_grammar` reads it as "after
how many tokens of speech must the backbone look again" and lets the grammar of answers decide the rest: text is always
written by the backbone, speech by modules while the mode allows, only tokens that may stand in a place can be chosen,
and the answer ends at its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioState
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.errors import ConfigError, nearest
from vivavoce.search.sampling import SamplingOptions, sample
from vivavoce.state import fork

MODES: dict[str, tuple[int, ...]] = {
    "vanilla": (8192, 0),
    "balance": (1, 4, 3, 8, 4, 10),
    "boost": (1, 10, 4, 10),
    "turbo": (1, 10),
}


def mode_named(name: str) -> tuple[int, ...]:
    """The list of a mode; ConfigError offers the nearest name."""
    if name not in MODES:
        raise ConfigError(f"no mode is called {name!r}{nearest(name, MODES)}; use one of {', '.join(MODES)}")
    return MODES[name]


@dataclass
class Writer:
    """One text that grows: its tokens, the model's state, and how far backbone and modules have read it.

    ``passes`` counts backbone calls, ``drafts`` module calls. Where modules read only the end of what they answer to
    (``module_reads``), :meth:`begin_answer` says where the answer begins.
    """

    model: VITAAudio
    state: VITAAudioState
    tokens: list[int] = field(default_factory=list)
    read: int = 0  # tokens the backbone has passed
    drafted: list[int] = field(default_factory=list)  # index of each module's next token
    begun: int = 1  # index of the first token that module 0 reads
    passes: int = 0
    drafts: int = 0

    @classmethod
    def begin(cls, model: VITAAudio, capacity: int | None = None) -> Writer:
        return cls(model, model.init_state(1, capacity), drafted=[n + 1 for n in range(len(model.mctp))])

    @property
    def room(self) -> int:
        """How many tokens the caches hold."""
        return self.state.backbone[0].key.shape[2]

    @property
    def device(self) -> torch.device:
        return self.state.backbone[0].position.device

    def add(self, tokens: Sequence[int]) -> None:
        """Put tokens behind the text; nothing is computed yet."""
        if len(self.tokens) + len(tokens) > self.room:
            raise ConfigError(
                f"the text grows to {len(self.tokens) + len(tokens)} tokens and the model reads at most {self.room}; "
                "give shorter sound or text"
            )
        self.tokens += tokens

    def begin_answer(self) -> None:
        """The prompt is complete, though its end may not be read yet: here modules with ``module_reads`` begin."""
        reads = self.model.config.module_reads
        if reads is not None:
            self.begun = max(0, len(self.tokens) - reads) + 1
            self.drafted = [self.begun + number for number in range(len(self.drafted))]

    def roll_back(self, length: int) -> None:
        """Forget every token past the first ``length``, and what backbone and modules made of it; ValueError where that
        is further back than the last pass of a module."""
        read = min(self.read, length)
        drafted = [max(self.begun + n, min(index, length)) for n, index in enumerate(self.drafted)]
        forgotten = [index - kept for index, kept in zip(self.drafted, drafted, strict=True)]
        if self.read > read or any(forgotten):
            self.state = self.model.rolled_back(self.state, self.read - read, forgotten)
        self.read, self.drafted = read, drafted
        del self.tokens[length:]

    def cut(self, length: int) -> None:
        """Shorten the text to ``length`` tokens, however far back in the answer: the last of them, one more than there
        are modules, are read again, so that modules find the states they read from."""
        if not self.begun <= length <= len(self.tokens):
            raise ValueError(f"the text can be cut to {self.begun} up to {len(self.tokens)} tokens, not to {length}")
        del self.tokens[length:]
        if self.read < length and max(self.drafted, default=0) <= length:
            return
        known = min([self.read, length - 1 - len(self.drafted), *(d - 1 - n for n, d in enumerate(self.drafted))])
        self.read = max(self.begun - 1, known)
        self.drafted = [self.read + 1 + number for number in range(len(self.drafted))]
        self.state = self.model.rewound(self.state, self.read, self.read + 1 - self.begun)

    def fork(self) -> Writer:
        """Another writer with the same text; what one writes does not touch the other."""
        return replace(self, state=fork(self.state), tokens=list(self.tokens), drafted=list(self.drafted))

    def to_tensors(self) -> dict[str, Tensor]:
        """The text and as much of the state as is filled: for a file."""
        live = {f"hidden.{n}": part for n, part in enumerate(self.state.hidden)}
        live |= {f"passed.{n}": part for n, part in enumerate(self.state.passed)}
        for room, caches in (("backbone", self.state.backbone), ("modules", self.state.modules)):
            for number, cache in enumerate(caches):
                filled = int(cache.position[0])
                live[f"{room}.{number}.key"] = cache.key[:, :, :filled].contiguous()
                live[f"{room}.{number}.value"] = cache.value[:, :, :filled].contiguous()
        counts = [self.read, self.begun, self.passes, self.drafts, *self.drafted]
        return live | {"tokens": torch.tensor(self.tokens), "counts": torch.tensor(counts)}

    @classmethod
    def from_tensors(cls, model: VITAAudio, tensors: Mapping[str, Tensor], capacity: int | None = None) -> Writer:
        """The inverse of :meth:`to_tensors`; ValueError where tensors are missing, do not fit the model, or are more
        than ``capacity`` positions hold."""
        writer, given = cls.begin(model, capacity), dict(tensors)
        try:
            tokens, counts = given.pop("tokens").tolist(), given.pop("counts").tolist()
            read, begun, passes, drafts = counts[:4]
            drafted = counts[4:]
            if len(drafted) != len(model.mctp) or not 0 <= read <= len(tokens) <= writer.room or begun < 1:
                raise ValueError("the counts do not fit each other")
            if not all(0 <= token < model.config.vocab_size for token in tokens):
                raise ValueError("a token is not in the vocabulary")
            filled = {"backbone": [read] * len(writer.state.backbone)}
            filled["modules"] = [index - begun - number for number, index in enumerate(drafted)]
            for room, caches in (("backbone", writer.state.backbone), ("modules", writer.state.modules)):
                for number, (cache, length) in enumerate(zip(caches, filled[room], strict=True)):
                    for part, kept in (("key", cache.key), ("value", cache.value)):
                        kept[:, :, :length].copy_(_shaped(given.pop(f"{room}.{number}.{part}"), kept[:, :, :length]))
                    cache.position.fill_(length)
            waiting = {room: list[Tensor]() for room in ("hidden", "passed")}
            for room, parts in waiting.items():
                for number, empty in enumerate(writer.state.hidden):
                    part = given.pop(f"{room}.{number}")
                    parts.append(_shaped(part, empty.new_empty(1, part.shape[1], empty.shape[2])))
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{error} is missing or does not fit") from error
        if given:
            raise ValueError(f"{sorted(given)[0]} is not part of it")
        writer.tokens, writer.read, writer.begun, writer.drafted = tokens, read, begun, drafted
        writer.passes, writer.drafts = passes, drafts
        writer.state = replace(writer.state, hidden=tuple(waiting["hidden"]), passed=tuple(waiting["passed"]))
        return writer

    def backbone(self, rows: slice | None = None) -> Tensor:
        """Let the backbone read what it has not read -> logits of the next token, (V,) or those of some rows."""
        return self.model.logits(self.states(1)[-1], rows)

    def states(self, count: int) -> Tensor:
        """Let the backbone read what it has not read, ``count`` tokens at least -> its states at the last of them
        (count, D)."""
        if len(self.tokens) - self.read < count:
            raise ValueError("the backbone has read everything; add a token first")
        return self._read()[0, -count:]

    def module(self, number: int, rows: slice | None = None) -> Tensor:
        """Let a module read what it has not read -> logits of the next token, (V,) or those of some rows."""
        hidden = self._draft(number)
        return self.model.logits(hidden[0, -1], rows)

    def prefill(self) -> None:
        """Let the backbone read what there is, and the modules too where they read everything."""
        if self.read < len(self.tokens):
            self._read()
        reads = self.model.config.module_reads
        if reads is not None and self.drafted:
            self.state = self.model.skip(max(0, self.state.hidden[0].shape[1] - reads), self.state)
            return
        for number, index in enumerate(self.drafted):
            if index < len(self.tokens):
                self._draft(number)

    def _read(self) -> Tensor:
        new = torch.tensor([self.tokens[self.read :]], device=self.device)
        hidden, self.state = self.model.step(new, self.state, len(self.tokens))
        self.read, self.passes = len(self.tokens), self.passes + 1
        return hidden

    def _draft(self, number: int) -> Tensor:
        first, begun = self.drafted[number], self.begun + number
        if number == 0:  # the oldest state that waits belongs to the token before the first, or to one not wanted
            waiting = self.read - self.state.hidden[0].shape[1]
            self.state = self.model.skip(first - 1 - waiting, self.state)
        new = torch.tensor([self.tokens[first:]], device=self.device)
        hidden, self.state = self.model.draft(number, new, first, self.state, len(self.tokens) - begun)
        self.drafted[number], self.drafts = len(self.tokens), self.drafts + 1
        return hidden


def _shaped(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, if it has the shape and type of another."""
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(f"a tensor is {list(tensor.shape)} and should be {list(like.shape)}")
    return tensor.to(like.device)


@dataclass(frozen=True)
class Written:
    """A token and who wrote it: None the backbone, else the module's number."""

    token: int
    module: int | None


def slots(mode: Sequence[int]) -> Iterator[bool]:
    """For each token to come: may a module write it?"""
    pair = 0
    while True:
        for count, by_module in ((mode[pair], False), (mode[pair + 1], True)):
            for _ in range(count):
                yield by_module
        pair = min(pair + 2, len(mode) - 2)


def write_scheduled(
    writer: Writer, mode: Sequence[int], limit: int, *, stop: Collection[int] = (),
    options: SamplingOptions | None = None, generator: torch.Generator | None = None,
) -> Iterator[Written]:  # fmt: skip
    """Up to ``limit`` tokens by the mode's list alone; the token that stops is written too.

    A module slot beyond the last module falls to the backbone, and the slot after that begins at module 0 again.
    """
    options, number = options or SamplingOptions(), 0
    for _, by_module in zip(range(limit), slots(mode), strict=False):
        drafting = by_module and number < len(writer.drafted)
        logits = writer.module(number) if drafting else writer.backbone()
        token = sample(logits, writer.tokens, options, generator)
        writer.add([token])
        yield Written(token, number if drafting else None)
        number = number + 1 if drafting else 0
        if token in stop:
            return


@dataclass(frozen=True)
class Place:
    """What may stand somewhere: ``rows``, a run of the vocabulary that holds all of it, and which of these may, bool
    (R,). Tokens are numbered from the start of the run."""

    rows: slice
    allowed: Tensor

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (..., R) with minus infinity where nothing may stand."""
        return logits.masked_fill(~self.allowed, float("-inf"))

    def recent(self, tokens: Sequence[int], options: SamplingOptions) -> list[int]:
        """Those of the last tokens that are among the rows, as far back as a penalty for them looks."""
        if options.repetition_penalty == 1.0:
            return []
        first, last = self.rows.start, self.rows.stop
        return [token - first for token in tokens[-options.window :] if first <= token < last]


class Grammar:
    """Which tokens may follow: text, then a block of speech, in turns, and the end after a block.

    ``speaking`` False: text only (a transcript). ``interleave``: the checkpoint's, whose text counts end a turn.
    """

    def __init__(self, tokens: VITATokens, vocab_size: int, *, speaking: bool, interleave: Sequence[int]):
        self.tokens, self.speaking = tokens, speaking
        self.turns = [interleave[i] for i in range(0, len(interleave), 2)]
        self.turn = self.in_turn = self.in_block = 0
        self.in_audio = self.done = False
        text = torch.zeros(vocab_size, dtype=torch.bool)
        text[tokens.text_ids.start : tokens.text_ids.stop] = True
        audio = torch.zeros(vocab_size, dtype=torch.bool)
        audio[tokens.first_code : tokens.first_code + tokens.codes] = True
        self._masks: dict[str, Tensor] = {}
        self._places: dict[str, Place] = {}
        for name, mask, extra in (
            ("text first", text, [tokens.end]),  # after a block: more text, or the end
            ("text", text, [tokens.begin_audio] if speaking else [tokens.end]),
            ("turn over", torch.zeros_like(text), [tokens.begin_audio]),
            ("audio first", audio, []),
            ("audio", audio, [tokens.end_audio]),
        ):
            self._masks[name] = mask.clone()
            self._masks[name][extra] = True
            found = self._masks[name].nonzero()
            rows = slice(int(found.min()), int(found.max()) + 1)
            self._places[name] = Place(rows, self._masks[name][rows])
        rows = self._places["audio"].rows  # one run for all of a block, so that its places can be scored together
        self._places["audio first"] = Place(rows, self._masks["audio first"][rows])

    @property
    def here(self) -> Place:
        """What may stand next."""
        return self._places[self.place]

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
        return self._masks[self.place]

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


def write_by_grammar(
    writer: Writer, grammar: Grammar, mode: Sequence[int], limit: int, *,
    options: SamplingOptions | None = None, generator: torch.Generator | None = None,
) -> Iterator[Written]:  # fmt: skip
    """Up to ``limit`` tokens until the answer ends. Text is never drafted.

    Modules write a run of speech tokens, at most as many as the mode's pair says; then the next pair begins: its
    backbone tokens (of speech, or of text if the block has ended), then its run.
    """
    options, modules = options or SamplingOptions(), len(writer.drafted)
    pair, number, look, left = 0, 0, 0, mode[1]
    for _ in range(limit):
        place, speech = grammar.here, grammar.speech
        spent = left == 0 or number == modules
        if (speech and not look and spent) or (number and not speech):
            pair = min(pair + 2, len(mode) - 2)
            number, look, left = 0, mode[pair], mode[pair + 1]
        drafting = speech and not look
        logits = writer.module(number, place.rows) if drafting else writer.backbone(place.rows)
        chosen = sample(place.masked(logits), place.recent(writer.tokens, options), options, generator)
        token = place.rows.start + chosen
        grammar.take(token)
        writer.add([token])
        yield Written(token, number if drafting else None)
        if drafting:
            number, left = number + 1, left - 1
        else:
            look = max(0, look - 1)
        if grammar.done:
            return
