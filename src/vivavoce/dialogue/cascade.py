"""A spoken conversation from three parts: a recogniser hears, a text model thinks, a voice speaks, and nothing waits
its turn.

    blocks of 16 kHz -> voice activity -> pause begins: recognise, think, speak the first clause (speculatively)
                                       -> pause lasts: release what is ready, stream the rest
                                       -> speech goes on: throw it away
    speech during the answer -> cut it, and remember only what was played

The work runs in one thread behind the session, so ``step`` returns at once. Bricks: detect/silero.py, text/chunking.py,
dialogue/skills.py; the parts are whatever has the methods used here.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.detect.silero import Silero
from vivavoce.dialogue import Event, Reply, Timing
from vivavoce.dialogue.skills import SkillAnswer, Skills
from vivavoce.lm.chat import Message, TextModel
from vivavoce.text.chunking import ClauseChunker

HEARING_RATE = 16_000
REMEMBERED = 40  # messages of a conversation that a text model is told


class Hears(Protocol):
    """The part of a recogniser that a conversation needs."""

    name: str

    def understand(self, wave: Tensor, language: str | None, cancelled: Callable[[], bool]) -> str:
        """One utterance (S,) at 16 kHz -> its words; may stop early, with any result, once cancelled."""
        ...


class Speaks(Protocol):
    """The part of a voice that a conversation needs."""

    name: str
    sample_rate: int

    def stream(self, text: str) -> Iterator[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class CascadeOptions:
    """Times in seconds. The answer is released ``endpoint`` after the last speech; work on it starts after
    ``speculate``.
    """

    threshold: float = 0.5
    leave: float = 0.35
    lead: float = 0.4  # kept from before speech was noticed
    min_speech: float = 0.2
    speculate: float = 0.13
    endpoint: float = 0.5
    barge_in: float = 0.25
    longest: float = 28.0  # an utterance is closed after this
    language: str | None = "en"
    first_clause: int = 18  # characters before the first clause may leave
    clause: int = 28  # short enough that the next clause is there before the one before it has been heard
    longest_clause: int = 160


@dataclass
class Turn:
    """One question and its answer, while the worker makes it."""

    wave: Tensor
    ended_at: float  # seconds on the audio clock: the last sample of speech
    began: float  # seconds on the wall clock
    cancelled: threading.Event = field(default_factory=threading.Event)
    out: queue.Queue[Reply | None] = field(default_factory=queue.Queue)
    timing: Timing = field(default_factory=Timing)
    heard: str = ""
    answer: str = ""
    made: list[tuple[str, int]] = field(default_factory=list)  # (clause, samples of its sound so far)
    skill: SkillAnswer | None = None
    remembered: int = 0  # where in the history it stands, once complete
    error: BaseException | None = None

    @property
    def samples(self) -> int:
        """Length of the answer's sound so far."""
        return sum(length for _, length in self.made)


class Cascade:
    """The parts of an assistant. ``session()`` starts a conversation; weights are shared by all sessions, one at a
    time.
    """

    def __init__(self, hears: Hears, voice_activity: Silero, thinks: TextModel, speaks: Speaks, *,
                 options: CascadeOptions | None = None, clock: Callable[[], float],
                 now: Callable[[], datetime] = datetime.now):  # fmt: skip
        self.hears, self.voice_activity, self.thinks, self.speaks = hears, voice_activity, thinks, speaks
        self.options = options or CascadeOptions()
        self.clock, self.now = clock, now

    @property
    def models(self) -> dict[str, str]:
        """The names of the parts."""
        return {"hears": self.hears.name, "thinks": self.thinks.name, "speaks": self.speaks.name}

    def warm(self) -> None:
        """Do once what would otherwise delay the first answer."""
        self.thinks.warm()
        silence = torch.zeros(HEARING_RATE // 2)
        self.hears.understand(silence, self.options.language, lambda: False)
        for _ in self.speaks.stream("Hello."):
            pass

    def session(self) -> CascadeSession:
        return CascadeSession(self)


class CascadeSession:
    """One conversation. Feed blocks of any size with :meth:`step`; call it with silence (or :meth:`poll`) while the
    answer plays. :meth:`played` says how much of the answer has been heard, so that an interruption is remembered
    rightly.
    """

    def __init__(self, cascade: Cascade):
        self.cascade, self.options = cascade, cascade.options
        self.sample_rate = cascade.speaks.sample_rate
        self.history: list[Message] = []
        self.skills = Skills()
        self.turns: list[Turn] = []
        self._detector = cascade.voice_activity
        self._vad = self._detector.init_state(1)
        self._tape = torch.zeros(0)  # what is kept of the sound; its last sample is the latest heard
        self._unheard = torch.zeros(0)  # too little for a chunk of the detector yet
        self._samples = 0
        self._speech_from: int | None = None
        self._last_speech = 0
        self._spoken = 0  # samples judged speech since it started
        self._loud = 0  # samples of speech in a row while an answer plays
        self._draft: Turn | None = None  # speculative
        self._turn: Turn | None = None  # released, and still being made
        self._told: Turn | None = None  # made, and perhaps still being played
        self._played: float | None = None  # seconds of the answer that were heard; None where the caller does not say
        self._worker: threading.Thread | None = None
        self._runs_on = False  # speech went past the longest utterance: the rest of it is let pass
        self.real_time = True  # sound comes as fast as it was spoken, so that a pause has taken its time

    # ---------------------------------------------------------------------------------------------------- listening

    @property
    def now(self) -> float:
        """Seconds of sound heard so far."""
        return self._samples / HEARING_RATE

    @property
    def hearing(self) -> bool:
        """Whether an utterance has begun and its end has not been found yet."""
        return self._speech_from is not None

    @property
    def answering(self) -> bool:
        """Whether an answer is being made (or its sound has not been fetched yet)."""
        return self._turn is not None

    def step(self, wave: Tensor) -> Reply:
        """(S,) at 16 kHz, any length -> whatever there is to say by now."""
        self._unheard = torch.cat([self._unheard, wave])
        chunk = self._detector.config.chunk
        whole = self._unheard.numel() // chunk * chunk
        events: list[Event] = []
        if whole:
            sound, self._unheard = self._unheard[:whole], self._unheard[whole:]
            with torch.inference_mode():
                odds, self._vad = self._detector.step(sound[None], self._vad)
            for i, probability in enumerate(odds[0].tolist()):
                self._hear(sound[i * chunk : (i + 1) * chunk], probability, events)
        return self.poll(events)

    def played(self, seconds: float) -> None:
        """How much of the answer the listener has heard. Without it an answer counts as heard once it is made."""
        self._played = seconds

    @property
    def audible(self) -> bool:
        """Whether an answer is due or still playing, so that speech now is an interruption."""
        if self._turn is not None:
            return True
        told = self._told
        return told is not None and self._played is not None and self._played < told.samples / self.sample_rate

    def poll(self, events: list[Event] | None = None) -> Reply:
        """Fetch what the worker has made of the answer since the last call."""
        texts, waves, events = [], [], events or []
        turn = self._turn
        while turn is not None:
            try:
                piece = turn.out.get_nowait()
            except queue.Empty:
                break
            if piece is None:
                if turn.error is not None and (texts or waves):
                    turn.out.put(None)  # first what was made, then, at the next call, the error
                else:
                    self._close(turn, events)
                break
            texts.append(piece.text_piece)
            events += piece.events
            if piece.wave_piece is not None:
                if turn.timing.first_sound is None:
                    turn.timing.first_sound = 1000 * (self.cascade.clock() - turn.began)
                    events.append(Event("reply_started", self.now))
                waves.append(piece.wave_piece)
        return Reply("".join(texts), torch.cat(waves) if waves else None, tuple(events))

    def ask(self, wave: Tensor) -> None:
        """Answer a whole utterance at once, without waiting for a pause; an answer still running is interrupted."""
        self.interrupt()
        self._samples += wave.numel()
        self._accept(self._begin(wave, self.now))

    def close(self) -> None:
        """End the conversation and wait for the worker."""
        for turn in (self._draft, self._turn):
            if turn is not None:
                turn.cancelled.set()
        if self._worker is not None:
            self._worker.join()

    def _hear(self, chunk: Tensor, probability: float, events: list[Event]) -> None:
        options, size = self.options, chunk.numel()
        self._samples += size
        keep = int((options.longest + 2 * options.lead) * HEARING_RATE)
        self._tape = torch.cat([self._tape, chunk])[-keep:]
        speech = probability >= (options.threshold if self._speech_from is None else options.leave)
        if self._runs_on:
            self._last_speech = self._samples if speech else self._last_speech
            self._runs_on = self._samples - self._last_speech < options.endpoint * HEARING_RATE
            return
        if self.audible and not self._barges_in(speech, size, events):
            return
        if speech:
            if self._speech_from is None:
                self._speech_from, self._spoken = self._samples - size, 0
                events.append(Event("speech_started", self.now))
            if self._draft is not None:  # the pause was none: what was begun is worthless
                self._draft.cancelled.set()
                self._draft = None
            self._last_speech = self._samples
            self._spoken += size
        if self._speech_from is None:
            return
        pause = (self._samples - self._last_speech) / HEARING_RATE
        length = (self._samples - self._speech_from) / HEARING_RATE
        if self._spoken < options.min_speech * HEARING_RATE:
            if pause >= options.endpoint:
                self._speech_from = None  # a click, a cough
            return
        if self._draft is None and (pause >= options.speculate or length >= options.longest):
            self._draft = self._begin(self._utterance(), self._last_speech / HEARING_RATE)
            self._draft.began -= pause if self.real_time else 0.0
        if pause >= options.endpoint or length >= options.longest:
            self._runs_on = pause < options.endpoint
            self._release(events)

    def _utterance(self) -> Tensor:
        assert self._speech_from is not None
        first = self._speech_from - int(self.options.lead * HEARING_RATE)
        return self._tape[-(self._samples - first) :].clone()

    def _release(self, events: list[Event]) -> None:
        """The pause is an end: what was speculative becomes the answer."""
        events.append(Event("speech_ended", self._last_speech / HEARING_RATE))
        turn, self._draft = self._draft, None
        assert turn is not None
        self._accept(turn)

    def _accept(self, turn: Turn) -> None:
        """From here on the turn is what the conversation is about."""
        self._turn = turn
        self.turns.append(turn)
        self._speech_from, self._loud, self._told = None, 0, None
        self._played = None if self._played is None else 0.0

    def _barges_in(self, speech: bool, size: int, events: list[Event]) -> bool:
        """While an answer is due or playing: True once speech has lasted long enough to stop it."""
        self._loud = self._loud + size if speech else 0
        if self._loud < self.options.barge_in * HEARING_RATE:
            return False
        self.interrupt(events)
        self._speech_from = self._samples - self._loud
        self._spoken, self._last_speech = self._loud - size, self._samples
        events.append(Event("speech_started", self._speech_from / HEARING_RATE))
        return True

    def interrupt(self, events: list[Event] | None = None) -> None:
        """Stop the answer; the conversation remembers the part of it that was played."""
        turn = self._turn or self._told
        if turn is None:
            return
        turn.cancelled.set()
        if self._turn is None:  # it was remembered as a whole
            del self.history[turn.remembered :]
        self._turn = self._told = None
        told = turn.answer if self._played is None else _told_by(turn.made, self._played * self.sample_rate)
        self._remember(turn, told)
        if events is not None:
            events.append(Event("interrupted", self.now, told))

    def _close(self, turn: Turn, events: list[Event]) -> None:
        self._turn = None
        if turn.error is not None:
            raise turn.error
        turn.remembered = len(self.history)
        self._told = turn
        self._remember(turn, turn.answer)
        events.append(Event("reply_ended", self.now, turn.answer))

    def _remember(self, turn: Turn, answer: str) -> None:
        if turn.heard:
            self.history.append(Message("user", turn.heard))
            self.skills.heed(turn.heard, answer, turn.skill)
        if answer:
            self.history.append(Message("assistant", answer))

    # ------------------------------------------------------------------------------------------------------ working

    def _begin(self, wave: Tensor, ended_at: float) -> Turn:
        turn = Turn(wave=wave, ended_at=ended_at, began=self.cascade.clock())
        before = self._worker
        self._worker = threading.Thread(target=self._work, args=(turn, before), daemon=True)
        self._worker.start()
        return turn

    def _work(self, turn: Turn, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # it was cancelled, and the parts are not to be used twice at once
        try:
            if not turn.cancelled.is_set():
                with torch.inference_mode():
                    self._answer(turn)
        except BaseException as error:  # handed to the caller of poll
            turn.error = error
        turn.out.put(None)

    def _answer(self, turn: Turn) -> None:
        clock, began = self.cascade.clock, self.cascade.clock()
        parts = turn.timing.parts
        turn.heard = self.cascade.hears.understand(turn.wave, self.options.language, turn.cancelled.is_set)
        turn.wave = turn.wave[:0]  # a conversation does not keep its sound
        if turn.cancelled.is_set():
            return
        parts["recognise"] = 1000 * (clock() - began)
        turn.out.put(Reply(events=(Event("heard", turn.ended_at, turn.heard),)))
        if not turn.heard.strip():
            return
        thinking = clock()
        for clause in self._clauses(turn):
            if "think" not in parts:
                parts["think"] = 1000 * (clock() - thinking)
            speaking = clock()
            turn.made.append((clause, 0))
            for piece in self.cascade.speaks.stream(clause):
                wave = torch.as_tensor(piece)
                if turn.cancelled.is_set():
                    return
                if "speak" not in parts:
                    parts["speak"] = 1000 * (clock() - speaking)
                turn.made[-1] = (clause, turn.made[-1][1] + wave.numel())
                turn.out.put(Reply(wave_piece=wave))
        parts["answer"] = 1000 * (clock() - thinking)

    def _clauses(self, turn: Turn) -> Iterator[str]:
        """The answer in speakable pieces, while it is still being thought."""
        known = turn.skill = self.skills.answer(turn.heard, self.cascade.now())
        if known is not None:
            turn.answer = known.text
            if known.text:
                turn.out.put(Reply(text_piece=known.text))
                yield known.text
            return
        options = self.options
        chunker = ClauseChunker(options.first_clause, options.clause, options.longest_clause)
        # old turns go twenty at a time: what a model has read stays the beginning of what it reads next
        first = max(0, len(self.history) - REMEMBERED) // 20 * 20
        for piece in self.cascade.thinks.reply([*self.history[first:], Message("user", turn.heard)]):
            if turn.cancelled.is_set():
                return
            turn.answer += piece
            turn.out.put(Reply(text_piece=piece))
            yield from chunker.push(piece)
        yield from chunker.flush()


def _told_by(made: list[tuple[str, int]], samples: float) -> str:
    """The words whose sound lies within the first ``samples`` played, by share of each clause."""
    told: list[str] = []
    for clause, length in made:
        words = clause.split()
        whole = len(words) if samples >= length else int(len(words) * samples / max(1, length))
        told += words[:whole]
        samples -= length
        if samples <= 0:
            break
    return " ".join(told)
