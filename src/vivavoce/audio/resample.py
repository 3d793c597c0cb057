"""Changing the sample rate: soxr at the edges (files, whole waves), our own polyphase filter inside streams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr
import torch
from torch import Tensor


def resample(wave: Tensor, rate_in: int, rate_out: int) -> Tensor:
    """A whole wave (S,) or (C, S) -> the same at ``rate_out`` Hz."""
    if rate_in == rate_out or wave.numel() == 0:
        return wave
    made = soxr.resample(wave.detach().cpu().float().numpy().T, rate_in, rate_out, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(made.T, dtype=np.float32))


@lru_cache(maxsize=16)
def polyphase_filter(up: int, down: int, zeros: int = 16) -> Tensor:
    """Kaiser-windowed sinc for the rate up / down as phases (up, taps): phase p makes the outputs at offset p / up."""
    cutoff = min(1.0, up / down) * 0.945
    half = math.ceil(zeros / cutoff)
    taps = torch.arange(-half, half + 1, dtype=torch.float64)
    offsets = torch.arange(up, dtype=torch.float64)[:, None] / up
    x = taps[None] - offsets
    window = torch.special.i0(8.6 * torch.sqrt((1 - (x / (half + 1)) ** 2).clamp_min(0))) / torch.special.i0(
        torch.tensor(8.6, dtype=torch.float64)
    )
    kernel = cutoff * torch.sinc(cutoff * x) * window
    return (kernel / kernel.sum(dim=1, keepdim=True)).float()


@dataclass(frozen=True)
class ResampleState:
    """history: the last input samples that outputs still need (B, n); phase: position of the next output, in 1 / up of
    an input sample relative to the first of history (B,), equal in all rows."""

    history: Tensor
    phase: Tensor


class Resampler:
    """Streaming rate conversion by a rational factor; any cutting of the input gives the same output.

    ``delay`` seconds of input are held back by the filter; ``flush`` lets them out.
    """

    def __init__(self, rate_in: int, rate_out: int):
        common = math.gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.phases = polyphase_filter(self.up, self.down)
        self.half = (self.phases.shape[1] - 1) // 2
        self.delay = self.half / rate_in

    def init_state(self, batch: int) -> ResampleState:
        """Silence before the first sample."""
        history = torch.zeros(batch, self.half)
        return ResampleState(history, torch.zeros(batch, dtype=torch.long))

    def step(self, wave: Tensor, state: ResampleState) -> tuple[Tensor, ResampleState]:
        """(B, S) -> (B, about S x up / down)."""
        sound = torch.cat([state.history, wave], dim=1)
        start = int(state.phase[0])
        last = (sound.shape[1] - 2 * self.half) * self.up  # first position whose taps are not all there yet
        count = max(0, -(-(last - start) // self.down))
        positions = start + self.down * torch.arange(count)
        whole, phase = positions // self.up, positions % self.up
        windows = sound.unfold(1, self.phases.shape[1], 1)[:, whole] if count else sound.new_zeros(sound.shape[0], 0, 1)
        made = (windows * self.phases[phase]).sum(-1) if count else sound.new_zeros(sound.shape[0], 0)
        following = start + self.down * count
        drop = max(0, min(following // self.up, sound.shape[1] - 2 * self.half))
        phase_left = torch.full_like(state.phase, following - drop * self.up)
        return made, ResampleState(sound[:, drop:], phase_left)

    def flush(self, state: ResampleState) -> Tensor:
        """The outputs that were waiting for more input, with silence behind."""
        return self.step(state.history.new_zeros(state.history.shape[0], self.half), state)[0]
