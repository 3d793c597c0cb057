"""Mel spectra as data: a :class:`MelFormat` says everything a checkpoint expects of its features.

wave (B, S) -> frames, window, |FFT|^power -> mel filters -> floor, log -> post -> (B, M, T)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MelFormat:
    """A mel recipe; two parts fit when their formats are equal. Frequencies in Hz, lengths in samples."""

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    f_min: float = 0.0
    f_max: float | None = None  # None: half the sample rate
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney", "none"] = "slaney"
    power: float = 1.0
    centre: bool = True
    pad: Literal["reflect", "constant", "none"] = "reflect"  # none: the caller brings the edges
    window: Literal["hann", "hamming"] = "hann"
    log: Literal["e", "10", "none"] = "e"
    floor: float = 1e-5
    drop_last: bool = False

    @classmethod
    def whisper(cls, n_mels: int = 80) -> MelFormat:
        """25 ms windows every 10 ms at 16 kHz; :func:`whisper_scale` does the rest."""
        return cls(
            sample_rate=16_000, n_fft=400, win_length=400, hop_length=160, n_mels=n_mels,
            f_max=8000.0, power=2.0, log="10", floor=1e-10, drop_last=True,
        )  # fmt: skip

    @classmethod
    def hifigan(cls, sample_rate: int = 22_050, f_max: float = 8000.0) -> MelFormat:
        """The 80-bin magnitude mel that HiFi-GAN-family vocoders at 22.05 kHz share."""
        return cls(
            sample_rate=sample_rate, n_fft=1024, win_length=1024, hop_length=256, n_mels=80,
            f_max=f_max, power=1.0, centre=False, floor=1e-5,
        )  # fmt: skip


def hz_to_mel(hz: np.ndarray, scale: str) -> np.ndarray:
    """Slaney: linear to 1 kHz, then 27 steps per factor 6.4. HTK: 2595 log10(1 + f / 700)."""
    hz = np.asarray(hz, dtype=np.float64)
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    linear = hz / (200.0 / 3)
    return np.where(hz >= 1000.0, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * (27.0 / np.log(6.4)), linear)


def mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of :func:`hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel >= 15.0, 1000.0 * np.exp((mel - 15.0) * (np.log(6.4) / 27.0)), mel * (200.0 / 3))


@lru_cache(maxsize=16)
def mel_filters(form: MelFormat) -> Tensor:
    """Triangular filters (M, n_fft / 2 + 1) in float32; "slaney" norm gives each unit area per Hz."""
    top = form.f_max if form.f_max is not None else form.sample_rate / 2
    bounds = hz_to_mel(np.array([form.f_min, top]), form.scale)
    edges = mel_to_hz(np.linspace(bounds[0], bounds[1], form.n_mels + 2), form.scale)
    bins = np.linspace(0, form.sample_rate / 2, form.n_fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if form.norm == "slaney":
        filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


@lru_cache(maxsize=16)
def _window(kind: str, length: int) -> Tensor:
    return (torch.hamming_window if kind == "hamming" else torch.hann_window)(length)


def spectrum(wave: Tensor, form: MelFormat) -> Tensor:
    """|STFT|^power: (B, S) -> (B, n_fft / 2 + 1, T). Uncentred formats pad (n_fft - hop) / 2 on both sides, as
    HiFi-GAN does.
    """
    if not form.centre and form.pad != "none":
        side = (form.n_fft - form.hop_length) // 2
        wave = torch.nn.functional.pad(wave[:, None], (side, side), mode=form.pad)[:, 0]
    window = _window(form.window, form.win_length).to(wave)
    bins = torch.stft(
        wave,
        form.n_fft,
        form.hop_length,
        form.win_length,
        window,
        center=form.centre,
        pad_mode="reflect" if form.pad == "none" else form.pad,
        return_complex=True,
    )
    if form.drop_last:
        bins = bins[..., :-1]
    if form.power == 2.0:
        return bins.real.square() + bins.imag.square()
    return bins.abs() ** form.power if form.power != 1.0 else bins.abs()


def mel_spectrum(wave: Tensor, form: MelFormat) -> Tensor:
    """(B, S) float32 in [-1, 1] at ``form.sample_rate`` -> (B, M, T), in the format's log."""
    mel = mel_filters(form).to(wave) @ spectrum(wave, form)
    if form.log == "none":
        return mel
    mel = mel.clamp_min(form.floor)
    return mel.log() if form.log == "e" else mel.log10()


def whisper_scale(log_mel: Tensor) -> Tensor:
    """Whisper's compression: at most 8 (80 dB) below the loudest value of each row's whole array, then (x + 4) / 4."""
    loudest = log_mel.amax(dim=(-2, -1), keepdim=True)
    return (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0
