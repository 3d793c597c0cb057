"""What VITA-Audio writes with: the modes of arXiv 2505.03739, section 3.2, and a text that grows, read by the backbone
and by modules, each from its own place on.

A mode is a list (M1, m1, M2, m2, ...): M1 tokens by the backbone, m1 by modules 0, 1, ..., and so on, the last pair for
ever. Who writes the next token is decided in vita_audio_cycles.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioState
from vivavoce.errors import ConfigError, nearest
from vivavoce.nn.drafting import DraftRun
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
    def begin(cls, model: VITAAudio, capacity: int | None = None) -> Self:
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

    def fork(self) -> Self:
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
    def from_tensors(cls, model: VITAAudio, tensors: Mapping[str, Tensor], capacity: int | None = None) -> Self:
        """The inverse of :meth:`to_tensors`; ValueError where tensors are missing, do not fit the model, or are more
        than ``capacity`` positions hold."""
        writer, given = cls.begin(model, capacity), dict(tensors)
        try:
            tokens, counts = given.pop("tokens").tolist(), given.pop("counts").tolist()
            read, begun, passes, drafts = counts[:4]
            drafted = counts[4:]
            if len(drafted) != len(model.mctp) or not 0 <= read <= len(tokens) <= writer.room or begun < 1:
                raise ValueError("the counts do not fit each other")
            if any(
                not begun + number <= index <= max(begun + number, len(tokens)) for number, index in enumerate(drafted)
            ):
                raise ValueError("a module stands outside the text")
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

    def draft_run(self, size: int, place: int) -> DraftRun:
        """What the C kernels need to write drafts behind the text, the first of them in that place of a table."""
        caches, waiting = self.state.modules, list(self.state.hidden)
        return DraftRun(
            [cache.key for cache in caches], [cache.value for cache in caches], self.tokens, self.begun, self.drafted,
            waiting, list(self.state.passed), size, place,
        )  # fmt: skip

    def take_run(self, run: DraftRun) -> None:
        """The drafts have been written: they join the text."""
        self.drafts += len(run.added)
        self.tokens += run.added
        self.drafted = run.drafted
        filled = [index - self.begun - number for number, index in enumerate(run.drafted)]
        positions = torch.tensor(filled, device=self.device).split(1)
        caches = [replace(c, position=p) for c, p in zip(self.state.modules, positions, strict=True)]
        self.state = replace(
            self.state, modules=tuple(caches), hidden=tuple(run.waiting), passed=tuple(run.passed)
        )  # fmt: skip

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

    def embedded(self, end: int) -> Tensor | None:
        """What the backbone reads in place of the embeddings (1, T, D) of the tokens from ``read`` up to ``end``."""
        return None

    def make_waiting(self) -> None:
        """Let the oldest state that waits for module 0 be that of the token before its next one; those before it belong
        to tokens that modules are not to read."""
        waiting = self.read - self.state.hidden[0].shape[1]
        self.state = self.model.skip(self.drafted[0] - 1 - waiting, self.state)

    def _read(self) -> Tensor:
        return read_together([self])[0]

    def _draft(self, number: int) -> Tensor:
        return draft_together(number, [self])[0]


def read_together(writers: Sequence[Writer], most: int | None = None) -> list[Tensor]:
    """One backbone pass over what it has not read of several texts of one model, ``most`` tokens of each at most -> its
    states (1, T, D)."""
    model = writers[0].model
    ends = [len(w.tokens) if most is None else min(len(w.tokens), w.read + most) for w in writers]
    new = [torch.tensor([w.tokens[w.read : end]], device=w.device) for w, end in zip(writers, ends, strict=True)]
    embedded = [w.embedded(end) for w, end in zip(writers, ends, strict=True)]
    hidden, states = model.step_together(new, [w.state for w in writers], ends, embedded)
    for writer, state, end in zip(writers, states, ends, strict=True):
        writer.state, writer.read, writer.passes = state, end, writer.passes + 1
    return hidden


def draft_together(number: int, writers: Sequence[Writer]) -> list[Tensor]:
    """One pass of a module over what it has not read of several texts of one model -> its states (1, T, D)."""
    model = writers[0].model
    for writer in writers if number == 0 else ():
        writer.make_waiting()
    firsts = [w.drafted[number] for w in writers]
    new = [torch.tensor([w.tokens[first:]], device=w.device) for w, first in zip(writers, firsts, strict=True)]
    spans = [len(w.tokens) - w.begun - number for w in writers]
    hidden, states = model.draft_together(number, new, firsts, [w.state for w in writers], spans)
    for writer, state in zip(writers, states, strict=True):
        writer.state, writer.drafted[number], writer.drafts = state, len(writer.tokens), writer.drafts + 1
    return hidden


def _shaped(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, if it has the shape and type of another."""
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(f"a tensor is {list(tensor.shape)} and should be {list(like.shape)}")
    return tensor.to(like.device)
