"""Attention over a window that slides in groups: position i reads its own group and the ``window`` positions before it.

A group is what arrives at once (one token, or the frames of one token), so nothing waits. Offline, blocks of ``window``
queries read themselves and the block before, all blocks in parallel: the work grows with T x window. A stream keeps the
last ``window`` keys and values and reads the same mask, so any cutting into whole groups gives the same result.

Letters: B batch, H heads, T positions, W window, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_mask(length: int, window: int, group: int, device: torch.device) -> Tensor:
    """Which slots each of ``length`` positions reads: bool (T, W + T); slot s holds position s - window."""
    start = torch.arange(length, device=device)[:, None] // group * group
    slot = torch.arange(window + length, device=device)
    return (start <= slot) & (slot < start + window + group)


def stream_mask(position: Tensor, length: int, window: int, group: int) -> Tensor:
    """:func:`window_mask` for rows that have ``position`` (B,) positions behind them: bool (B, 1, T, W + T)."""
    real = torch.arange(window + length, device=position.device) >= window - position[:, None]
    return (window_mask(length, window, group, position.device) & real[:, None])[:, None]


def slide(query: Tensor, key: Tensor, value: Tensor, window: int, group: int) -> Tensor:
    """The whole sequence at once: (B, H, T, D) each -> (B, H, T, D); ``window`` and T are multiples of ``group``.

    Plain products: on CPUs the backward pass of the fused kernel takes three times as long at these small sizes.
    """
    length, width = query.shape[2:]
    query = query * width**-0.5
    if length <= window:
        mask = window_mask(length, window, group, query.device)[:, window:]
        return _attend(query, key, value, mask)
    blocks = -(-length // window)
    behind = blocks * window - length
    query = F.pad(query, (0, 0, 0, behind)).unflatten(2, (blocks, window)).transpose(1, 2)  # (B, N, H, W, D)
    key, value = (_with_block_before(F.pad(x, (0, 0, window, behind)), blocks) for x in (key, value))
    mask = window_mask(window, window, group, query.device).repeat(blocks, 1, 1, 1)  # (N, 1, W, 2 W)
    mask[0, ..., :window] = False  # nothing lies before the first block
    return _attend(query, key, value, mask).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _with_block_before(x: Tensor, blocks: int) -> Tensor:
    """(B, H, (N + 1) W, D) -> (B, N, H, 2 W, D): each block behind the one before it."""
    parts = x.unflatten(2, (blocks + 1, -1)).transpose(1, 2)
    return torch.cat([parts[:, :-1], parts[:, 1:]], dim=3)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1)
    closed = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return torch.softmax(scores + closed, dim=-1) @ value
