"""The verbs talk, transcribe and speak with one speech model (VITA-Audio) instead of parts in a row.

``nano-talk`` ships with the package; a folder in the same form may stand in its place.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.asr import Segment, Transcript
from vivavoce.catalogue import SHIPPED
from vivavoce.checkpoints import store
from vivavoce.checkpoints.native import open_native
from vivavoce.config import check_seed
from vivavoce.detect.level import LevelConfig, LevelDetector
from vivavoce.detect.segments import Segmenter, SegmentOptions
from vivavoce.dialogue import Reply
from vivavoce.dialogue.vita_audio_files import open_bundle
from vivavoce.dialogue.vita_audio_policies import Exact, Policy, Sampled, Threshold
from vivavoce.dialogue.vita_audio_session import (
    SpeechOut,
    VITAAudioParts,
    VITAAudioSession,
    check_release,
    speak_codes,
)
from vivavoce.dialogue.vita_audio_writing import mode_named
from vivavoce.errors import AudioError, CheckpointError, ConfigError, MissingWeightsError, UnknownNameError, nearest
from vivavoce.inspection import is_native
from vivavoce.nn import native
from vivavoce.nn.packed import Weights, make_ready
from vivavoce.search.sampling import SamplingOptions
from vivavoce.text.normalize import normalize_english
from vivavoce.tts import Speech
from vivavoce.turns import Listener, TalkResult

HEARING_RATE = 16_000
BLOCK = LevelConfig.chunk
RECORDED = LevelConfig(margin=0.0)  # how loud a recording is kept is unknown, so all but silence may be speech
SHORTEST = 0.2  # seconds of sound as loud as speech that may be a word
BEFORE = HEARING_RATE // 5  # samples that are kept of the silence before speech


def is_speech_model(name: str | Path | None) -> bool:
    """Whether a name or folder is such a model."""
    if name is None:
        return False
    if str(name) in SHIPPED:
        return True
    path = Path(name).expanduser()
    return path.is_dir() and is_native(path) and open_native(path).system == "vita_audio"


@functools.cache
def open_speech_model(name: str, weights: Weights = "float32") -> VITAAudioParts:
    """A speech model, loaded once and put into its quickest form; several sessions may share it in turns. ``weights``:
    what the matrices of the language model are rounded to."""
    if name in SHIPPED and not SHIPPED[name].is_dir():
        raise MissingWeightsError(
            f"{name} is not part of this copy of the program; install a release, or train it anew"
        )
    if not is_speech_model(name):
        raise UnknownNameError(f"{name} is no speech model; use {', '.join(SHIPPED)} or a folder that holds one")
    try:
        parts = open_bundle(SHIPPED.get(name, Path(name).expanduser()), name)
    except (CheckpointError, ConfigError) as error:  # what lies below takes every folder for one that was pulled
        what = str(error).split(": run  viva rm")[0].split(": Error(s) in")[0].removesuffix(": pull the model again")
        mend = "install the program anew" if name in SHIPPED else "copy the folder anew, or train the model again"
        raise CheckpointError(f"the model in {name} is damaged ({what}): {mend}") from error
    native.enable(store.cache_dir() / "kernels")
    make_ready(parts.model, weights)
    return parts


# --------------------------------------------------------------------------------------------------------------- talk
def refuse_parts(named: Sequence[str], language: str | None) -> None:
    """ConfigError where somebody names what a speech model cannot follow."""
    if named:
        raise ConfigError(f"a speech model hears, thinks and speaks by itself; leave {', '.join(named)} out")
    if language not in (None, "en"):
        raise ConfigError("a speech model knows English only; leave the language out, or the model")


@dataclass(frozen=True)
class Manner:
    """How an answer is written and released, in the words of the verb; ConfigError for words that say nothing.

    ``verify``: "exact", "sampled", or a share of probability between 0 and 1 (see dialogue/vita_audio_policies.py);
    None: drafts are not verified. A ``temperature`` above 0 draws tokens, repeatably with a ``seed``.
    """

    mode: str = "boost"
    verify: str | float | None = None
    release: str = "verified"
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        mode_named(self.mode)
        check_seed(self.seed)
        if self.temperature != 0 and not 0.05 <= self.temperature <= 5:
            raise ConfigError(f"no temperature is {self.temperature:g}; take 0, or one between 0.05 and 5")
        check_release(self.release, self.policy() is not None)

    def policy(self) -> Policy | None:
        """How drafts are verified."""
        if self.verify is None:
            return None
        word = str(self.verify)
        if word == "sampled":
            if not self.temperature:
                raise ConfigError("--verify sampled draws tokens; give a --temperature too, or take --verify exact")
            return Sampled(SamplingOptions(temperature=self.temperature))
        try:
            found = Exact() if word == "exact" else Threshold(float(word))
        except ValueError as error:
            near = nearest(word, ("exact", "sampled"))
            raise ConfigError(
                f"no way to verify is called {word!r}{near}; use exact, sampled, or a share between 0 and 1 such as 0.3"
            ) from error
        if self.temperature:
            raise ConfigError(f"--verify {word} draws nothing, so --temperature is lost; take --verify sampled")
        return found

    def generator(self) -> torch.Generator:
        """Where draws come from: the seed, or anywhere."""
        made = torch.Generator()
        if self.seed is None:
            made.seed()
        else:
            made.manual_seed(self.seed)
        return made

    def session(self, parts: VITAAudioParts, generator: torch.Generator) -> VITAAudioSession:
        """One question's session."""
        policy = self.policy()
        sampling = SamplingOptions(temperature=self.temperature) if policy is None else None
        return VITAAudioSession(
            parts, mode=self.mode, sampling=sampling, generator=generator, verify=policy,
            release=check_release(self.release, policy is not None),
        )  # fmt: skip


@dataclass
class SpeechTalkResult(TalkResult):
    """As a cascade's result; ``heard`` is empty, since the model answers without writing down the question.

    ``drafts_accepted``: share of the drafts judged by the backbone that stood; ``regretted_ms``: sound that a listener
    in real time heard although its drafts fell.
    """

    mode: str = "boost"
    backbone_passes_before_sound: int | None = None
    verify: str | None = None
    release: str | None = None
    drafts_accepted: float | None = None
    regretted_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        accepted = self.drafts_accepted
        return {**super().to_dict(), "mode": self.mode, "verify": self.verify, "release": self.release,
                "drafts_accepted": None if accepted is None else round(accepted, 3),
                "regretted_ms": round(self.regretted_ms),
                "backbone_passes_before_sound": self.backbone_passes_before_sound}  # fmt: skip


def converse(
    parts: VITAAudioParts, blocks: Iterable[Tensor], *, mode: str = "boost", real_time: bool = True,
    verify: str | float | None = None, release: str = "verified", temperature: float = 0.0,
    seed: int | None = None, on_reply: Callable[[Reply], None] | None = None,
) -> SpeechTalkResult:  # fmt: skip
    """One question in blocks (S,) at 16 kHz, which ends with the last of them, and its answer; for the words see
    :class:`Manner`. Silence before the question is left out.

    With ``real_time`` the sound is fed at the speed it was spoken. Times count from the end of the question.
    """
    manner = Manner(mode, verify, release, temperature, seed)
    session, question = manner.session(parts, manner.generator()), Question()
    for block in in_real_time(blocks) if real_time else blocks:
        question.feed(block, session)
    question.end(session)
    return finish(session, on_reply, manner)


def in_real_time(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The sound in small pieces, each when a microphone would have it."""
    began, fed = time.perf_counter(), 0
    for block in blocks:
        for piece in block.split(BLOCK):
            fed += len(piece)
            time.sleep(max(0.0, began + fed / HEARING_RATE - time.perf_counter()))
            yield piece


class Ear:
    """Blocks (S,) of any length to whole pieces of ``BLOCK`` samples, and which of them are loud enough for speech."""

    def __init__(self, config: LevelConfig):
        self.detector = LevelDetector(config)
        self.state, self.rest = self.detector.init_state(1), torch.zeros(0)

    def take(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """-> the sound that makes whole pieces by now (n * BLOCK,), the odds of each (n,)."""
        wave = torch.cat([self.rest, block])
        whole = len(wave) // BLOCK * BLOCK
        self.rest = wave[whole:]
        if not whole:
            return wave[:0], torch.zeros(0)
        odds, self.state = self.detector.step(wave[None, :whole], self.state)
        return wave[:whole], odds[0]


class Question:
    """A recorded question on its way into a session: what is silent before it is left out, but for the last 0.2 s."""

    def __init__(self):
        self.ear, self.before = Ear(RECORDED), torch.zeros(0)
        self.loud = self.samples = self.skipped = 0
        self.begun = False

    def feed(self, block: Tensor, session: VITAAudioSession) -> None:
        self.samples += len(block)
        wave, odds = self.ear.take(block)
        loud = odds >= 0.5
        self.loud += BLOCK * int(loud.sum())
        if not self.begun:
            wave, quiet = torch.cat([self.before, wave]), len(self.before)
            self.begun = bool(loud.any())
            first = quiet + BLOCK * int(loud.float().argmax()) if self.begun else len(wave)
            skipped = max(0, first - BEFORE)
            self.skipped, wave = self.skipped + skipped, wave[skipped:]
            self.before = wave
        if self.begun and len(wave):
            session.step(wave)

    def end(self, session: VITAAudioSession) -> None:
        """AudioError where too little was loud: the model would answer silence as if it were a question."""
        if self.loud < SHORTEST * HEARING_RATE:
            raise AudioError("no speech was found in the sound; record louder, or closer to the microphone")
        if len(self.ear.rest):
            session.step(self.ear.rest)


def finish(session: VITAAudioSession, on_reply: Callable[[Reply], None] | None, manner: Manner) -> SpeechTalkResult:
    """Take the answer of a session whose question is over."""
    listener, began, first = Listener(session.sample_rate), time.perf_counter(), None
    for reply in session.answer():
        now = time.perf_counter()
        if reply.wave_piece is not None and len(reply.wave_piece):
            first = now - began if first is None else first
        listener.take(reply, now)
        if on_reply is not None:
            on_reply(reply)
    took, result, counts = time.perf_counter() - began, session.result, session.result.acceptance
    wave = torch.cat(listener.waves) if listener.waves else torch.zeros(0)
    length, judged = len(wave) / session.sample_rate, sum(counts.judged) if counts else 0
    return SpeechTalkResult(
        heard="", answer=result.text.strip(), wave=wave, sample_rate=session.sample_rate,
        first_sound_ms=None if first is None else 1000 * first, parts_ms=dict(result.timing.parts),
        real_time_factor=took / length if length else None, underruns=listener.underruns,
        models={"speech model": session.parts.name}, mode=manner.mode,
        backbone_passes_before_sound=result.passes_before_sound,
        verify=None if manner.verify is None else str(manner.verify),
        release=None if manner.verify is None else manner.release,
        drafts_accepted=sum(counts.accepted) / judged if counts and judged else None,
        regretted_ms=1000 * result.regretted / session.sample_rate,
    )  # fmt: skip


def questions(blocks: Iterable[Tensor], endpoint: float = 0.5) -> Iterator[Tensor | None]:
    """From an endless microphone: the blocks of a question as they are spoken, then None when ``endpoint`` seconds of
    silence end it; silence between questions is left out, but for the last 0.2 s before each."""
    ear, recent, speaking = Ear(LevelConfig()), list[Tensor](), False
    segmenter = Segmenter(SegmentOptions(min_silence=1000 * endpoint), BLOCK)
    for block in blocks:
        wave, odds = ear.take(block)
        for piece, odd in zip(wave.split(BLOCK), odds.tolist(), strict=False):
            ended = segmenter.push(odd) is not None
            if segmenter.speaking and not speaking:
                speaking = True
                yield from recent
            if speaking:
                yield piece
            recent = [*recent[-5:], piece]
            if speaking and (ended or not segmenter.speaking):
                speaking, recent = False, []
                yield None


def converse_live(
    parts: VITAAudioParts, blocks: Iterable[Tensor], *, mode: str = "boost", endpoint: float = 0.5,
    verify: str | float | None = None, release: str = "verified", temperature: float = 0.0,
    seed: int | None = None, on_reply: Callable[[Reply], None] | None = None,
) -> Iterator[SpeechTalkResult]:  # fmt: skip
    """One question after the other from an endless microphone, each with its answer; what is said while an answer is
    being made is not heard."""
    manner = Manner(mode, verify, release, temperature, seed)
    session: VITAAudioSession | None = None
    generator = manner.generator()
    for piece in questions(blocks, endpoint):
        if piece is not None:
            session = session or manner.session(parts, generator)
            session.step(piece)
        elif session is not None:
            yield finish(session, on_reply, manner)
            session = None


# ------------------------------------------------------------------------------------------------- transcribe, speak
def transcribe(parts: VITAAudioParts, blocks: Iterable[Tensor]) -> Transcript:
    """Speech of its domain to text: one segment from where speech begins to the end of the sound."""
    session, question = VITAAudioSession(parts, task="transcribe", mode="vanilla"), Question()
    for block in blocks:
        question.feed(block, session)
    if not question.samples:
        raise AudioError("the sound is empty; record something first")
    question.end(session)
    for _ in session.answer():
        pass
    seconds = question.samples / HEARING_RATE
    text = session.result.text
    segments = (Segment(question.skipped / HEARING_RATE, seconds, text),) if text else ()
    return Transcript(text, "en", segments, seconds, (parts.name,))


class SpeechModelVoice:
    """A speech model in the room of voices: text of its domain to speech in its one voice. Numerals are spelled out;
    ``mode``: nothing waits for what is read aloud, so the backbone writes every code."""

    def __init__(self, parts: VITAAudioParts, mode: str = "vanilla"):
        self.parts, self.mode, self.name = parts, mode, parts.name
        self.sample_rate = parts.sample_rate

    def stream(
        self, text: str | Iterable[str], *, voice: str | int | None = None, language: str | None = None,
        speed: float = 1.0, generator: int | torch.Generator | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Waves (S,) as they are made; one voice, English, one speed, nothing drawn at random."""
        if voice is not None or speed != 1.0 or language not in (None, "en"):
            raise ConfigError(
                f"{self.name} has one English voice at one speed; leave --speaker, --speed, --language out"
            )
        letters = normalize_english(text if isinstance(text, str) else " ".join(text))
        words = " ".join("".join(c if c.isalpha() or c == "'" else " " for c in letters.lower()).split())
        if not words:
            return
        out = SpeechOut(self.parts)
        for codes in speak_codes(self.parts, words, self.mode):
            with torch.inference_mode():
                wave = out.step(codes)
            if len(wave):
                yield wave.numpy()
        with torch.inference_mode():
            yield out.flush().numpy()

    def synthesize(
        self, text: str, *, voice: str | int | None = None, language: str | None = None, speed: float = 1.0,
        generator: int | torch.Generator | None = None,
    ) -> Speech:  # fmt: skip
        """The whole of :meth:`stream`; it tells no times of words."""
        pieces = list(self.stream(text, voice=voice, language=language, speed=speed, generator=generator))
        return Speech(np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32), self.sample_rate)
