"""Who has the last word over a token of VITA-Audio's answer: modules draft, and a policy says how tokens are chosen and
which drafts stand.

:class:`Trusted` (every draft stands, as in the authors' code; the answer is what the mode makes of it), :class:`Exact`
(greedy; the answer is the one that the backbone alone would give), :class:`Sampled` (speculative sampling, Leviathan et
al. 2023, arXiv 2211.17192, and Chen et al. 2023, arXiv 2302.01318; the answer is distributed as the backbone's alone),
:class:`Threshold` (any draft that is likely enough).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio_grammar import Place
from vivavoce.errors import ConfigError
from vivavoce.search.sampling import SamplingOptions, probabilities, sample


@dataclass(frozen=True)
class Scores:
    """What a module or the backbone says of a place: logits (R,) of its rows, minus infinity where nothing may stand.
    The place is that of index ``at`` of ``text``."""

    logits: Tensor
    place: Place
    text: Sequence[int]
    at: int

    def recent(self, options: SamplingOptions) -> list[int]:
        """The last tokens before it, among the rows, as far back as a penalty for them looks."""
        return self.place.recent(self.text, self.at, options)

    def odds(self, options: SamplingOptions) -> Tensor:
        """What a token is drawn from (R,)."""
        return probabilities(self.logits, self.recent(options), options)


@dataclass(frozen=True)
class Choice:
    """A token, numbered within the rows of its place, and what it was drawn from (R,), where it was drawn."""

    token: int
    odds: Tensor | None = None


class Policy:
    """How tokens are chosen and when a draft stands; draws come from ``generator``. This one takes the likeliest."""

    checks: ClassVar[bool] = True  # whether the backbone looks at drafts at all

    @property
    def greedy(self) -> bool:
        """Whether :meth:`choose` always takes the likeliest token."""
        return True

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        """What a module drafts, or the backbone writes by itself."""
        return Choice(int(scores.logits.argmax()))

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        """The drafted token if it stands in the face of the backbone's scores, else the token in its place."""
        raise TypeError(f"{type(self).__name__} does not check drafts")


@dataclass(frozen=True)
class Trusted(Policy):
    """Every draft stands, unseen."""

    options: SamplingOptions = field(default_factory=SamplingOptions)
    checks = False

    @property
    def greedy(self) -> bool:
        return self.options.temperature <= 0 and self.options.repetition_penalty == 1.0

    def choose(self, scores: Scores, generator: torch.Generator | None) -> Choice:
        return Choice(sample(scores.logits, scores.recent(self.options), self.options, generator))


@dataclass(frozen=True)
class Exact(Policy):
    """Always the most likely token of the backbone."""

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        return int(scores.logits.argmax())


@dataclass(frozen=True)
class Sampled(Policy):
    """A draft drawn from q stands with probability min(1, p / q), p being the backbone's; else the token is drawn from
    what p has more than q. Temperature, top-k, top-p and penalty are applied to both."""

    options: SamplingOptions

    def __post_init__(self) -> None:
        if self.options.temperature <= 0:
            raise ConfigError("verified sampling needs a temperature above 0; take the policy Exact for greedy writing")

    @property
    def greedy(self) -> bool:
        return False

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
class Threshold(Policy):
    """Greedy; a draft stands if the backbone gives it at least ``share`` of the probability of its most likely token.

    The answer may differ from the backbone's own; with 1 it is that.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"a draft cannot be held to a share of {self.share}; give one above 0 and up to 1")

    def stands(self, draft: Choice, scores: Scores, generator: torch.Generator | None) -> int:
        logits, best = scores.logits, int(scores.logits.argmax())
        return draft.token if float(logits[draft.token] - logits[best]) >= math.log(self.share) else best


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

    def copy(self) -> Acceptance:
        """The same counts, to go on from."""
        lists = {name: list(getattr(self, name)) for name in ("drafted", "judged", "accepted", "runs")}
        return Acceptance(**lists, passes=self.passes, written=self.written)
