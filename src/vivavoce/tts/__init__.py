"""Text to speech. A voice turns text into :class:`Speech`; each system is one file of this folder.

synthesize(text, *, voice=None, language=None, generator=None) -> Speech
stream(text or iterator of text, ...) -> iterator of waves (S,)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Span:
    """A word or phoneme and when it sounds, in seconds from the start of the wave."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """Sound: ``wave`` (S,) float32 in [-1, 1], and when each word of ``alignment`` and each phoneme sounds."""

    wave: np.ndarray
    sample_rate: int
    alignment: list[Span] = field(default_factory=list)
    phonemes: list[Span] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.wave) / self.sample_rate

    def save(self, path: str | Path) -> Path:
        """Write a sound file, format by its ending (wav as 16 bit); gives the path back."""
        import soundfile

        soundfile.write(str(path), self.wave, self.sample_rate)
        return Path(path)

    def _repr_html_(self) -> str:
        """Playback in a notebook."""
        import base64
        import io

        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, self.wave, self.sample_rate, format="WAV")
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


class Voice(Protocol):
    """What every voice of this room offers."""

    sample_rate: int

    def synthesize(
        self,
        text: str,
        *,
        voice: str | int | None = None,
        language: str | None = None,
        speed: float = 1.0,
        generator: int | torch.Generator | None = None,
    ) -> Speech: ...

    def stream(
        self,
        text: str | Iterable[str],
        *,
        voice: str | int | None = None,
        language: str | None = None,
        speed: float = 1.0,
        generator: int | torch.Generator | None = None,
    ) -> Iterator[np.ndarray]: ...
