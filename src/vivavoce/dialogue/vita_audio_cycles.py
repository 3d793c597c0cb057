"""Who writes the next token of a VITA-Audio answer: in cycles, modules draft a run of tokens, then the backbone reads
it and writes one of its own.

    text so far . t      modules draft  d1 d2 d3 ... dm      the backbone reads  t d1 ... dm
                         if drafts are trusted:  d1 ... dm and one more of its own stand
                         if they are checked, and it agrees with d1, d2 and says c for d3:  d1 d2 c stand, the next
                         draft begins behind c

It reads drafted tokens anyway before it writes again, and its states at their places tell, at no further pass, what it
would have written there. A :class:`CycledText` lets the grammar of answers decide who writes: text is always written by
the backbone, speech by modules while the mode allows, only tokens that may stand in a place can be chosen, and the
answer ends at its end. A :class:`ScheduledText` follows the mode's list blindly, as the authors' code does.

What a text needs of the model it asks for, and :func:`carry_out` does it, for one text or for many at once
(vita_audio_engine.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_grammar import Course, Grammar, Place
from vivavoce.dialogue.vita_audio_policies import Acceptance, Choice, Exact, Policy, Scores, Trusted
from vivavoce.dialogue.vita_audio_writing import Writer, draft_together, read_together
from vivavoce.nn.drafting import DraftPlace, DraftRun
from vivavoce.search.sampling import SamplingOptions


# -------------------------------------------------------------------------------------------------------------- events
@dataclass(frozen=True)
class Written:
    """A token and who wrote it: None the backbone, else the module's number."""

    token: int
    module: int | None


@dataclass(frozen=True)
class Checked(Written):
    """A token of a text whose drafts are checked. ``verified``: it stands, and so does everything before it that was
    not taken back; otherwise it may still be taken back."""

    verified: bool


@dataclass(frozen=True)
class TakenBack:
    """The last ``count`` tokens that were told are no part of the answer."""

    count: int


# ---------------------------------------------------------------------------------------------- what a text asks for
@dataclass(frozen=True)
class Draft:
    """What a module wrote, and where."""

    place: Place
    choice: Choice

    @property
    def token(self) -> int:
        return self.place.rows.start + self.choice.token


@dataclass(frozen=True)
class Reading:
    """The backbone is to read what it has not read; asked for are its states (count, D) at the last tokens."""

    count: int = 1


@dataclass(frozen=True)
class Drafting:
    """Modules are to write up to ``size`` tokens behind the text, as far as ``course`` lets them: a list of drafts."""

    size: int
    course: Course
    policy: Policy
    generator: torch.Generator | None = None


Ask = Reading | Drafting
Found = Tensor | list[Draft]


class Text(Protocol):
    """A text that is being written."""

    writer: Writer

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        ...

    def ask(self) -> Ask | None:
        """What it needs next; None when it is complete."""
        ...

    def take(self, found: Found) -> list[Written | TakenBack]:
        """What was asked for -> what has come of it."""
        ...


def carry_out(asked: Sequence[tuple[Writer, Ask]], most: int | None = None) -> list[Found | None]:
    """What several texts of one model ask for, those that ask the same together. None for a text of which the backbone
    has not read everything yet, where it was to read ``most`` tokens of each at most."""
    found: list[Found | None] = [None] * len(asked)
    reading = [(n, writer, ask) for n, (writer, ask) in enumerate(asked) if isinstance(ask, Reading)]
    if reading:
        for _, writer, ask in reading:
            if len(writer.tokens) - writer.read < ask.count:
                raise ValueError("the backbone has read everything; add a token first")
        hidden = read_together([writer for _, writer, _ in reading], most)
        for (n, writer, ask), states in zip(reading, hidden, strict=True):
            if writer.read == len(writer.tokens) and states.shape[1] >= ask.count:
                found[n] = states[0, -ask.count :]
    drafting = [(n, writer, ask) for n, (writer, ask) in enumerate(asked) if isinstance(ask, Drafting)]
    if drafting:
        jobs = [(writer, ask) for _, writer, ask in drafting]
        greedy = [number for number, (_, ask) in enumerate(jobs) if ask.policy.greedy]
        made = dict(zip(greedy, _in_one_go([jobs[number] for number in greedy]) or (), strict=False))
        rest = [number for number in range(len(jobs)) if number not in made]
        made |= zip(rest, _one_by_one([jobs[number] for number in rest]), strict=True)
        for number, (n, _, _) in enumerate(drafting):
            found[n] = made[number]
    return found


def _one_by_one(jobs: Sequence[tuple[Writer, Drafting]]) -> list[list[Draft]]:
    """Each module for all texts, then the next."""
    drafts: list[list[Draft]] = [[] for _ in jobs]
    courses = [copy(ask.course) for _, ask in jobs]
    for number in range(max((ask.size for _, ask in jobs), default=0)):
        going = [
            n for n, (_, ask) in enumerate(jobs)
            if number < ask.size and len(drafts[n]) == number and courses[n].speech
        ]  # fmt: skip
        if not going:
            break
        hidden = draft_together(number, [jobs[n][0] for n in going])
        for n, states in zip(going, hidden, strict=True):
            (writer, ask), place = jobs[n], courses[n].here
            logits = place.masked(writer.model.logits(states[0, -1], place.rows))
            draft = Draft(
                place, ask.policy.choose(Scores(logits, place, writer.tokens, len(writer.tokens)), ask.generator)
            )
            drafts[n].append(draft)
            courses[n].take(draft.token)
            writer.add([draft.token])
    return drafts


def _in_one_go(jobs: Sequence[tuple[Writer, Drafting]]) -> list[list[Draft]] | None:
    """All modules for all texts in C; None where that cannot be."""
    if not jobs:
        return None
    table, starts, runs = list[DraftPlace](), list[tuple[object, int]](), list[DraftRun]()
    for writer, ask in jobs:
        places, number = ask.course.draft_places
        start = next((at for known, at in starts if known is places), None)
        if start is None:
            start = len(table)
            starts.append((places, start))
            table += [place._replace(next=place.next + start) for place in places]
        writer.make_waiting()
        runs.append(writer.draft_run(ask.size, start + number))
    if not jobs[0][0].model.write_drafts(table, runs):
        return None
    found = list[list[Draft]]()
    for (writer, ask), run in zip(jobs, runs, strict=True):
        course, drafts = copy(ask.course), list[Draft]()
        for token in run.added:
            drafts.append(Draft(course.here, Choice(token - course.here.rows.start)))
            course.take(token)
        writer.take_run(run)
        found.append(drafts)
    return found


def write(text: Text) -> Iterator[Written | TakenBack]:
    """One text, to its end."""
    while (ask := text.ask()) is not None:
        (found,) = carry_out([(text.writer, ask)])
        assert found is not None
        yield from text.take(found)


# ---------------------------------------------------------------------------------------------------------- by grammar
@dataclass
class CycledText:
    """Up to ``limit`` tokens until the answer ends; which drafts stand, the policy says. Text is never drafted.

    The mode's pairs say how many tokens the backbone writes by itself and how many of speech the modules may draft
    then; the next pair begins when a run stood whole or its block of speech is over. An answer begins with text, which
    is the backbone's in any case, so of the first pair only the drafts count.

    Where the policy checks and ``early`` is set, drafts are told as soon as they are written, not verified; after the
    backbone's pass those that do not stand are taken back, and its own token, verified, comes last. Else only verified
    tokens are told.
    """

    writer: Writer
    grammar: Grammar
    mode: Sequence[int]
    limit: int
    policy: Policy = field(default_factory=Trusted)
    early: bool = False
    generator: torch.Generator | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    pair: int = 0
    look: int = 0  # tokens that the backbone is to write before modules may draft
    drafts: list[Draft] | None = None  # that wait for the backbone

    @property
    def left(self) -> int:
        return self.limit

    def ask(self) -> Ask | None:
        if self.limit <= 0 or self.grammar.done:
            return None
        checks = self.policy.checks
        if self.drafts is None:
            # what is checked is followed by a token of the backbone's own
            size = 0 if self.look else min(self.mode[self.pair + 1], len(self.writer.drafted), self.limit - checks)
            if size and self.grammar.speech:
                return Drafting(size, self.grammar, self.policy, self.generator)
            self.drafts = []
        return Reading(len(self.drafts) + 1 if checks else 1)

    def take(self, found: Found) -> list[Written | TakenBack]:
        if isinstance(found, list):
            self.drafts = found
            if not self.policy.checks:
                self._keep([draft.token for draft in found])
                return [Written(draft.token, number) for number, draft in enumerate(found)]
            return [Checked(draft.token, n, verified=False) for n, draft in enumerate(found if self.early else ())]
        drafts, self.drafts = self.drafts or [], None
        start, checks = len(self.writer.tokens) - len(drafts), self.policy.checks
        accepted, token = self._judged(start, drafts if checks else [], found)
        if not checks:
            accepted = len(drafts)
        self.writer.roll_back(start + accepted)
        self.writer.add([token])
        self._keep(self.writer.tokens[start:] if checks else [token])
        if checks:
            self.acceptance.count(len(drafts), accepted)
        self.look = max(0, self.look - 1)
        if drafts and (accepted == len(drafts) or not self.grammar.speech):
            self.pair = min(self.pair + 2, len(self.mode) - 2)
            self.look = max(0, self.mode[self.pair] - 1)
        if not checks:
            return [Written(token, None)]
        own = Checked(token, None, verified=True)
        if not self.early:
            return [*(Checked(draft.token, n, verified=True) for n, draft in enumerate(drafts[:accepted])), own]
        return [TakenBack(len(drafts) - accepted), own] if accepted < len(drafts) else [own]

    def _keep(self, tokens: Sequence[int]) -> None:
        """These are part of the answer."""
        self.limit -= len(tokens)
        for token in tokens:
            self.grammar.take(token)

    def fork(self) -> CycledText:
        """Another text that goes on from here by itself."""
        generator = self.generator
        if generator is not None:
            generator = torch.Generator(generator.device)
            generator.set_state(self.generator.get_state())  # pyright: ignore[reportOptionalMemberAccess]
        return replace(
            self, writer=self.writer.fork(), grammar=copy(self.grammar), generator=generator,
            acceptance=self.acceptance.copy(), drafts=None if self.drafts is None else list(self.drafts),
        )  # fmt: skip

    def _judged(self, start: int, drafts: list[Draft], states: Tensor) -> tuple[int, int]:
        """States (n, D) of the backbone before each draft that is to be judged, the first of which has index
        ``start``, and behind the last -> how many of them stand, and its own token after those."""
        ahead = copy(self.grammar)
        for draft in drafts:
            ahead.take(draft.token)
        beyond, writer, policy = ahead.here, self.writer, self.policy
        logits = _masked_logits(writer.model, [*(draft.place for draft in drafts), beyond], states)
        for number, draft in enumerate(drafts):
            scores = Scores(next(logits), draft.place, writer.tokens, start + number)
            token = policy.stands(draft.choice, scores, self.generator)
            if token != draft.choice.token:
                return number, draft.place.rows.start + token
        scores = Scores(next(logits), beyond, writer.tokens, len(writer.tokens))
        choice = policy.choose(scores, self.generator)
        return len(drafts), beyond.rows.start + choice.token


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


def write_by_grammar(
    writer: Writer, grammar: Grammar, mode: Sequence[int], limit: int, *,
    options: SamplingOptions | None = None, generator: torch.Generator | None = None,
) -> Iterator[Written]:  # fmt: skip
    """A :class:`CycledText` whose drafts stand unseen. They are told run by run: whoever stops in between leaves the
    writer with tokens that it was not told."""
    text = CycledText(writer, grammar, mode, limit, Trusted(options or SamplingOptions()), generator=generator)
    return (made for made in write(text) if isinstance(made, Written))


def write_verified(
    writer: Writer, grammar: Grammar, mode: Sequence[int], limit: int, policy: Policy | None = None, *,
    early: bool = False, generator: torch.Generator | None = None, acceptance: Acceptance | None = None,
) -> Iterator[Checked | TakenBack]:  # fmt: skip
    """A :class:`CycledText` whose drafts are checked, by default so that the answer is the backbone's own. Whoever
    stops in between leaves the writer with tokens that it was not told, or that are not verified."""
    counts = Acceptance() if acceptance is None else acceptance
    text = CycledText(writer, grammar, mode, limit, policy or Exact(), early, generator, counts)
    return (made for made in write(text) if isinstance(made, Checked | TakenBack))


# --------------------------------------------------------------------------------------------------------- by the list
class Anything:
    """Any token may follow, until one that stops."""

    speech = True

    def __init__(self, vocab_size: int, stop: Collection[int] = ()):
        rows, allowed = slice(0, vocab_size), torch.ones(vocab_size, dtype=torch.bool)
        self.here, self.stop, last = Place(rows, allowed), frozenset(stop), None
        if stop:
            last = torch.zeros(vocab_size, dtype=torch.bool)
            last[list(stop)] = True
        self.draft_places = (DraftPlace(rows, allowed, last, 0),), 0

    def take(self, token: int) -> None:
        """Move past a token."""
        self.speech = token not in self.stop


def slots(mode: Sequence[int]) -> Iterator[bool]:
    """For each token to come: may a module write it?"""
    pair = 0
    while True:
        for count, by_module in ((mode[pair], False), (mode[pair + 1], True)):
            for _ in range(count):
                yield by_module
        pair = min(pair + 2, len(mode) - 2)


class ScheduledText:
    """Up to ``limit`` tokens by the mode's list alone; the token that stops is written too.

    A module slot beyond the last module falls to the backbone, and the slot after that begins at module 0 again.
    """

    def __init__(
        self, writer: Writer, mode: Sequence[int], limit: int, *, stop: Collection[int] = (),
        options: SamplingOptions | None = None, generator: torch.Generator | None = None,
    ):  # fmt: skip
        self.writer, self.generator, self.policy = writer, generator, Trusted(options or SamplingOptions())
        self.course = Anything(writer.model.config.vocab_size, stop)
        self._slots, self._at = list(islice(slots(mode), limit)), 0
        self._drafted = 0  # modules that have written since the backbone did

    @property
    def left(self) -> int:
        return len(self._slots) - self._at

    def ask(self) -> Ask | None:
        if self._at == len(self._slots) or not self.course.speech:
            return None
        room, size = len(self.writer.drafted) - self._drafted, 0
        while size < room and self._at + size < len(self._slots) and self._slots[self._at + size]:
            size += 1
        return Drafting(size, self.course, self.policy, self.generator) if size else Reading()

    def take(self, found: Found) -> list[Written | TakenBack]:
        if isinstance(found, list):
            made, self._drafted = [Written(draft.token, n) for n, draft in enumerate(found)], len(found)
        else:
            writer = self.writer
            scores = Scores(writer.model.logits(found[-1]), self.course.here, writer.tokens, len(writer.tokens))
            token = self.policy.choose(scores, self.generator).token
            writer.add([token])
            made, self._drafted = [Written(token, None)], 0
        self._at += len(made)
        for item in made:
            self.course.take(item.token)
        return list(made)


def write_scheduled(
    writer: Writer, mode: Sequence[int], limit: int, *, stop: Collection[int] = (),
    options: SamplingOptions | None = None, generator: torch.Generator | None = None,
) -> Iterator[Written]:  # fmt: skip
    """A :class:`ScheduledText`, token by token."""
    text = ScheduledText(writer, mode, limit, stop=stop, options=options, generator=generator)
    return (made for made in write(text) if isinstance(made, Written))
