"""VITA-Audio with verified drafts: modules write ahead, the backbone's next pass checks what they wrote.

The backbone reads drafted tokens anyway before it writes again. Its states at their places tell, at no further pass,
what it would have written there; the drafts stand up to the first with which it does not agree, then comes its own
token, and caches and waiting states go back to that place.

    text so far . t      modules draft  d1 d2 d3 ... dm      the backbone reads  t d1 ... dm
                         it agrees with d1, d2 and says c for d3:  d1 d2 c stand, the next draft begins behind c
                         it agrees with all:  d1 ... dm and one more of its own stand

How it agrees is a :class:`Policy`: :class:`Exact` (greedy; the answer is the one that the backbone alone would give),
:class:`Sampled` (speculative sampling, Leviathan et al. 2023, arXiv 2211.17192, and Chen et al. 2023, arXiv 2302.01318;
the answer is distributed as the backbone's alone), :class:`Threshold` (any draft that is likely enough).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_writing import Grammar, Place, Writer, Written
from vivavoce.errors import ConfigError
from vivavoce.search.sampling import SamplingOptions, probabilities


# ------------------------------------------------------------------------------------------------------------ policies
@dataclass(frozen=True)
class Scores:
    """What a module or the backbone says of a place: logits (R,) of its rows, minus infinity where nothing may stand;
    ``before``: the text up to there."""

    logits: Tensor
    place: Place
    before: Sequence[int]

    def odds(self, options: SamplingOptions) -> Tensor:
        """What a token is drawn from (R,)."""
        return probabilities(self.logits, self.place.recent(self.before, options), options)


@dataclass(frozen=True)
class Choice:
    """A token, numbered within the rows of its place, and what it was drawn from (R,), where it was drawn."""

    token: int
    odds: Tensor | None = None


class Policy(Protocol):
    """How tokens are chosen and when a draft stands; draws come from ``generator``."""

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        """What a module drafts, or the backbone writes by itself."""
        ...

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        """The drafted token if it stands in the face of the backbone's scores, else the token in its place."""
        ...


@dataclass(frozen=True)
class Exact:
    """Always the most likely token of the backbone."""

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        return Choice(int(scores.logits.argmax()))

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        return int(scores.logits.argmax())


@dataclass(frozen=True)
class Sampled:
    """A draft drawn from q stands with probability min(1, p / q), p being the backbone's; else the token is drawn from
    what p has more than q. Temperature, top-k, top-p and penalty are applied to both."""

    options: SamplingOptions

    def __post_init__(self) -> None:
        if self.options.temperature <= 0:
            raise ConfigError("verified sampling needs a temperature above 0; take the policy Exact for greedy writing")

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        odds = scores.odds(self.options)
        return Choice(int(torch.multinomial(odds, 1, generator=generator)), odds)

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        p, q = scores.odds(self.options), draft.odds
        assert q is not None
        if float(torch.rand((), generator=generator, device=p.device)) * float(q[draft.token]) < float(p[draft.token]):
            return draft.token
        rest = (p - q).clamp_min_(0)  # nothing is left only where rounding alone made p less than q
        return int(torch.multinomial(rest if bool(rest.any()) else p, 1, generator=generator))


@dataclass(frozen=True)
class Threshold:
    """Greedy; a draft stands if the backbone gives it at least ``share`` of the probability of its most likely token.

    The answer may differ from the backbone's own; with 1 it is that.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"a draft cannot be held to a share of {self.share}; give one above 0 and up to 1")

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        return Choice(int(scores.logits.argmax()))

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        logits, best = scores.logits, int(scores.logits.argmax())
        return draft.token if float(logits[draft.token] - logits[best]) >= math.log(self.share) else best


# -------------------------------------------------------------------------------------------------------------- events
@dataclass(frozen=True)
class Checked(Written):
    """A token and who wrote it. ``verified``: it stands, and so does everything before it that was not taken back;
    otherwise it may still be taken back."""

    verified: bool


@dataclass(frozen=True)
class TakenBack:
    """The last ``count`` tokens that were told are no part of the answer."""

    count: int


@dataclass
class Acceptance:
    """What became of drafts. By module number: how many it ``drafted``, how many of them were ``judged`` (everything
    before them in their run had been accepted) and ``accepted``; ``runs``: of how many drafts, how many stood, for each
    run; ``passes`` of the backbone, ``written`` tokens that stand."""

    drafted: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)
    passes: int = 0
    written: int = 0

    def count(self, drafted: int, accepted: int) -> None:
        """A backbone pass that judged a run."""
        self.passes, self.written = self.passes + 1, self.written + accepted + 1
        if drafted:
            self.runs.append((drafted, accepted))
        for counts, length in ((self.drafted, drafted), (self.judged, min(drafted, accepted + 1)),
                               (self.accepted, accepted)):  # fmt: skip
            counts += [0] * (drafted - len(counts))
            for number in range(length):
                counts[number] += 1


# ------------------------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True)
class Draft:
    """What a module wrote, and where."""

    place: Place
    choice: Choice

    @property
    def token(self) -> int:
        return self.place.rows.start + self.choice.token


def write_verified(
    writer: Writer, grammar: Grammar, mode: Sequence[int], limit: int, policy: Policy = Exact(), *,
    early: bool = False, generator: torch.Generator | None = None, acceptance: Acceptance | None = None,
) -> Iterator[Checked | TakenBack]:  # fmt: skip
    """Up to ``limit`` tokens until the answer ends; which stand, the policy says.

    The mode's pairs say how many tokens of speech the backbone writes by itself and how many the modules may draft
    then; the next pair begins when a run was accepted whole or its block of speech is over. Text is never drafted.

    With ``early``, drafts are told as soon as they are written, not verified; after the backbone's pass those that do
    not stand are taken back, and its own token, verified, comes last. Else only verified tokens are told. Whoever stops
    in between leaves the writer with tokens that it was not told, or that are not verified; see Writer.roll_back.
    """
    counts = Acceptance() if acceptance is None else acceptance
    pair = look = 0
    while limit > 0 and not grammar.done:
        start, ahead, drafts = len(writer.tokens), copy(grammar), list[Draft]()
        size = 0 if look else min(mode[pair + 1], len(writer.drafted), limit - 1)
        while len(drafts) < size and ahead.speech:
            number, place = len(drafts), ahead.here
            scores = Scores(place.masked(writer.module(number, place.rows)), place, writer.tokens)
            drafts.append(Draft(place, policy.choose(scores, generator)))
            ahead.take(drafts[-1].token)
            writer.add([drafts[-1].token])
            if early:
                yield Checked(drafts[-1].token, number, verified=False)
        accepted, token = _judged(writer, start, drafts, ahead.here, policy, generator)
        writer.roll_back(start + accepted)
        writer.add([token])
        counts.count(len(drafts), accepted)
        limit -= accepted + 1
        for kept in writer.tokens[start:]:
            grammar.take(kept)
        look = max(0, look - 1)
        if drafts and (accepted == len(drafts) or not grammar.speech):
            pair = min(pair + 2, len(mode) - 2)
            look = max(0, mode[pair] - 1)
        if early and accepted < len(drafts):
            yield TakenBack(len(drafts) - accepted)
        if not early:
            yield from (Checked(draft.token, n, verified=True) for n, draft in enumerate(drafts[:accepted]))
        yield Checked(token, None, verified=True)


def _judged(
    writer: Writer, start: int, drafts: list[Draft], beyond: Place, policy: Policy, generator: torch.Generator | None
) -> tuple[int, int]:
    """Let the backbone read the drafts, the first of which has index ``start`` -> how many stand, and its own token
    after those."""
    places = [*(draft.place for draft in drafts), beyond]
    logits = _masked_logits(writer.model, places, writer.states(len(places)))
    for number, draft in enumerate(drafts):
        scores = Scores(next(logits), draft.place, writer.tokens[: start + number])
        token = policy.stands(draft.choice, scores, generator)
        if token != draft.choice.token:
            return number, draft.place.rows.start + token
    return len(drafts), beyond.rows.start + policy.choose(Scores(next(logits), beyond, writer.tokens), generator).token


def _masked_logits(model: VITAAudio, places: list[Place], hidden: Tensor) -> Iterator[Tensor]:
    """Logits (R,) of each place, from the states (n, D) before them: one product for neighbours that have the same
    rows, and none before it is wanted."""
    at = 0
    for _, group in groupby(places, key=lambda place: place.rows):
        together = list(group)
        logits = model.logits(hidden[at : at + len(together)], together[0].rows)
        at += len(together)
        for place, row in zip(together, logits, strict=True):
            yield place.masked(row)
