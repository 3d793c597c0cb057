"""The verbs talk, transcribe and speak with one speech model (VITA-Audio) instead of parts in a row.

``nano-talk`` ships with the package; a folder in the same form may stand in its place.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.asr import Segment, Transcript
from vivavoce.catalogue import SHIPPED
from vivavoce.checkpoints.native import open_native
from vivavoce.config import check_seed
from vivavoce.detect.level import LevelConfig, LevelDetector
from vivavoce.detect.segments import Segmenter, SegmentOptions
from vivavoce.dialogue import Reply
from vivavoce.dialogue.vita_audio_files import open_bundle
from vivavoce.dialogue.vita_audio_session import SpeechOut, VITAAudioParts, VITAAudioSession, speak_codes
from vivavoce.errors import AudioError, ConfigError, MissingWeightsError, UnknownNameError
from vivavoce.inspection import is_native
from vivavoce.search.sampling import SamplingOptions
from vivavoce.text.normalize import normalize_english
from vivavoce.tts import Speech
from vivavoce.turns import Listener, TalkResult

HEARING_RATE = 16_000
BLOCK = LevelConfig.chunk
QUIETEST = 10 ** (LevelConfig.quietest / 20)  # root mean square of a block that may be speech
SHORTEST = 0.2  # seconds of such blocks that may be a word


def is_speech_model(name: str | Path | None) -> bool:
    """Whether a name or folder is such a model."""
    if name is None:
        return False
    if str(name) in SHIPPED:
        return True
    path = Path(name).expanduser()
    return path.is_dir() and is_native(path) and open_native(path).system == "vita_audio"


@functools.cache
def open_speech_model(name: str) -> VITAAudioParts:
    """A speech model, loaded once; several sessions may share it in turns."""
    if name in SHIPPED and not SHIPPED[name].is_dir():
        raise MissingWeightsError(
            f"{name} is not part of this copy of the program; install a release, or train it anew"
        )
    if not is_speech_model(name):
        raise UnknownNameError(f"{name} is no speech model; use {', '.join(SHIPPED)} or a folder that holds one")
    return open_bundle(SHIPPED.get(name, Path(name).expanduser()), name)


# --------------------------------------------------------------------------------------------------------------- talk
@dataclass
class SpeechTalkResult(TalkResult):
    """As a cascade's result; ``heard`` is empty, since the model answers without writing down the question."""

    mode: str = "boost"
    backbone_passes_before_sound: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "mode": self.mode,
                "backbone_passes_before_sound": self.backbone_passes_before_sound}  # fmt: skip


def converse(
    parts: VITAAudioParts, blocks: Iterable[Tensor], *, mode: str = "boost", real_time: bool = True,
    temperature: float = 0.0, seed: int | None = None, on_reply: Callable[[Reply], None] | None = None,
) -> SpeechTalkResult:  # fmt: skip
    """One question in blocks (S,) at 16 kHz, which ends with the last of them, and its answer.

    With ``real_time`` the sound is fed at the speed it was spoken. Times count from the end of the question.
    """
    check_seed(seed)
    sampling = SamplingOptions(temperature=temperature)
    generator = torch.Generator().manual_seed(seed or 0)
    session = VITAAudioSession(parts, mode=mode, sampling=sampling, generator=generator)
    began, fed, sound = time.perf_counter(), 0, Sound()
    for block in blocks:
        for piece in block.split(BLOCK):
            fed += len(piece)
            sound.take(piece)
            if real_time:
                time.sleep(max(0.0, began + fed / HEARING_RATE - time.perf_counter()))
            session.step(piece)
    sound.check()
    return finish(session, on_reply, mode)


class Sound:
    """How much of what was heard is loud enough to be speech."""

    def __init__(self):
        self.loud = 0

    def take(self, block: Tensor) -> None:
        for piece in block.split(BLOCK):
            if len(piece) and float(piece.square().mean().sqrt()) > QUIETEST:
                self.loud += len(piece)

    def check(self) -> None:
        """AudioError where there was too little: the model would answer silence as if it were a question."""
        if self.loud < SHORTEST * HEARING_RATE:
            raise AudioError("no speech was found in the sound; record louder, or closer to the microphone")


def finish(session: VITAAudioSession, on_reply: Callable[[Reply], None] | None, mode: str) -> SpeechTalkResult:
    """Take the answer of a session whose question is over."""
    listener, began, first = Listener(session.sample_rate), time.perf_counter(), None
    for reply in session.answer():
        now = time.perf_counter()
        if reply.wave_piece is not None and len(reply.wave_piece):
            first = now - began if first is None else first
            listener.take(reply, now)
        if on_reply is not None:
            on_reply(reply)
    took, result = time.perf_counter() - began, session.result
    wave = torch.cat(listener.waves) if listener.waves else torch.zeros(0)
    length = len(wave) / session.sample_rate
    return SpeechTalkResult(
        heard="", answer=result.text.strip(), wave=wave, sample_rate=session.sample_rate,
        first_sound_ms=None if first is None else 1000 * first, parts_ms=dict(result.timing.parts),
        real_time_factor=took / length if length else None, underruns=listener.underruns,
        models={"speech model": session.parts.name}, mode=mode,
        backbone_passes_before_sound=result.passes_before_sound,
    )  # fmt: skip


def questions(blocks: Iterable[Tensor], endpoint: float = 0.5) -> Iterator[Tensor | None]:
    """From an endless microphone: the blocks of a question as they are spoken, then None when ``endpoint`` seconds of
    silence end it; silence between questions is left out, but for the last 0.2 s before each."""
    detector = LevelDetector()
    segmenter = Segmenter(SegmentOptions(min_silence=1000 * endpoint), detector.config.chunk)
    state, recent, speaking, rest = detector.init_state(1), list[Tensor](), False, torch.zeros(0)
    for block in blocks:
        *pieces, rest = torch.cat([rest, block, torch.zeros(0)]).split(BLOCK)
        if len(rest) == BLOCK:
            pieces, rest = [*pieces, rest], torch.zeros(0)
        for piece in pieces:
            odds, state = detector.step(piece[None], state)
            ended = segmenter.push(float(odds[0, 0])) is not None
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
    on_reply: Callable[[Reply], None] | None = None,
) -> Iterator[SpeechTalkResult]:  # fmt: skip
    """One question after the other from an endless microphone, each with its answer; what is said while an answer is
    being made is not heard."""
    session: VITAAudioSession | None = None
    for piece in questions(blocks, endpoint):
        if piece is not None:
            session = session or VITAAudioSession(parts, mode=mode)
            session.step(piece)
        elif session is not None:
            yield finish(session, on_reply, mode)
            session = None


# ------------------------------------------------------------------------------------------------- transcribe, speak
def transcribe(parts: VITAAudioParts, blocks: Iterable[Tensor]) -> Transcript:
    """Speech of its domain to text: one segment over all of the sound."""
    session, samples, sound = VITAAudioSession(parts, task="transcribe", mode="vanilla"), 0, Sound()
    for block in blocks:
        session.step(block)
        sound.take(block)
        samples += len(block)
    if not samples:
        raise AudioError("the sound is empty; record something first")
    sound.check()
    for _ in session.answer():
        pass
    seconds = samples / HEARING_RATE
    text = session.result.text
    segments = (Segment(0.0, seconds, text),) if text else ()
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
