"""The HiFi-GAN generator: mel (or latent) frames to wave, whole or piece by piece with the same samples.

Kong, Kim, Bae 2020, "HiFi-GAN" (arXiv 2010.05646), section 2 and appendix A: convolution, then per stage leaky ReLU,
transposed convolution and the mean of parallel residual blocks with different kernels and dilations, then leaky ReLU,
convolution and tanh. (B, C, T) -> (B, S) with S = T * product of the rates. Weight norm is a matter of training and of
the tables that read checkpoints: weights here are plain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vivavoce.errors import ConfigError
from vivavoce.nn.streaming import (
    ENDLESS,
    Conv1d,
    ConvTranspose1d,
    Delay,
    Edges,
    behind,
    join,
    last,
    module_list,
    silence,
    whole,
)

# A wave up to WHOLE_SAMPLES is made at once: at 32 channels 25 MB a tensor, beyond which allocations go to the system
# each time. Longer ones are made in pieces of PIECE_SAMPLES, whose tensors stay in the caches.
WHOLE_SAMPLES = 3 << 16
PIECE_SAMPLES = 1 << 15

Activation = Callable[[int], nn.Module]  # channels -> the module before a convolution of a residual block


def leaky(channels: int) -> nn.Module:
    """The paper's activation, the same for any number of ``channels``."""
    return nn.LeakyReLU(0.1)


@dataclass(frozen=True, kw_only=True)
class HiFiGANConfig:
    """Sizes of a generator; ``speaker_dim`` > 0 adds a speaker vector (B, G) to the first layer."""

    in_channels: int = 80
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    block_type: Literal[1, 2] = 1
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    speaker_dim: int = 0
    post_bias: bool = True

    def __post_init__(self):
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ConfigError("HiFiGANConfig needs as many upsample_kernels as upsample_rates")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ConfigError("HiFiGANConfig needs as many block_dilations as block_kernels")

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.upsample_rates)

    @classmethod
    def v1(cls) -> HiFiGANConfig:
        """13.9 M parameters, the best sounding of the paper's three."""
        return cls()

    @classmethod
    def v2(cls) -> HiFiGANConfig:
        """0.93 M parameters: V1 at a quarter of the width."""
        return cls(channels=128)

    @classmethod
    def tiny(cls) -> HiFiGANConfig:
        """16 samples a frame, two stages of the three blocks that published layouts count on: for tests."""
        return cls(
            in_channels=6, channels=16, upsample_rates=(4, 4), upsample_kernels=(8, 8), block_type=2,
            block_kernels=(3, 5, 7), block_dilations=((1, 2), (1, 2), (1, 3)),
        )  # fmt: skip

    @classmethod
    def v3(cls) -> HiFiGANConfig:
        """1.46 M parameters, the fastest on CPUs: three stages, blocks of type 2."""
        return cls(
            channels=256,
            upsample_rates=(8, 8, 4),
            upsample_kernels=(16, 16, 8),
            block_type=2,
            block_kernels=(3, 5, 7),
            block_dilations=((1, 2), (2, 6), (3, 12)),
        )


class ResidualUnit(nn.Module):
    """(B, C, T) -> (B, C, T): x + convolutions of activations of x, two in blocks of type 1, one in type 2.

    An activation keeps zero at zero, as the padding of the convolutions asks.
    """

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], activation: Activation = leaky):
        super().__init__()
        self.convs = module_list(Conv1d(channels, channels, kernel_size, dilation=d) for d in dilations)
        self.activations = module_list(activation(channels) for _ in dilations)
        first = self.convs[0]
        self.channels = channels
        self.delay = sum(conv.delay for conv in self.convs)
        self.kept = max(first.kept, self.delay + first.left)  # enough for the first window and for the residual

    def forward(self, x: Tensor, edges: Edges | None = None, active: Tensor | None = None) -> Tensor:
        """``active`` is the first activation of x where the caller has it already."""
        y = self.activations[0](x) if active is None else active
        for conv, activation in zip(self.convs[:-1], self.activations[1:], strict=True):
            y = activation(conv(y, edges))
        return self.convs[-1](y, edges).add_(x)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        return (silence(self, batch, self.channels, self.kept), *self.rest(batch))

    def rest(self, batch: int) -> tuple[Tensor, ...]:
        """The state without the raw input frames."""
        return tuple(conv.init_state(batch) for conv in self.convs[1:])

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], edges: Edges | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        full = join(state[0], x if edges is None else edges.clear(x))
        y, rest = self.proceed(full, self.activations[0](full), x.shape[-1], state[1:], edges)
        return y, (last(full, self.kept), *rest)

    def proceed(
        self, full: Tensor, active: Tensor, frames: int, state: tuple[Tensor, ...], edges: Edges | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A step on raw input that has at least ``kept`` older frames before its ``frames`` new ones."""
        first, states = self.convs[0], []
        y, edges = first.valid(last(active, frames + first.kept)), behind(edges, first.delay)
        for conv, activation, kept in zip(self.convs[1:], self.activations[1:], state, strict=True):
            y, kept = conv.step(activation(y), kept, edges)
            edges = behind(edges, conv.delay)
            states.append(kept)
        return y.add_(last(full, frames + self.delay)[..., :frames]), tuple(states)


class ResidualBlock(nn.Module):
    """A row of units with one kernel size and growing dilations (appendix A, table 5)."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilations: tuple[int, ...],
        block_type: Literal[1, 2],
        activation: Activation = leaky,
    ):
        super().__init__()
        second = (1,) if block_type == 1 else ()
        self.units = module_list(ResidualUnit(channels, kernel_size, (d, *second), activation) for d in dilations)
        self.delay = sum(unit.delay for unit in self.units)
        self.kept = self.units[0].kept

    def forward(self, x: Tensor, edges: Edges | None = None, active: Tensor | None = None) -> Tensor:
        for unit in self.units:
            x, active = unit(x, edges, active), None
        return x

    def init_state(self, batch: int) -> tuple:
        """Without the raw input frames: :class:`MeanOfBlocks` keeps them for all its blocks."""
        return (self.units[0].rest(batch), *(unit.init_state(batch) for unit in self.units[1:]))

    def proceed(
        self, full: Tensor, active: Tensor, frames: int, state: tuple, edges: Edges | None
    ) -> tuple[Tensor, tuple]:
        """A step on raw input that has at least ``kept`` older frames before its ``frames`` new ones."""
        x, kept = self.units[0].proceed(full, active, frames, state[0], edges)
        states, edges = [kept], behind(edges, self.units[0].delay)
        for unit, kept in zip(self.units[1:], state[1:], strict=True):
            x, kept = unit.step(x, kept, edges)
            edges = behind(edges, unit.delay)
            states.append(kept)
        return x, tuple(states)


class MeanOfBlocks(nn.Module):
    """The mean of parallel blocks; streaming holds the quicker ones back until the slowest has its frames."""

    def __init__(self, blocks: list[ResidualBlock], channels: int):
        super().__init__()
        self.blocks = module_list(blocks)
        self.channels = channels
        self.delay = max(block.delay for block in blocks)
        self.kept = max(block.kept for block in blocks)
        self.waits = [Delay(self.delay - block.delay) for block in blocks]
        self.alike = not any(True for block in blocks for _ in block.units[0].activations[0].parameters())

    def forward(self, x: Tensor, edges: Edges | None = None) -> Tensor:
        x = x if edges is None else edges.clear(x)
        shared = self.blocks[0].units[0].activations[0](x) if self.alike else None
        return self._mean([block(x, edges, shared) for block in self.blocks])

    def init_state(self, batch: int) -> tuple:
        raw = silence(self, batch, self.channels, self.kept)
        held = tuple(silence(self, batch, self.channels, wait.delay) for wait in self.waits)
        return raw, tuple(block.init_state(batch) for block in self.blocks), held

    def step(self, x: Tensor, state: tuple, edges: Edges | None = None) -> tuple[Tensor, tuple]:
        full = join(state[0], x if edges is None else edges.clear(x))
        shared = self.blocks[0].units[0].activations[0](full) if self.alike else None  # once for all blocks
        outputs, states, helds = [], [], []
        for block, wait, kept, held in zip(self.blocks, self.waits, *state[1:], strict=True):
            active = block.units[0].activations[0](full) if shared is None else shared
            y, kept = block.proceed(full, active, x.shape[-1], kept, edges)
            y, held = wait.step(y, held)
            outputs.append(y)
            states.append(kept)
            helds.append(held)
        return self._mean(outputs), (last(full, self.kept), tuple(states), tuple(helds))

    def _mean(self, outputs: list[Tensor]) -> Tensor:
        total = outputs[0] + outputs[1] if len(outputs) > 1 else outputs[0]
        for y in outputs[2:]:
            total = total.add_(y)
        return total.mul_(1 / len(outputs))


@dataclass(frozen=True)
class HiFiGANState:
    """``position`` (B,): index of the next frame; ``length`` (B,): frames in the stream; then what each layer keeps."""

    position: Tensor
    length: Tensor
    pre: Tensor
    stages: tuple
    post: Tensor


class HiFiGAN(nn.Module):
    """Frames (B, C, T) [, speaker (B, G)] -> wave (B, S) in [-1, 1], S = T * hop_length.

    Streaming: ``step`` takes any number of frames and gives hop_length times as many samples, ``delay`` samples late.
    """

    def __init__(self, config: HiFiGANConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.pre = Conv1d(config.in_channels, config.channels, 7)
        self.speaker = nn.Linear(config.speaker_dim, config.channels) if config.speaker_dim else None
        self.upsamples, self.stages = module_list(list[ConvTranspose1d]()), module_list(list[MeanOfBlocks]())
        channels = config.channels
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            self.upsamples.append(ConvTranspose1d(channels, channels // 2, kernel, rate))
            channels //= 2
            shapes = zip(config.block_kernels, config.block_dilations, strict=True)
            self.stages.append(
                MeanOfBlocks([ResidualBlock(channels, k, d, config.block_type) for k, d in shapes], channels)
            )
        self.post = Conv1d(channels, 1, 7, bias=config.post_bias)
        self.delay = self._delay()
        self.lookahead = -(-self.delay // self.hop_length)  # frames

    def forward(self, x: Tensor, lengths: Tensor | None = None, speaker: Tensor | None = None) -> Tensor:
        """The whole wave; ``lengths`` (B,) in frames makes a padded batch equal to its rows alone.

        Without gradients a long wave is made piece by piece: its layers stay in the cache and memory is bounded.
        """
        samples = x.shape[0] * x.shape[-1] * self.hop_length
        if torch.is_grad_enabled() or samples <= WHOLE_SAMPLES:
            return self._at_once(x, whole(lengths), speaker)
        frames = max(1, PIECE_SAMPLES // (self.hop_length * x.shape[0]))
        state, pieces = self.init_state(x.shape[0]), []
        state = state if lengths is None else replace(state, length=lengths)
        for piece in x.split(frames, dim=-1):
            wave, state = self.step(piece, state, speaker)
            pieces.append(wave)
        pieces.append(self.flush(state, speaker))
        return torch.cat(pieces, dim=1)[:, self.delay : self.delay + x.shape[-1] * self.hop_length]

    def _at_once(self, x: Tensor, edges: Edges | None, speaker: Tensor | None) -> Tensor:
        x = self._colour(self.pre(x.to(self.pre.weight.dtype), edges), speaker)
        for rate, upsample, stage in zip(self.config.upsample_rates, self.upsamples, self.stages, strict=True):
            x = upsample(F.leaky_relu_(x, 0.1), edges)
            edges = None if edges is None else edges.upsampled(rate)
            x = stage(x, edges)
        return self._wave(self.post(F.leaky_relu_(x, 0.01), edges))

    def init_state(self, batch: int, late: int = 0) -> HiFiGANState:
        """A fresh stream whose first ``late`` frames are junk of the layers before it."""
        position = torch.full((batch,), -late, dtype=torch.int64, device=self.pre.weight.device)
        return HiFiGANState(
            position=position,
            length=torch.full_like(position, ENDLESS),
            pre=self.pre.init_state(batch),
            stages=tuple(
                (upsample.init_state(batch), stage.init_state(batch))
                for upsample, stage in zip(self.upsamples, self.stages, strict=True)
            ),
            post=self.post.init_state(batch),
        )

    def step(
        self, x: Tensor, state: HiFiGANState, speaker: Tensor | None = None, *, inside: bool | None = None
    ) -> tuple[Tensor, HiFiGANState]:
        """The next (B, C, T) frames -> (B, T * hop_length) samples, ``delay`` samples late.

        ``inside`` says that all rows are past their first ``lookahead`` frames and not past their end, which saves the
        clearing of edges; None looks at the positions, which waits for the device.
        """
        edges: Edges | None = Edges(state.position, state.length)
        if self._inside(state, x.shape[-1]) if inside is None else inside:
            edges = None
        y, pre = self.pre.step(x.to(self.pre.weight.dtype), state.pre, edges)
        y, edges = self._colour(y, speaker), behind(edges, self.pre.delay)
        stages = []
        for upsample, stage, kept in zip(self.upsamples, self.stages, state.stages, strict=True):
            y, up = upsample.step(F.leaky_relu_(y, 0.1), kept[0], edges)
            edges = None if edges is None else edges.upsampled(upsample.rate).delayed(upsample.delay)
            y, blocks = stage.step(y, kept[1], edges)
            edges = behind(edges, stage.delay)
            stages.append((up, blocks))
        y, post = self.post.step(F.leaky_relu_(y, 0.01), state.post, edges)
        position = state.position + x.shape[-1]
        return self._wave(y), replace(state, position=position, pre=pre, stages=tuple(stages), post=post)

    def flush(self, state: HiFiGANState, speaker: Tensor | None = None) -> Tensor:
        """What is still due after the last frame: (B, lookahead * hop_length), of which ``delay`` samples are real."""
        x = self.pre.weight.new_zeros(state.position.shape[0], self.config.in_channels, self.lookahead)
        ended = replace(state, length=torch.minimum(state.length, state.position))
        return self.step(x, ended, speaker, inside=False)[0]

    def _inside(self, state: HiFiGANState, frames: int) -> bool:
        past_start = state.position >= self.lookahead
        return bool((past_start & (state.position + frames <= state.length)).all())

    def _colour(self, x: Tensor, speaker: Tensor | None) -> Tensor:
        if self.speaker is None or speaker is None:
            return x
        return x + self.speaker(speaker.to(x.dtype))[..., None]

    def _wave(self, x: Tensor) -> Tensor:
        return torch.tanh_(x).squeeze(1)

    def _delay(self) -> int:
        delay = self.pre.delay
        for upsample, stage in zip(self.upsamples, self.stages, strict=True):
            delay = delay * upsample.rate + upsample.delay + stage.delay
        return delay + self.post.delay
