"""One question and its answer, as the verb ``talk`` gives it, and the listener whose patience is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.dialogue import Reply


@dataclass
class TalkResult:
    """One question and its spoken answer. ``wave`` (S,) at ``sample_rate``; times in milliseconds.

    ``first_sound_ms`` counts from the last sample of speech, so it contains the wait that tells an end from a pause.
    """

    heard: str
    answer: str
    wave: Tensor
    sample_rate: int
    first_sound_ms: float | None
    parts_ms: dict[str, float]
    real_time_factor: float | None
    underruns: int
    models: dict[str, str]
    path: str | None = None

    def save(self, path: str | Path) -> Path:
        """Write the answer's sound."""
        from vivavoce.audio.io import save

        save(path, self.wave, self.sample_rate)
        self.path = str(path)
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """The fields of ``viva talk --json``."""
        return {
            "heard": self.heard,
            "answer": self.answer,
            "wave": self.path,
            "first_sound_ms": None if self.first_sound_ms is None else round(self.first_sound_ms),
            "parts_ms": {name: round(value) for name, value in self.parts_ms.items()},
            "real_time_factor": None if self.real_time_factor is None else round(self.real_time_factor, 3),
            "underruns": self.underruns,
            "models": self.models,
        }


@dataclass
class Listener:
    """The far side of a conversation: a loudspeaker that plays what comes in real time and notices a gap. Sound that is
    taken back is dropped as far as it has not been played; what was played in its place is not played again."""

    rate: int
    waves: list[Tensor] = field(default_factory=list)
    started: float | None = None
    underruns: int = 0
    owed: int = 0  # samples that were played although they had been taken back by then

    def take(self, reply: Reply, now: float) -> None:
        for event in reply.events:
            if event.kind == "taken_back":
                self._drop(event.samples, now)
        if reply.wave_piece is None:
            return
        wave = reply.wave_piece[self.owed :]
        self.owed -= reply.wave_piece.numel() - wave.numel()
        if self.started is None:
            self.started = now
        elif now - self.started > self.produced + 0.001:
            self.underruns += 1
            self.started = now - self.produced  # it fell silent and goes on from here
        self.waves.append(wave)

    def _drop(self, samples: int, now: float) -> None:
        unplayed = min(samples, round((self.produced - self.played(now)) * self.rate))
        self.owed += samples - unplayed
        while unplayed:
            last = self.waves.pop()
            kept = last[: max(0, last.numel() - unplayed)]
            unplayed -= last.numel() - kept.numel()
            if kept.numel():
                self.waves.append(kept)

    @property
    def produced(self) -> float:
        return sum(wave.numel() for wave in self.waves) / self.rate

    def played(self, now: float) -> float:
        return 0.0 if self.started is None else min(self.produced, now - self.started)
