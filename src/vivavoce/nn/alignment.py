"""Monotonic alignment search (Kim et al. 2020, "Glow-TTS", arXiv 2005.11129, section 3.1 and algorithm 1): the best
path that gives every text position at least one frame, in order and without a gap, for a whole batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_scores(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x_t; mean_l, exp(log_scale_l)) over channels: x (B, C, T), mean and log_scale (B, C, L) -> (B, L, T)."""
    precision = torch.exp(-2 * log_scale)
    constant = (-0.5 * torch.log(torch.tensor(2 * torch.pi)) - log_scale - 0.5 * mean**2 * precision).sum(1)
    square = -0.5 * precision.transpose(1, 2) @ x**2
    cross = (mean * precision).transpose(1, 2) @ x
    return square + cross + constant[..., None]


@torch.no_grad()
def monotonic_path(scores: Tensor, text_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """``scores`` (B, L, T), real lengths (B,) each -> path (B, L, T) of zeros and ones, one 1 in every real frame.

    Needs text_lengths <= frame_lengths. A loop over T with all rows and text positions in one operation.
    """
    batch, n_text, n_frames = scores.shape
    scores = scores.float()
    lowest = torch.finfo(torch.float32).min
    best = torch.full((batch, n_text), lowest, device=scores.device)
    best[:, 0] = scores[:, 0, 0]
    moved = torch.zeros(n_frames, batch, n_text, dtype=torch.bool, device=scores.device)
    for t in range(1, n_frames):
        before = torch.cat([best.new_full((batch, 1), lowest), best[:, :-1]], dim=1)
        moved[t] = before > best
        best = torch.maximum(best, before).clamp_min(lowest / 2) + scores[:, :, t]
    path = torch.zeros_like(scores)
    rows = torch.arange(batch, device=scores.device)
    position = text_lengths.long() - 1
    for t in range(n_frames - 1, -1, -1):
        real = t < frame_lengths
        path[rows, position, t] = real.to(path.dtype)
        position = position - (moved[t, rows, position] & real & (position > 0)).long()
    return path


def expand(x: Tensor, durations: Tensor, n_frames: int) -> Tensor:
    """Repeat each position of ``x`` (B, C, L) ``durations`` (B, L) times: (B, C, n_frames), zeros behind the end."""
    ends = durations.long().cumsum(1)
    frames = torch.arange(n_frames, device=x.device).expand(x.shape[0], -1).contiguous()
    index = torch.searchsorted(ends, frames, right=True)
    real = frames < ends[:, -1:]
    index = index.clamp_max(x.shape[-1] - 1)
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1)) * real[:, None].to(x.dtype)
