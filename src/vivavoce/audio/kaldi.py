"""Filterbank features as Kaldi computes them: what WeNet, SenseVoice and most speaker encoders were trained on.

    wave (B, S) -> frames -> without mean -> pre-emphasis -> window -> |FFT|^2 -> triangles in mel -> log -> (B, T, M)

They differ from :mod:`~vivavoce.audio.mel` in what is done inside a frame (mean and pre-emphasis see one frame only),
in the filters (straight in mel, not in Hz), and in lying time first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor

FLOOR = torch.finfo(torch.float32).eps

N = TypeVar("N", int, Tensor)


@dataclass(frozen=True, kw_only=True)
class KaldiFormat:
    """A filterbank recipe; two parts fit when their formats are equal. Frequencies in Hz, lengths in samples.

    ``f_max`` of 0 or less is counted from half the sample rate. ``scale`` takes waves in [-1, 1] to what the features
    were made from: 32768 for samples of 16 bits. ``snip_edges``: only frames that lie wholly inside the wave; else one
    a hop, over a wave reflected at its edges.
    """

    sample_rate: int = 16_000
    n_mels: int = 80
    win_length: int = 400
    hop_length: int = 160
    window: Literal["povey", "hamming"] = "povey"
    f_min: float = 20.0
    f_max: float = 0.0
    preemphasis: float = 0.97
    remove_mean: bool = True
    snip_edges: bool = True
    scale: float = 32_768.0

    @property
    def n_fft(self) -> int:
        """The power of two that holds a window."""
        return 1 << (self.win_length - 1).bit_length()

    def frames(self, samples: N) -> N:
        """How many frames a wave of so many samples (a number, or (B,)) has."""
        if not self.snip_edges:
            return (samples + self.hop_length // 2) // self.hop_length
        return (samples >= self.win_length) * ((samples - self.win_length) // self.hop_length + 1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may want what a conversation made first
def kaldi_window(kind: str, length: int) -> Tensor:
    """(W,): Hamming, or Povey's, a Hann window to the power 0.85; both symmetric."""
    if kind == "hamming":
        return torch.hamming_window(length, periodic=False)
    return torch.hann_window(length, periodic=False, dtype=torch.float64).pow(0.85).float()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may want what a conversation made first
def kaldi_filters(form: KaldiFormat) -> Tensor:
    """Triangles of height one, straight in mel = 1127 ln(1 + f / 700): (M, n_fft / 2 + 1) in float32."""
    half = form.sample_rate / 2
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (form.f_min, form.f_max + (half if form.f_max <= 0 else 0)))
    edges = torch.linspace(low, high, form.n_mels + 2, dtype=torch.float64)[:, None]
    mel = 1127.0 * torch.linspace(0, half, form.n_fft // 2 + 1, dtype=torch.float64).div(700.0).log1p()
    width = (high - low) / (form.n_mels + 1)
    filters = torch.minimum(mel - edges[:-2], edges[2:] - mel).div(width).clamp_min(0.0)
    filters[:, -1] = 0.0  # Kaldi leaves out the bin at half the sample rate
    return filters.float()


def kaldi_fbank(wave: Tensor, form: KaldiFormat, lengths: Tensor | None = None) -> Tensor:
    """(B, S) float32 in [-1, 1], of which ``lengths`` (B,) samples are real -> log energies (B, T, M), without dither.

    A row has ``form.frames(lengths)`` real frames; what lies behind them means nothing.
    """
    if not form.frames(wave.shape[1]):
        return wave.new_zeros(len(wave), 0, form.n_mels)
    frames = _cut(wave * form.scale, form, lengths)
    if form.remove_mean:
        frames = frames - frames.mean(dim=-1, keepdim=True)
    if form.preemphasis:
        frames = frames - form.preemphasis * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    bins = torch.fft.rfft(frames * kaldi_window(form.window, form.win_length).to(wave), n=form.n_fft)
    power = bins.real.square() + bins.imag.square()
    return (power @ kaldi_filters(form).to(wave).T).clamp_min(FLOOR).log()


def _cut(wave: Tensor, form: KaldiFormat, lengths: Tensor | None) -> Tensor:
    """(B, S) -> overlapping frames (B, T, W)."""
    if form.snip_edges:
        return wave.unfold(1, form.win_length, form.hop_length)
    if lengths is None:
        lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
    before = form.win_length // 2 - form.hop_length // 2
    end = (form.frames(wave.shape[1]) - 1) * form.hop_length - before + form.win_length
    index = torch.arange(-before, end, device=wave.device)
    period = 2 * lengths.clamp_min(1)[:, None]
    # the edges are mirrors between samples, again and again where the wave is shorter than what is missing
    index = index % period
    index = torch.minimum(index, period - 1 - index)
    return wave.gather(1, index).unfold(1, form.win_length, form.hop_length)
