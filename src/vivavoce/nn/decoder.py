"""The decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, gated feed-forward, no dropout.

    x (B, T, D) -> [ + attention(norm x) -> + down(silu(gate(norm x)) * up(norm x)) ] x layers -> norm -> (B, T, D)

Query, key and value are one matrix, gate and up another. Rotary pairs are halves of a head (as transformers stores
them); layouts with interleaved pairs are converted on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn import native
from vivavoce.nn.attention import KVCache, append, attend, init_cache, join_heads, visible


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a stack; ``qkv_bias`` as in Qwen2."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    context: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        # on a CPU the library's function is seven passes; the norm of a row is one
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * scale).mul_(self.weight)


def rope_table(context: int, head_dim: int, base: float) -> Tensor:
    """(2, context, head_dim): cosines, and sines whose first half is negative, as :func:`rotate` wants them."""
    rates = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), rates)
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cosine, cosine], 1), torch.cat([-sine, sine], 1)]).float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of x (B, H, T, D) by angles (B or 1, 1, T, D): x cos + (halves exchanged) sin, the sine
    of the first half being negative."""
    half, cosine, sine = x.shape[-1] // 2, cosine.to(x.dtype), sine.to(x.dtype)
    return torch.addcmul(x * cosine, x.roll(half, dims=-1), sine)


class DecoderLayer(nn.Module):
    """One block."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        c = self.config = config
        self.attention_norm = RMSNorm(c.dim, c.norm_eps)
        self.qkv = nn.Linear(c.dim, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)
        self.gate_up = nn.Linear(c.dim, 2 * c.ffn_dim, bias=False)
        self.down = nn.Linear(c.ffn_dim, c.dim, bias=False)

    def forward(
        self, x: Tensor, cache: KVCache, angles: tuple[Tensor, Tensor], mask: Tensor | None, span: int
    ) -> tuple[Tensor, KVCache]:
        """x (B, T, D), angles cosine and sine (B or 1, 1, T, head), mask bool (B, 1, T, span)."""
        query, key, value = self._heads(x, angles)
        cache = append(cache, key, value, span)
        return self._rest(x, attend(query, cache.key[:, :, :span], cache.value[:, :, :span], mask)), cache

    def together(
        self, x: Tensor, caches: Sequence[KVCache], angles: tuple[Tensor, Tensor], masks: Sequence[Tensor | None],
        spans: Sequence[int], lengths: Sequence[int],
    ) -> tuple[Tensor, list[KVCache]]:  # fmt: skip
        """x (1, sum of T, D) of several texts with a cache each."""
        parts = zip(*(part.split(list(lengths), dim=2) for part in self._heads(x, angles)), strict=True)
        seen, after = list[Tensor](), list[KVCache]()
        for (query, key, value), cache, mask, span in zip(parts, caches, masks, spans, strict=True):
            cache = append(cache, key, value, span)
            seen.append(attend(query, cache.key[:, :, :span], cache.value[:, :, :span], mask))
            after.append(cache)
        return self._rest(x, torch.cat(seen, dim=2)), after

    def teach(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """A whole text at once, without a cache: mask bool (B, 1, T, T)."""
        query, key, value = self._heads(x, angles)
        return self._rest(x, attend(query, key, value, mask))

    def _heads(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)  # (B, H + 2G, T, head)
        turned = rotate(heads[:, : c.n_heads + c.n_kv_heads], *angles)
        return turned[:, : c.n_heads], turned[:, c.n_heads :], heads[:, c.n_heads + c.n_kv_heads :]

    def _rest(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.out(join_heads(seen))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def run(
    layers: Iterable[nn.Module], x: Tensor, state: tuple[KVCache, ...], table: Tensor, span: int
) -> tuple[Tensor, tuple[KVCache, ...]]:
    """T further positions (B, T, D) through layers with caches."""
    position, length = state[0].position, x.shape[1]
    steps = position[:, None] + torch.arange(length, device=x.device)  # (B, T)
    cosine, sine = table[:, steps][:, :, None]  # each (B, 1, T, head)
    mask = visible(position, length, span)
    caches = []
    for layer, cache in zip(layers, state, strict=True):
        x, cache = layer(x, cache, (cosine, sine), mask, span)
        caches.append(cache)
    return x, tuple(caches)


def run_together(
    layers: Iterable[nn.Module], x: Tensor, states: Sequence[tuple[KVCache, ...]], table: Tensor,
    spans: Sequence[int], lengths: Sequence[int], offsets: Sequence[int] | None = None,
) -> tuple[Tensor, list[tuple[KVCache, ...]]]:  # fmt: skip
    """As :func:`run` with the rows of several texts behind each other, x (1, sum of T, D): matrices are multiplied for
    all at once, attention is each text's own. ``offsets``: positions in the texts of their caches' first slots."""
    cosines, sines, masks = list[Tensor](), list[Tensor](), list[Tensor | None]()
    for state, span, length, offset in zip(states, spans, lengths, offsets or [0] * len(spans), strict=True):
        cosine, sine = table[:, offset + span - length : offset + span]
        cosines, sines = [*cosines, cosine], [*sines, sine]
        masks.append(visible(state[0].position, length, span))
    angles = torch.cat(cosines)[None, None], torch.cat(sines)[None, None]
    after: list[list[KVCache]] = [[] for _ in states]
    for number, layer in enumerate(layers):
        assert isinstance(layer, DecoderLayer)
        caches = [state[number] for state in states]
        x, caches = layer.together(x, caches, angles, masks, spans, lengths)
        for own, cache in zip(after, caches, strict=True):
            own.append(cache)
    return x, [tuple(own) for own in after]


def native_stack(
    config: DecoderConfig, layers: Iterable[nn.Module], norm: Tensor, table: Tensor
) -> native.NativeStack | None:
    """Layers with their last norm and angles for the C kernels; None where one of them is of another form."""
    c, known = config, [layer for layer in layers if isinstance(layer, DecoderLayer)]
    linears = [
        tuple(getattr(part, "kernel", None) for part in (layer.qkv, layer.out, layer.gate_up, layer.down))
        for layer in known
    ]
    norms = [(layer.attention_norm.weight.detach(), layer.ffn_norm.weight.detach()) for layer in known]
    return native.stack(
        (c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim), c.norm_eps, norms, linears, norm.detach(), table
    )  # fmt: skip


def moved_on(state: tuple[KVCache, ...], length: int) -> tuple[KVCache, ...]:
    """Caches whose next ``length`` slots have been written."""
    position = state[0].position + length
    return tuple([KVCache(cache.key, cache.value, position) for cache in state])


class Decoder(nn.Module):
    """A stack of layers over embeddings; the caller owns embedding and head."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.n_layers)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self._table: Tensor | None = None
        self._stack: native.NativeStack | None = None
        self._planned = False  # it has been tried to make that

    def init_state(self, batch: int, capacity: int | None = None) -> tuple[KVCache, ...]:
        """Empty caches of ``capacity`` positions (default: the context)."""
        c = self.config
        capacity = min(capacity or c.context, c.context)
        return tuple(init_cache(batch, c.n_kv_heads, capacity, c.head_dim, self.norm.weight) for _ in self.layers)

    def step(
        self, x: Tensor, state: tuple[KVCache, ...], span: int | None = None
    ) -> tuple[Tensor, tuple[KVCache, ...]]:
        """T further embeddings (B, T, D) -> normed states (B, T, D); the state given is consumed.

        ``span``: longest live length after this step, if the caller knows it (else it is read from the state).
        """
        position, length = state[0].position, x.shape[1]
        if span is None:
            span = int(position.max()) + length
        native_step = self._native_step(x, [state], [span], [length]) if x.shape[0] == 1 else None
        if native_step is not None:
            return native_step, moved_on(state, length)
        x, state = run(self.layers, x, state, self.angles(x), span)
        return self.norm(x), state

    def step_together(
        self, parts: Sequence[Tensor], states: Sequence[tuple[KVCache, ...]], spans: Sequence[int]
    ) -> tuple[list[Tensor], list[tuple[KVCache, ...]]]:
        """Texts of different ages in one pass, so that weights are read once for all: further embeddings (1, T, D) of
        each -> their normed states and caches. ``spans``: as in :meth:`step`."""
        lengths, x = [part.shape[1] for part in parts], torch.cat(list(parts), dim=1)
        hidden = self._native_step(x, states, spans, lengths)
        if hidden is not None:
            after = [moved_on(state, length) for state, length in zip(states, lengths, strict=True)]
        else:
            hidden, after = run_together(self.layers, x, states, self.angles(x), spans, lengths)
            hidden = self.norm(hidden)
        return list(hidden.split(lengths, dim=1)), after

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence at once: step in one piece."""
        return self.step(x, self.init_state(x.shape[0], x.shape[1]), x.shape[1])[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        """What changes weights or their device leaves no plan that points to the old ones."""
        self._stack, self._planned = None, False
        return super()._apply(fn, recurse)

    def _native_step(
        self, x: Tensor, states: Sequence[tuple[KVCache, ...]], spans: Sequence[int], lengths: Sequence[int]
    ) -> Tensor | None:
        """The step in C, where it may be taken there: inference, layers for the C kernels."""
        if x.dtype != torch.float32 or torch.is_grad_enabled() or x.device.type != "cpu":
            return None
        if not self._planned and native.active() and not isinstance(self.layers[0].qkv, nn.Linear):
            self._planned, self._stack = True, native_stack(self.config, self.layers, self.norm.weight, self.angles(x))
        if self._stack is None:
            return None
        texts = [
            native.TextRows([cache.key for cache in state], [cache.value for cache in state], span, length)
            for state, span, length in zip(states, spans, lengths, strict=True)
        ]
        return self._stack.step(x, texts)

    def angles(self, like: Tensor) -> Tensor:
        """The rotary table (2, context, head) on the device of ``like``."""
        # a table, not a buffer: it follows from the configuration and must not depend on how weights were loaded
        if self._table is None or self._table.device != like.device:
            with torch.inference_mode(False):  # training may want what a conversation made first
                table = rope_table(self.config.context, self.config.head_dim, self.config.rope_base)
                self._table = table.to(like.device)
        return self._table
