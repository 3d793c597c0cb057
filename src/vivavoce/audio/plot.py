"""A picture of a recording: its wave above its mel spectrogram, words marked in both. Needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vivavoce.audio.io import NewFile
from vivavoce.audio.mel import MelFormat, mel_spectrum
from vivavoce.errors import AudioError, require

LONGEST = 600.0  # seconds that still show anything on one picture


@dataclass(frozen=True)
class Mark:
    """A word and when it sounds, in seconds."""

    text: str
    start: float
    end: float


def draw(path: Path, wave: Tensor, sample_rate: int, marks: Sequence[Mark] = ()) -> None:
    """Write a PNG of a wave (S,) at 16 kHz; AudioError where it is longer than ten minutes or shorter than 25 ms."""
    seconds = wave.numel() / sample_rate
    if seconds > LONGEST:
        raise AudioError(f"{seconds:.0f} s do not fit on one picture; cut the recording to {LONGEST:.0f} s")
    if seconds < 0.025:
        raise AudioError(f"{seconds * 1000:.0f} ms are too short to draw; give at least 25 ms")
    require("matplotlib", "plot", "drawing")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mel = mel_spectrum(wave[None], MelFormat.whisper(80))[0]  # already logarithmic
    mel = mel.clamp_min(float(mel.max()) - 6).numpy()
    width = min(60.0, max(8.0, seconds * 1.5))
    figure = Figure(figsize=(width, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    step = max(1, wave.numel() // 200_000)
    upper.plot([i / sample_rate for i in range(0, wave.numel(), step)], wave[::step].numpy(), linewidth=0.5)
    upper.set_ylim(-1, 1)
    upper.set_ylabel("wave")
    lower.imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, mel.shape[0]), interpolation="nearest")
    lower.set_ylabel("mel band")
    lower.set_xlabel("seconds")
    for mark in marks:
        for axes in (upper, lower):
            axes.axvline(mark.start, color="black", linewidth=0.4)
        label = "".join(letter for letter in mark.text if letter.isprintable())
        upper.text(mark.start, 0.9, f" {label}", fontsize=8, rotation=90, verticalalignment="top")
    FigureCanvasAgg(figure)
    with NewFile(path) as scratch:
        figure.savefig(scratch, format="png", dpi=120)
