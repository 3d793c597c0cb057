"""Silero VAD v6: the probability of speech for every 32 ms, 310 k parameters (github.com/snakers4/silero-vad).

    64 old + 512 new samples -> mirrored pad -> windowed Fourier convolution -> |.| (B, 129, 4) -> 4 convolutions with
    ReLU -> (B, 128, 1) -> LSTM over chunks -> ReLU -> 1 x 1 convolution -> sigmoid

At 8 kHz the same with 32 + 256 samples and 65 bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SileroConfig:
    """``chunk`` new samples per probability behind ``context`` old ones; ``n_fft`` of the Fourier convolution."""

    sample_rate: int = 16_000
    chunk: int = 512
    context: int = 64
    n_fft: int = 256

    @classmethod
    def narrowband(cls) -> SileroConfig:
        """The 8 kHz half of the published file."""
        return cls(sample_rate=8000, chunk=256, context=32, n_fft=128)

    @classmethod
    def tiny(cls) -> SileroConfig:
        return cls.narrowband()


@dataclass(frozen=True)
class SileroState:
    """hidden, cell: (B, 128); context: the last samples heard (B, context)."""

    hidden: Tensor
    cell: Tensor
    context: Tensor


class Silero(nn.Module):
    """Chunks of a wave to probabilities of speech; streaming is exact."""

    def __init__(self, config: SileroConfig):
        super().__init__()
        self.config = config
        bins = config.n_fft // 2 + 1
        self.fourier = nn.Conv1d(1, 2 * bins, config.n_fft, stride=config.n_fft // 2, bias=False)
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(bins, 128, 3, padding=1),
                nn.Conv1d(128, 64, 3, stride=2, padding=1),
                nn.Conv1d(64, 64, 3, stride=2, padding=1),
                nn.Conv1d(64, 128, 3, padding=1),
            ]
        )
        self.recurrent = nn.LSTM(128, 128, batch_first=True)
        self.head = nn.Linear(128, 1)

    def init_state(self, batch: int) -> SileroState:
        like = self.head.weight
        return SileroState(
            hidden=like.new_zeros(batch, 128), cell=like.new_zeros(batch, 128),
            context=like.new_zeros(batch, self.config.context),
        )  # fmt: skip

    def step(self, wave: Tensor, state: SileroState) -> tuple[Tensor, SileroState]:
        """wave (B, n x chunk) -> probabilities (B, n) and the state."""
        config = self.config
        sound = torch.cat([state.context, wave], dim=1)
        frames = sound.unfold(1, config.context + config.chunk, config.chunk)  # (B, n, context + chunk)
        features = self._features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # (B, n, 128)
        memory = (state.hidden[None].contiguous(), state.cell[None].contiguous())
        x, (hidden, cell) = self.recurrent(features, memory)
        odds = torch.sigmoid(self.head(F.relu(x)))[..., 0]
        return odds, SileroState(hidden[0], cell[0], sound[:, sound.shape[1] - config.context :])

    def forward(self, wave: Tensor) -> Tensor:
        """A whole wave (B, S), padded with silence to whole chunks -> (B, ceil(S / chunk))."""
        wave = F.pad(wave, (0, -wave.shape[1] % self.config.chunk))
        return self.step(wave, self.init_state(wave.shape[0]))[0]

    def _features(self, frames: Tensor) -> Tensor:
        """(N, context + chunk) -> (N, 128)."""
        x = F.pad(frames[:, None], (0, self.config.context), mode="reflect")
        real, imaginary = self.fourier(x).chunk(2, dim=1)
        x = torch.sqrt(real.square() + imaginary.square())
        for conv in self.convs:
            x = F.relu(conv(x))
        return x[..., 0]
