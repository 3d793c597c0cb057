"""Attention over keys and values that may live in a cache: one kernel and one cache for every decoder and encoder.

Letters: B batch, H heads, G key/value heads (G divides H), T new positions, K kept positions, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys and values of past positions; slots past a row's own position are never read.

    key, value: (B, G, capacity, D), written in place. position: (B,) int64, how many slots of each row are filled.
    """

    key: Tensor
    value: Tensor
    position: Tensor


def init_cache(batch: int, n_heads: int, capacity: int, head_dim: int, like: Tensor) -> KVCache:
    """An empty cache with the dtype and device of ``like``."""
    shape = (batch, n_heads, capacity, head_dim)
    return KVCache(
        key=like.new_zeros(shape),
        value=like.new_zeros(shape),
        position=torch.zeros(batch, dtype=torch.long, device=like.device),
    )


def append(cache: KVCache, key: Tensor, value: Tensor, span: int | None = None) -> KVCache:
    """Write T new positions (B, G, T, D) behind each row's own position.

    ``span``, when the caller knows it, is the longest live length after the write: with one row it makes the write a
    slice.
    """
    length = key.shape[2]
    if key.shape[0] == 1 and span is not None:
        cache.key[:, :, span - length : span] = key
        cache.value[:, :, span - length : span] = value
    else:
        slots = cache.position[:, None] + torch.arange(length, device=key.device)  # (B, T)
        rows = torch.arange(key.shape[0], device=key.device)[:, None]
        cache.key[rows, :, slots] = key.transpose(1, 2)
        cache.value[rows, :, slots] = value.transpose(1, 2)
    return KVCache(cache.key, cache.value, cache.position + length)


def visible(position: Tensor, length: int, span: int) -> Tensor | None:
    """Which of the first ``span`` slots each of ``length`` new positions may read: bool (B, 1, T, K), or None for all.

    position: (B,) filled slots before the new ones.
    """
    if length == 1 and position.shape[0] == 1:
        return None
    steps = torch.arange(length, device=position.device)
    last = position[:, None] + steps  # (B, T) each new position sees itself and what came before
    return (torch.arange(span, device=position.device) <= last[..., None])[:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt D) v: query (B, H, T, D), key and value (B, G, K, D), mask bool broadcastable to (B, H, T, K).

    Query heads h read key head h // (H / G). For one new position the products are matrix times vector and plain
    ``matmul`` beats the fused kernel on a CPU; otherwise PyTorch's scaled_dot_product_attention.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if length > 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=groups != heads)
    query = query.reshape(batch, groups, heads // groups, width) * width**-0.5
    scores = torch.matmul(query, key.transpose(2, 3))  # (B, G, H / G, K)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), value).reshape(batch, heads, 1, width)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H x D) -> (B, H, T, D), a view."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H x D)."""
    return x.transpose(1, 2).flatten(2)


def reorder(cache: KVCache, rows: Tensor, span: int) -> KVCache:
    """Let new row n continue old row ``rows[n]`` (beam search; also widens or narrows the batch); only ``span`` slots
    are copied.
    """
    if rows.shape[0] != cache.key.shape[0]:
        shape = (rows.shape[0], *cache.key.shape[1:])
        key, value = cache.key.new_zeros(shape), cache.value.new_zeros(shape)
    else:
        key, value = cache.key, cache.value
    key[:, :, :span] = cache.key[:, :, :span][rows]
    value[:, :, :span] = cache.value[:, :, :span][rows]
    return KVCache(key, value, cache.position[rows])
