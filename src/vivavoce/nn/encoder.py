"""The pre-norm transformer encoder of Whisper and its descendants: full attention, GELU, biases everywhere but on keys.

x (B, T, D) -> [ + attention(norm x) -> + feed-forward(norm x) ] x layers -> norm -> (B, T, D)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.attention import KVCache, append, attend, join_heads, split_heads


class EncoderLayer(nn.Module):
    """One pre-norm block. ``qkv`` stacks the rows of query, key and value (the key's bias rows are zero in Whisper)."""

    def __init__(self, dim: int, n_heads: int, ffn_dim: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), mask bool broadcastable to (B, H, T, T), True = may be read."""
        query, key, value = self._heads(x)
        return self._rest(x, attend(query, key, value, mask))

    def step(self, x: Tensor, cache: KVCache, span: int, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """T further frames (B, T, D), which see one another and all ``span - T`` before them, less what ``mask`` (bool,
        broadcastable to (B, H, T, span)) forbids."""
        query, key, value = self._heads(x)
        cache = append(cache, key, value, span)
        return self._rest(x, attend(query, cache.key[:, :, :span], cache.value[:, :, :span], mask)), cache

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        return split_heads(query, self.n_heads), split_heads(key, self.n_heads), split_heads(value, self.n_heads)

    def _rest(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.out(join_heads(seen))
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x))))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` and the final norm."""

    def __init__(self, dim: int, n_heads: int, n_layers: int, ffn_dim: int):
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(dim, n_heads, ffn_dim) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
