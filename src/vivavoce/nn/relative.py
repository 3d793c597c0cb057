"""A pre-norm transformer encoder whose attention knows distances (Dai et al. 2019, "Transformer-XL", arXiv 1901.02860,
section 3.3; the signed form of ESPnet): scores are (q + u) k + (q + v) P(i - j), with P a projected sinusoid.

x (B, L, D) -> projection, norm, times sqrt D -> [ + attention -> + SiLU feed-forward ] x layers -> norm -> (B, L, D)

What may read what is a mask, so the same weights serve blocks that see their own future and streams that see a window
of the past. A layer's streaming state is (key, value), (B, H, W, D / H) each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.attention import join_heads, split_heads
from vivavoce.nn.streaming import module_list

Kept = tuple[Tensor, Tensor]


def block_mask(length: int, block: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """Everything before and the own block, of real positions: bool (1 or B, 1, L, L)."""
    place = torch.arange(length, device=device)
    seen = (place[None] <= place[:, None]) | (place[None] // block == place[:, None] // block)
    if lengths is None:
        return seen[None, None]
    return (seen & (place < lengths[:, None])[:, None])[:, None]


def distances(n_keys: int, n_queries: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoids (n_keys + n_queries, D) of the distances n_keys - 1 down to -n_queries, sine and cosine in turn."""
    distance = torch.arange(n_keys - 1, -n_queries - 1, -1, device=like.device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def align(by_distance: Tensor, n_keys: int) -> Tensor:
    """Scores by distance (B, H, T, K + T), as :func:`distances` orders them, -> scores by key (B, H, T, K).

    The queries are the last T of the K positions. Row i needs the columns from T - 1 - i on: one column less at each
    row is what reading the flattened table in rows that are one shorter does.
    """
    length, width = by_distance.shape[-2:]
    flat = by_distance.flatten(-2)[..., length - 1 : length * width - 1]
    return flat.unflatten(-1, (length, width - 1))[..., :n_keys]


class RelativeLayer(nn.Module):
    """One pre-norm block. ``qkv`` stacks the rows of query, key and value."""

    def __init__(self, dim: int, n_heads: int, ffn_dim: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.distance = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.empty(n_heads, dim // n_heads))
        self.distance_bias = nn.Parameter(torch.empty(n_heads, dim // n_heads))
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.distance_bias)

    def forward(self, x: Tensor, mask: Tensor, sinusoids: Tensor, kept: Kept | None = None) -> tuple[Tensor, Kept]:
        """x (B, T, D), mask bool broadcastable to (B, H, T, K) -> (y, (key, value)) with the kept ones in front."""
        query, key, value = (
            split_heads(part, self.n_heads) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        if kept is not None:
            key, value = torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)
        table = split_heads(self.distance(sinusoids)[None], self.n_heads)  # (1, H, K + T, D / H)
        by_distance = (query + self.distance_bias[:, None]) @ table.transpose(2, 3)
        bias = align(by_distance, key.shape[2]) * query.shape[-1] ** -0.5
        bias = bias.masked_fill(~mask, float("-inf"))
        query = (query + self.content_bias[:, None]).to(key.dtype)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(key.dtype))
        x = x + self.out(join_heads(y))
        return x + self.ffn_out(F.silu(self.ffn_in(self.ffn_norm(x)))), (key, value)


class RelativeEncoder(nn.Module):
    """Projection, a stack of :class:`RelativeLayer`, norm."""

    def __init__(self, dim: int, n_heads: int, n_layers: int, ffn_dim: int):
        super().__init__()
        self.dim, self.n_heads = dim, n_heads
        self.input = nn.Linear(dim, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.layers = module_list(RelativeLayer(dim, n_heads, ffn_dim) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), mask bool broadcastable to (B, H, L, L) -> (B, L, D)."""
        return self._run(x, mask, [None] * len(self.layers))[0]

    def init_state(self, batch: int, window: int) -> tuple[Kept, ...]:
        """Room for ``window`` positions of the past in every layer."""
        empty = self.input.weight.new_zeros(batch, self.n_heads, window, self.dim // self.n_heads)
        return tuple((empty.clone(), empty.clone()) for _ in self.layers)

    def step(self, x: Tensor, state: tuple[Kept, ...], mask: Tensor) -> tuple[Tensor, tuple[Kept, ...]]:
        """Further positions x (B, T, D); mask bool broadcastable to (B, H, T, W + T)."""
        window = state[0][0].shape[2]
        y, kept = self._run(x, mask, list(state))
        return y, tuple((key[:, :, -window:], value[:, :, -window:]) for key, value in kept)

    def _run(self, x: Tensor, mask: Tensor, kept: list[Kept] | list[None]) -> tuple[Tensor, list[Kept]]:
        x = self.input_norm(self.input(x)) * self.dim**0.5
        sinusoids = distances(mask.shape[-1], x.shape[1], self.dim, x)
        made: list[Kept] = []
        for layer, before in zip(self.layers, kept, strict=True):
            x, after = layer(x, mask, sinusoids, before)
            made.append(after)
        return self.norm(x), made
