"""Recognisers: wave to text. The room's contract is :class:`Recognizer`; its results are the dataclasses below."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Word:
    """A word as written (with its leading space) and when it was said (seconds); ``probability`` is the model's."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; times in seconds from the start of the recording."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    temperature: float = 0.0
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """What was said: the whole text, its language, and the segments with their times."""

    text: str
    language: str
    segments: tuple[Segment, ...] = ()
    duration: float = 0.0
    models: tuple[str, ...] = field(default=())

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments (empty unless word times were asked for)."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_txt(self) -> str:
        return "".join(segment.text.strip() + "\n" for segment in self.segments) or self.text + "\n"

    def to_srt(self) -> str:
        """SubRip: numbered cues with comma milliseconds."""
        cues = (
            f"{i}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.text.strip()}\n"
            for i, s in enumerate(self.segments, 1)
        )
        return "\n".join(cues)

    def to_vtt(self) -> str:
        """WebVTT."""
        cues = (f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{s.text.strip()}\n" for s in self.segments)
        return "WEBVTT\n\n" + "\n".join(cues)

    def to_tsv(self) -> str:
        """Tab-separated start and end in milliseconds, and text."""
        rows = (f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{' '.join(s.text.split())}\n" for s in self.segments)
        return "start\tend\ttext\n" + "".join(rows)

    def to_dict(self) -> dict:
        """The fields of ``viva transcribe --json``."""
        return {
            "text": self.text,
            "language": self.language,
            "duration": self.duration,
            "segments": [asdict(segment) for segment in self.segments],
            "words": [asdict(word) for word in self.words],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Partial:
    """What has been understood so far of speech that still goes on; ``final`` once it will not change."""

    text: str
    final: bool = False


class Recognizer(Protocol):
    """What every recogniser offers. Waves are float32 in [-1, 1]; any sample rate is converted."""

    def transcribe(
        self, wave: Tensor, sample_rate: int, *, language: str | None = None, words: bool = False
    ) -> Transcript: ...

    def stream(
        self, blocks: Iterable[Tensor], sample_rate: int, *, language: str | None = None
    ) -> Iterator[Partial]: ...


FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def write_transcript(transcript: Transcript, form: str) -> str:
    """Render in one of :data:`FORMATS`."""
    return getattr(transcript, f"to_{form}")()


def _clock(seconds: float, point: str) -> str:
    milliseconds = max(0, round(seconds * 1000))
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
