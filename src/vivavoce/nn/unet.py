"""The U-Net of Matcha-TTS (Mehta et al. 2024, arXiv 2309.03199, section 3.1) as CosyVoice uses it: residual
convolutions that the flow time tints, each followed by transformer blocks; levels halve and double the frame rate.

    x (B, C, T) -> down levels (each kept for its twin) -> middle -> up levels -> convolution -> (B, O, T)

Two forms of the same stack. As published it looks both ways: symmetric convolutions, norms over all frames, attention
over the whole sequence. With a :class:`Reach` it is causal and streams exactly, nothing withheld: convolutions padded
on the left, each frame normed by itself, attention over a sliding window (``nn/sliding.py``), SiLU in place of Mish,
which costs eight times as much on a CPU; it has one level, because a halved rate would make frames wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import ConfigError
from vivavoce.nn.attention import attend, join_heads, split_heads
from vivavoce.nn.sliding import slide
from vivavoce.nn.streaming import Conv1d, ConvTranspose1d, Edges, causal, module_list, whole

GROUPS = 8  # of the published norms

Look = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value (B, H, T, D) -> what was read (B, H, T, D)


@dataclass(frozen=True)
class Reach:
    """What a frame of the causal form reads: the ``window`` frames before its group, and its group of ``group``."""

    window: int
    group: int


class GroupNorm(nn.Module):
    """Norm over groups of channels and all real frames of a row: padding does not change the result."""

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if edges is None:
            return F.group_norm(x, self.groups, self.weight, self.bias)
        parts = x.unflatten(1, (self.groups, -1))  # (B, G, C / G, T)
        real = edges.clear(torch.ones_like(x[:, :1]))[:, None]
        count = real.sum(-1, keepdim=True) * parts.shape[2]
        mean = (parts * real).sum((2, 3), keepdim=True) / count
        variance = ((parts - mean) ** 2 * real).sum((2, 3), keepdim=True) / count
        y = ((parts - mean) * torch.rsqrt(variance + 1e-5)).flatten(1, 2)
        return y * self.weight[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """Norm over the channels of each frame."""

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, C, T) -> (B, C, T)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class LeftConv1d(Conv1d):
    """A convolution of stride 1 that never looks ahead; padded channels last, which spares two copies."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int):
        super().__init__(channels, out_channels, kernel_size, left=causal(kernel_size))

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        return self.valid(F.pad(x.transpose(1, 2), (0, 0, self.left, 0)).transpose(1, 2))


class Convolved(nn.Module):
    """Convolution over three frames, norm, activation."""

    def __init__(self, channels: int, out_channels: int, groups: int, streams: bool):
        super().__init__()
        self.conv = (LeftConv1d if streams else Conv1d)(channels, out_channels, 3)
        self.norm = FrameNorm(out_channels) if streams else GroupNorm(groups, out_channels)
        self.activation = F.silu if streams else F.mish

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        return self.activation(self.norm(self.conv(x, edges), edges))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, state = self.conv.step(x, state)
        return self.activation(self.norm(x)), state


class Residual(nn.Module):
    """Two :class:`Convolved` beside a 1x1 convolution; the flow time is added between the two."""

    def __init__(self, channels: int, out_channels: int, time_dim: int, streams: bool):
        super().__init__()
        self.first = Convolved(channels, out_channels, GROUPS, streams)
        self.second = Convolved(out_channels, out_channels, GROUPS, streams)
        self.time = nn.Linear(time_dim, out_channels)
        self.beside = Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, edges: Edges | None) -> Tensor:
        """x (B, C, T), time (B, time_dim) -> (B, O, T)."""
        y = self.first(x, edges) + self.time(time)[..., None]
        return self.second(y, edges) + self.beside(x, edges)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.first.conv.init_state(batch), self.second.conv.init_state(batch)

    def step(self, x: Tensor, time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, first = self.first.step(x, state[0])
        y, second = self.second.step(y + self.time(time)[..., None], state[1])
        return y + self.beside(x), (first, second)


class TransformerBlock(nn.Module):
    """Pre-norm attention and GELU feed-forward; ``qkv`` stacks the rows of query, key and value, none with a bias."""

    def __init__(self, dim: int, n_heads: int, head_dim: int, ffn_dim: int):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * n_heads * head_dim, bias=False)
        self.out = nn.Linear(n_heads * head_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor, look: Look) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        parts = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.n_heads) for part in parts)
        x = x + self.out(join_heads(look(query, key, value)))
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x))))

    def init_state(self, batch: int, window: int) -> tuple[Tensor, Tensor]:
        empty = self.out.weight.new_zeros(batch, self.n_heads, window, self.head_dim)
        return empty, empty.clone()

    def step(self, x: Tensor, state: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Further frames; ``mask`` bool (B, 1, T, W + T)."""
        window = state[0].shape[2]
        kept: list[Tensor] = []

        def look(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            key, value = torch.cat([state[0], key], dim=2), torch.cat([state[1], value], dim=2)
            kept.extend((key[:, :, -window:], value[:, :, -window:]))
            return attend(query, key, value, mask)

        y = self(x, look)
        return y, (kept[0], kept[1])


class Stage(nn.Module):
    """A :class:`Residual`, transformer blocks, and ``resample``, which leads to the next level: None in the middle."""

    def __init__(self, residual: Residual, blocks: Iterable[TransformerBlock], resample: nn.Module | None):
        super().__init__()
        self.residual = residual
        self.blocks = module_list(blocks)
        self.resample = resample

    def forward(self, x: Tensor, time: Tensor, edges: Edges | None, look: Look) -> Tensor:
        """x (B, C, T) -> (B, O, T), before resampling."""
        x = self.residual(x, time, edges).transpose(1, 2)
        for block in self.blocks:
            x = block(x, look)
        return x.transpose(1, 2)

    def init_state(self, batch: int, window: int) -> tuple:
        after = self.resample.init_state(batch) if isinstance(self.resample, Conv1d) else None
        return self.residual.init_state(batch), tuple(block.init_state(batch, window) for block in self.blocks), after

    def step(self, x: Tensor, time: Tensor, state: tuple, mask: Tensor) -> tuple[Tensor, tuple]:
        """Further frames; the state that is returned still holds the old one of ``resample``."""
        x, residual = self.residual.step(x, time, state[0])
        x, kept = x.transpose(1, 2), []
        for block, before in zip(self.blocks, state[1], strict=True):
            x, after = block.step(x, before, mask)
            kept.append(after)
        return x.transpose(1, 2), (residual, tuple(kept), state[2])

    def step_on(self, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        """``resample`` on further frames."""
        assert isinstance(self.resample, Conv1d)
        x, after = self.resample.step(x, state[2])
        return x, (*state[:2], after)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes: ``n_blocks`` transformer blocks behind each of the residuals, of which the middle has ``n_mid_blocks``."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    n_blocks: int
    n_mid_blocks: int
    n_heads: int
    head_dim: int
    ffn_dim: int


class UNet(nn.Module):
    """The direction of the flow at (x, time); see the file's head. ``reach`` makes it causal."""

    def __init__(self, config: UNetConfig, reach: Reach | None = None):
        super().__init__()
        self.config, self.reach = config, reach
        if reach is not None and len(config.channels) != 1:
            raise ConfigError(f"a causal U-Net has one level, not {len(config.channels)}: give one channel count")
        if reach is not None and (reach.window < 1 or reach.window % reach.group):
            raise ConfigError(f"a causal U-Net's window of {reach.window} must be a multiple of {reach.group} frames")
        widths = config.channels
        time_dim = 4 * widths[0]
        self.time_in = nn.Linear(config.in_channels, time_dim)
        self.time_out = nn.Linear(time_dim, time_dim)
        incoming = (config.in_channels, *widths[:-1])
        bends = (*(Conv1d(width, width, 3, stride=2, left=1) for width in widths[:-1]), self._convolution(widths[-1]))
        self.down = module_list(self._stage(*sizes) for sizes in zip(incoming, widths, bends, strict=True))
        self.middle = module_list(self._stage(widths[-1], widths[-1], None) for _ in range(config.n_mid_blocks))
        upward = (*reversed(widths), widths[0])
        bends = (*(ConvTranspose1d(width, width, 4, 2) for width in upward[1:-1]), self._convolution(widths[0]))
        twice = tuple(2 * width for width in upward[:-1])
        self.up = module_list(self._stage(*sizes) for sizes in zip(twice, upward[1:], bends, strict=True))
        self.final = Convolved(widths[0], widths[0], GROUPS, reach is not None)
        self.head = Conv1d(widths[0], config.out_channels, 1)

    def _convolution(self, width: int) -> Conv1d:
        return (Conv1d if self.reach is None else LeftConv1d)(width, width, 3)

    def _stage(self, channels: int, width: int, resample: nn.Module | None) -> Stage:
        config = self.config
        blocks = (
            TransformerBlock(width, config.n_heads, config.head_dim, config.ffn_dim) for _ in range(config.n_blocks)
        )
        return Stage(Residual(channels, width, 4 * config.channels[0], self.reach is not None), blocks, resample)

    def time_embedding(self, time: Tensor) -> Tensor:
        """Flow times (B,) -> what tints the residuals (B, time_dim)."""
        half = self.config.in_channels // 2
        rate = torch.exp(torch.arange(half, device=time.device) * (-math.log(10000.0) / (half - 1)))
        angle = 1000 * time.float()[:, None] * rate
        hidden = torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.time_in.weight.dtype)
        return F.mish(self.time_out(F.silu(self.time_in(hidden))))

    def forward(self, x: Tensor, time: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T), flow time (B,), real frames (B,) -> (B, O, T). The causal form needs no lengths."""
        tint = self.time_embedding(time)
        edges = [whole(lengths) if self.reach is None else None]
        kept: list[Tensor] = []
        for stage in self.down:
            x = stage(x, tint, edges[-1], self._look(edges[-1]))
            kept.append(x)
            x, below = self._bend(stage, x, edges[-1])
            edges.append(below)
        edges.pop()  # the last level keeps its rate
        for stage in self.middle:
            x = stage(x, tint, edges[-1], self._look(edges[-1]))
        for stage, here in zip(self.up, reversed(edges), strict=True):
            twin = kept.pop()
            x = stage(join_channels(x[..., : twin.shape[-1]], twin), tint, here, self._look(here))
            assert stage.resample is not None
            x = stage.resample(x, here)
        return self.head(self.final(x, edges[0]))

    def _bend(self, stage: Stage, x: Tensor, edges: Edges | None) -> tuple[Tensor, Edges | None]:
        """To the next level: half as many frames, rounded up, where the convolution strides."""
        assert isinstance(stage.resample, Conv1d)
        if stage.resample.stride == 1:
            return stage.resample(x, edges), edges
        x = x if edges is None else edges.clear(x)
        below = None if edges is None else Edges(edges.first, (edges.length + 1) // 2)
        return stage.resample(F.pad(x, (0, x.shape[-1] % 2))), below

    def _look(self, edges: Edges | None) -> Look:
        if self.reach is not None:
            return partial(slide, window=self.reach.window, group=self.reach.group)
        if edges is None:
            return attend

        def look(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            real = torch.arange(key.shape[2], device=key.device) < edges.length[:, None]
            return attend(query, key, value, real[:, None, None])

        return look

    # ------------------------------------------------------------------------------------------------- streaming
    def init_state(self, batch: int) -> tuple[Any, ...]:
        """The silence before a stream of the causal form; leaves are tensors, batch first."""
        assert self.reach is not None
        stages = tuple(stage.init_state(batch, self.reach.window) for stage in (*self.down, *self.middle, *self.up))
        return stages, self.final.conv.init_state(batch)

    def step(self, x: Tensor, time: Tensor, state: tuple[Any, ...], mask: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Further frames x (B, C, T) of a stream, T a multiple of the group; ``mask`` is
        :func:`vivavoce.nn.sliding.stream_mask`.
        """
        tint, kept, made = self.time_embedding(time), [], []
        n_down, n_middle = len(self.down), len(self.middle)
        for n, (stage, before) in enumerate(zip((*self.down, *self.middle, *self.up), state[0], strict=True)):
            if n >= n_down + n_middle:
                x = join_channels(x, kept.pop())
            x, after = stage.step(x, tint, before, mask)
            if n < n_down:
                kept.append(x)
            if stage.resample is not None:
                x, after = stage.step_on(x, after)
            made.append(after)
        x, final = self.final.step(x, state[1])
        return self.head(x), (tuple(made), final)


def join_channels(*parts: Tensor) -> Tensor:
    """(B, C, T) each -> (B, sum of C, T), channels last in memory."""
    return torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)
