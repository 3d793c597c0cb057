"""Convolutions over (B, C, T) that run offline or piece by piece with the same result, symmetric padding included.

A convolution that looks ``delay`` frames ahead streams exactly when it keeps the frames its window still needs, emits
frame t - delay when frame t arrives, and sees zeros outside the stream, which is what its zero padding is offline. The
layers of a chain add their delays. Every tick has the same shape; the first ``delay`` frames that leave a fresh chain
lie before the stream's start and are dropped by whoever holds it. A layer's state is one tensor (B, C, frames kept).

Every layer here offers

- ``forward(x, edges=None)``: the whole stream at once;
- ``step(x, state, edges=None) -> (y, state)`` and ``init_state(batch)``: one piece after the other;
- ``delay``: frames withheld, counted at the layer's output rate.

Results keep channels last in memory, so ``y.transpose(1, 2)`` is contiguous: the layout in which convolutions run
fastest on CPUs, where a transposed convolution is a plain one followed by a view.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)

ENDLESS = 1 << 40  # frames: the length of a stream whose end has not come yet


@dataclass(frozen=True)
class Edges:
    """Where a piece lies in its stream: index of its first frame (B,) and frames in the whole stream (B,).

    ``None`` in place of edges says that every frame a layer will see lies inside the stream.
    """

    first: Tensor
    length: Tensor

    def delayed(self, frames: int) -> Edges:
        """The edges of the same piece behind a layer that withholds ``frames``."""
        return Edges(self.first - frames, self.length)

    def upsampled(self, rate: int) -> Edges:
        """The edges of the same piece at ``rate`` times as many frames."""
        return Edges(self.first * rate, self.length * rate)

    def clear(self, x: Tensor) -> Tensor:
        """``x`` (B, C, T) with zeros where its frames lie outside the stream."""
        position = self.first[:, None] + torch.arange(x.shape[-1], device=x.device)
        inside = (position >= 0) & (position < self.length[:, None])
        return x * inside[:, None].to(x.dtype)


def whole(lengths: Tensor | None) -> Edges | None:
    """Edges of an offline batch padded behind ``lengths`` (B,)."""
    return None if lengths is None else Edges(torch.zeros_like(lengths), lengths)


def behind(edges: Edges | None, frames: int) -> Edges | None:
    """``edges.delayed(frames)`` where there are edges."""
    return None if edges is None else edges.delayed(frames)


def join(kept: Tensor, x: Tensor) -> Tensor:
    """``kept`` and ``x`` (B, C, T) one after the other, channels last in memory."""
    return torch.cat([kept.transpose(1, 2), x.transpose(1, 2)], dim=1).transpose(1, 2)


def last(x: Tensor, frames: int) -> Tensor:
    """The last ``frames`` frames of ``x`` (B, C, T)."""
    return x[..., x.shape[-1] - frames :]


def module_list(modules: Iterable[M]) -> list[M]:
    """``nn.ModuleList`` whose items keep their type for type checkers."""
    return cast(list[M], nn.ModuleList(modules))


def silence(module: nn.Module, batch: int, channels: int, frames: int) -> Tensor:
    """Zeros (B, C, frames) where the weights of ``module`` live: the state before a stream."""
    return next(module.parameters()).new_zeros(batch, frames, channels).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------------- kernels
Kernel = Callable[[Tensor, Tensor, Tensor | None, int, int, int, int], Tensor]


def _channels_last(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    image = x.transpose(1, 2).contiguous().unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, T)
    kernel = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(image, kernel, bias, (1, stride), (0, padding), (1, dilation), groups).squeeze(2)


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    return F.conv1d(x.contiguous(), weight, bias, stride, padding, dilation, groups)


@cache
def convolution_kernel(device: str, dtype: torch.dtype) -> Kernel:
    """The faster of the two kernels on this machine, by a probe of a few milliseconds; they agree to rounding."""
    if device != "cpu":
        return _plain
    with torch.inference_mode():
        x = torch.randn(1, 64, 2048, dtype=dtype)
        weight = torch.randn(64, 3, 64, dtype=dtype).transpose(1, 2)
        return min((_channels_last, _plain), key=lambda kernel: _seconds(kernel, x, weight))


@cache
def bfloat16_pays(device: str) -> bool:
    """Whether convolutions in bfloat16 are at least 1.3 times as fast here as in float32, by the same probe."""
    if device != "cpu":
        return True
    with torch.inference_mode():
        x, weight = torch.randn(1, 64, 2048), torch.randn(64, 3, 64).transpose(1, 2)
        exact = _seconds(convolution_kernel(device, torch.float32), x, weight)
        kernel = convolution_kernel(device, torch.bfloat16)
        return 1.3 * _seconds(kernel, x.bfloat16(), weight.bfloat16()) < exact


def _seconds(kernel: Kernel, x: Tensor, weight: Tensor) -> float:
    """The best of four runs in a chain of two, so that a kernel pays for the layout it leaves."""
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        kernel(F.leaky_relu(kernel(x, weight, None, 1, 1, 1, 1), 0.1), weight, None, 1, 1, 1, 1)
        best = min(best, time.perf_counter() - start)
    return best


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv1d`` through the kernel that is fastest here."""
    if weight.shape[-1] == 1 and stride == groups == 1:
        return F.linear(x.transpose(1, 2), weight[..., 0], bias).transpose(1, 2)
    if weight.shape[0] == 1 and stride == dilation == groups == 1:
        return _one_output(x, weight, bias, padding)
    if groups > 1:
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return convolution_kernel(x.device.type, x.dtype)(x, weight, bias, stride, padding, dilation, groups)


def _one_output(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A convolution to one channel: all taps as one matrix product, then sums along its diagonals.

    Convolution kernels fill their registers with output channels, so one channel leaves most of them idle.
    """
    taps = weight.shape[-1]
    rows = F.pad(x.transpose(1, 2) @ weight[0], (0, 0, padding, padding))  # (B, T, taps)
    batch, frames, _ = rows.shape
    diagonals = rows.as_strided((batch, frames - taps + 1, taps), (frames * taps, taps, taps + 1))
    y = diagonals.sum(-1)[:, None]
    return y if bias is None else y + bias[:, None]


def _parameter(first: int, second: int, kernel_size: int) -> nn.Parameter:
    """A (first, second, kernel_size) weight whose second dimension is last in memory: no reordering at each call."""
    return nn.Parameter(torch.empty(first, kernel_size, second).transpose(1, 2))


# ----------------------------------------------------------------------------------------------------------- layers
class Conv1d(nn.Module):
    """Convolution (B, C, T) -> (B, O, T / stride) with zero padding; ``weight`` (O, C / groups, K) as in torch.

    ``left`` is the padding before the first frame: None for symmetric ("same") padding, ``causal(...)`` for none ahead.
    With a stride, T is a multiple of it.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        left: int | None = None,
    ):
        super().__init__()
        self.channels, self.stride, self.dilation, self.groups = channels, stride, dilation, groups
        self.span = (kernel_size - 1) * dilation
        self.left = self.span // 2 if left is None else left
        self.right = max(0, self.span + 1 - stride - self.left)
        self.delay = -(-self.right // stride)
        self.kept = self.left + self.delay * stride
        self.weight = _parameter(out_channels, channels // groups, kernel_size)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        x = x if edges is None else edges.clear(x)
        if self.left == self.right:
            return self.valid(x, padding=self.left)
        return self.valid(F.pad(x, (self.left, self.right)))

    def valid(self, x: Tensor, padding: int = 0) -> Tensor:
        """The convolution of an already padded ``x``."""
        return convolve(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def init_state(self, batch: int) -> Tensor:
        """The silence before the stream: (B, C, frames kept)."""
        return silence(self, batch, self.channels, self.kept)

    def step(self, x: Tensor, state: Tensor, edges: Edges | None = None) -> tuple[Tensor, Tensor]:
        if edges is not None:
            x = edges.clear(x)
        if self.kept == 0:
            return self.valid(x), state
        full = join(state, x)
        return self.valid(full), last(full, self.kept)


def causal(kernel_size: int, *, stride: int = 1, dilation: int = 1) -> int:
    """The left padding of a convolution that never looks ahead."""
    return (kernel_size - 1) * dilation + 1 - stride


class ConvTranspose1d(nn.Module):
    """Transposed convolution (B, C, T) -> (B, O, T * rate); ``weight`` (C, O, K) as in torch.

    Every input frame gives ``rate`` rows of ceil(K / rate) overlapping taps, so the whole is a plain convolution with
    rate * O outputs and a view. ``crop`` samples are cut at the start (torch's ``padding``; (K - rate) / 2 when None, 0
    for a causal one) and the length is always T * rate.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel_size: int,
        rate: int,
        *,
        bias: bool = True,
        crop: int | None = None,
    ):
        super().__init__()
        self.channels, self.out_channels, self.rate = channels, out_channels, rate
        self.taps = -(-kernel_size // rate)
        self.delay = (kernel_size - rate) // 2 if crop is None else crop
        self.weight = _parameter(channels, out_channels, kernel_size)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self._ready: tuple[tuple, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        x = x if edges is None else edges.clear(x)
        return self._rows(x, padding=self.taps - 1)[..., self.delay : self.delay + x.shape[-1] * self.rate]

    def init_state(self, batch: int) -> Tensor:
        """The silence before the stream: (B, C, taps - 1)."""
        return silence(self, batch, self.channels, self.taps - 1)

    def step(self, x: Tensor, state: Tensor, edges: Edges | None = None) -> tuple[Tensor, Tensor]:
        full = join(state, x if edges is None else edges.clear(x))
        return self._rows(full, padding=0), last(full, self.taps - 1)

    def _rows(self, x: Tensor, padding: int) -> Tensor:
        weight, bias = self._kernel()
        rows = convolve(x, weight, bias, padding=padding)  # (B, rate * O, T + taps - 1)
        return rows.transpose(1, 2).reshape(x.shape[0], -1, self.out_channels).transpose(1, 2)

    def _kernel(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain convolution, kept between steps while the parameters stay what they are."""
        weight = self.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return self._packed(), None if self.bias is None else self.bias.repeat(self.rate)
        version = () if weight.is_inference() else (weight._version, None if self.bias is None else self.bias._version)
        key = (weight.data_ptr(), weight.dtype, weight.device, *version)
        if self._ready is None or self._ready[0] != key:
            bias = None if self.bias is None else self.bias.detach().repeat(self.rate)
            self._ready = (key, self._packed().detach(), bias)
        return self._ready[1], self._ready[2]

    def _packed(self) -> Tensor:
        """The weight as one of a plain convolution: (rate * O, C, taps), the newest frame at the last tap."""
        kernel = F.pad(self.weight, (0, self.taps * self.rate - self.weight.shape[-1]))
        kernel = kernel.unflatten(-1, (self.taps, self.rate)).flip(2)  # (C, O, taps, rate)
        return kernel.permute(3, 1, 2, 0).flatten(0, 1).contiguous().transpose(1, 2)


@dataclass(frozen=True)
class Delay:
    """Holds (B, C, T) back by ``delay`` frames, to meet a slower branch; the state is (B, C, delay)."""

    delay: int

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.delay == 0:
            return x, state
        full = join(state, x)
        return full[..., : x.shape[-1]], last(full, self.delay)


def stream(
    pieces: Iterable[Tensor],
    step: Callable[[Tensor], Tensor],
    flush: Callable[[], Tensor],
    delay: int,
    samples: Callable[[int], int],
) -> Iterable[Tensor]:
    """Drive a chain over pieces (B, C, T) and drop the ``delay`` samples before the start and those past the end.

    ``samples`` turns frames given into samples due.
    """
    frames, start, sent = 0, delay, 0
    for piece in pieces:
        frames += piece.shape[-1]
        y = step(piece)
        y, start = y[..., start:], max(0, start - y.shape[-1])
        if y.shape[-1]:
            sent += y.shape[-1]
            yield y
    y = flush()[..., start:]
    yield y[..., : samples(frames) - sent]
