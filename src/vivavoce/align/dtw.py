"""Dynamic time warping of a cost matrix, and the median filter that usually smooths it first."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def median_filter(x: Tensor, width: int) -> Tensor:
    """Running median of odd ``width`` along the last axis, mirrored at the ends; shorter inputs are returned as they
    are.
    """
    side = width // 2
    if x.shape[-1] <= side:
        return x
    flat = F.pad(x.reshape(1, -1, x.shape[-1]), (side, side), mode="reflect").reshape(*x.shape[:-1], -1)
    return flat.unfold(-1, width, 1).sort(dim=-1).values[..., side]


def dtw(cost: Tensor) -> Tensor:
    """The cheapest monotone path through ``cost`` (N, M), from (0, 0) to the last cell: int64 (2, path length).

    Steps go down, right or diagonally. The diagonal wins only when strictly cheaper than both, then up when strictly
    cheaper than left (the tie rule of Whisper's word timing). Rows are swept by anti-diagonals, so the loop is N + M
    long.
    """
    values = cost.detach().cpu().numpy().astype(np.float32)
    n, m = values.shape
    total = np.full((n + 1, m + 1), np.inf, dtype=np.float32)
    total[0, 0] = 0.0
    move = np.zeros((n + 1, m + 1), dtype=np.int8)
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        across, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        choice = np.where((across < up) & (across < left), 0, np.where((up < across) & (up < left), 1, 2))
        total[i, j] = values[i - 1, j - 1] + np.choose(choice, [across, up, left])
        move[i, j] = choice
    move[0, :] = 2
    move[:, 0] = 1
    path = []
    i, j = n, m
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        step = move[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return torch.tensor(path[::-1], dtype=torch.long).T.contiguous()
