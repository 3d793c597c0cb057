"""HiFT, the vocoder of CosyVoice and GLM-4-Voice: mel to wave through a harmonic source and an inverse STFT.

Li, Han, Mesgarani 2023, "HiFTNet" (arXiv 2309.09493), after the neural source filter (Wang et al. 2019) and iSTFTNet
(Kaneko et al. 2022); sizes as published with GLM-4-Voice. In order:

    mel (B, M, T) -> Predictor: fundamental f0 (B, T) in Hz -> Source: sum of sines and noise (B, 1, S)
                  -> spectra of the source (B, N + 2, S / hop + 1), N = istft_n_fft
    mel -> convolution, then a stage per rate: leaky ReLU, transposed convolution, plus the source's spectra through
           blocks of their own, mean of residual blocks with Snake -> convolution -> magnitude and phase
        -> inverse STFT -> wave (B, S), S = T * hop_length

Everything streams exactly: the stages through ``nn/streaming.py``, the phase of the sines as cycles in float64, the two
Fourier transforms as matrix products over kept samples and frames. Nothing is drawn here: phase and noise are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vivavoce.audio.mel import MelFormat
from vivavoce.errors import ConfigError
from vivavoce.nn.hifigan import MeanOfBlocks, ResidualBlock
from vivavoce.nn.noise import place_noise
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

NANO_MEL = MelFormat.hifigan(16_000)  # what the small form and the flow decoders before it share
LOUDEST_BIN = 100.0
LOUDEST_SAMPLE = 0.99


@dataclass(frozen=True, kw_only=True)
class HiFTConfig:
    """Sizes; the defaults are the published ones. Frequencies in Hz."""

    n_mels: int = 80
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernels: tuple[int, ...] = (16, 16)
    istft_n_fft: int = 16
    istft_hop: int = 4
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_block_kernels: tuple[int, ...] = (7, 11)
    source_block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    predictor_channels: int = 512
    predictor_layers: int = 5
    sample_rate: int = 22_050
    harmonics: int = 8
    sine_amplitude: float = 0.1
    noise_amplitude: float = 0.003
    voiced_above: float = 10.0

    def __post_init__(self):
        stages = len(self.upsample_rates)
        if not stages or len(self.upsample_kernels) != stages:
            raise ConfigError("HiFTConfig needs as many upsample_kernels as upsample_rates, one or more")
        if len(self.source_block_kernels) != stages or len(self.source_block_dilations) != stages:
            raise ConfigError("HiFTConfig needs one of source_block_kernels and source_block_dilations a stage")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ConfigError("HiFTConfig needs as many block_dilations as block_kernels")
        if self.istft_n_fft % (2 * self.istft_hop) or self.hop_length <= self.istft_n_fft // 2 + 1:
            raise ConfigError("HiFTConfig needs istft_n_fft as a multiple of 2 * istft_hop and short beside a frame")

    @property
    def hop_length(self) -> int:
        """Samples a mel frame."""
        return self.bins_rate * self.istft_hop

    @property
    def bins_rate(self) -> int:
        """Spectra a mel frame."""
        return math.prod(self.upsample_rates)

    @property
    def mel(self) -> MelFormat:
        """The features it takes."""
        return replace(MelFormat.hifigan(self.sample_rate), hop_length=self.hop_length, n_mels=self.n_mels)

    @classmethod
    def published(cls) -> HiFTConfig:
        """20,460,591 parameters, 22.05 kHz: the ``hift.pt`` of GLM-4-Voice and CosyVoice."""
        return cls()

    @classmethod
    def nano(cls) -> HiFTConfig:
        """0.6 M parameters, 16 kHz, 7 frames of look-ahead: for CPUs."""
        return cls(
            channels=128, block_kernels=(3, 7), block_dilations=((1, 3), (1, 3)),
            source_block_kernels=(3, 3), source_block_dilations=((1, 3), (1, 3)),
            predictor_channels=96, predictor_layers=3, sample_rate=16_000,
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> HiFTConfig:
        """16 samples a frame, with the three blocks a stage that the published layout counts on: for tests."""
        return cls(
            n_mels=6, channels=16, upsample_rates=(2, 2), upsample_kernels=(4, 4),
            block_kernels=(3, 5, 7), block_dilations=((1, 2), (1, 2), (1, 3)),
            source_block_kernels=(3, 5), source_block_dilations=((1, 2), (1, 3)),
            predictor_channels=8, predictor_layers=2, sample_rate=800,
        )  # fmt: skip


def from_shapes(shapes: Mapping[str, tuple[int, ...]], sample_rate: int = 22_050) -> HiFTConfig:
    """The sizes of a checkpoint in the published layout, whose configuration is not plain data, from its tensors."""
    try:
        channels, n_mels = shapes["conv_pre.bias"][0], shapes["f0_predictor.condnet.0.weight_v"][1]
        return HiFTConfig(
            n_mels=n_mels, channels=channels, predictor_channels=shapes["f0_predictor.classifier.weight"][1],
            harmonics=shapes["m_source.l_linear.weight"][1] - 1, sample_rate=sample_rate,
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"these weights lack {error}: give the hift.pt of GLM-4-Voice or CosyVoice") from None


def source_noise(first: int, samples: int, harmonics: int, seed: int) -> Tensor:
    """Normal noise (1, harmonics + 1, samples) for the samples from ``first`` on.

    A sample's noise depends on its place and the seed only, however the stream is cut.
    """
    return place_noise(first, samples, harmonics + 1, seed)[None]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with an alpha per channel (Ziyin et al. 2020): (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None].to(x.dtype)
        wave = torch.sin(x * alpha)
        return torch.addcmul(x, wave, wave * (1 / (alpha + 1e-9)))


# ------------------------------------------------------------------------------------------------------ the source
class Predictor(nn.Module):
    """mel (B, M, T) -> f0 (B, T) in Hz, near 0 where unvoiced.

    Outside training it computes in float64: the sines add f0 up without end, and what rounds otherwise in another
    cutting of the stream would carry their phases apart.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        sizes = (config.n_mels, *(config.predictor_channels,) * config.predictor_layers)
        self.convs = module_list(Conv1d(a, b, 3) for a, b in pairwise(sizes))
        self.head = nn.Linear(config.predictor_channels, 1)
        self.delay = sum(conv.delay for conv in self.convs)

    def forward(self, mel: Tensor, edges: Edges | None = None) -> Tensor:
        x = mel if self.training else mel.double()
        for conv in self.convs:
            x = x if edges is None else edges.clear(x)
            x = self._layer(conv, F.pad(x, (conv.left, conv.right)))
        return self._hertz(x)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        states = (conv.init_state(batch) for conv in self.convs)
        return tuple(state if self.training else state.double() for state in states)

    def step(
        self, mel: Tensor, state: tuple[Tensor, ...], edges: Edges | None
    ) -> tuple[Tensor, tuple[Tensor, ...], Edges | None]:
        """Also gives the edges of the f0 that comes out."""
        x, states = mel if self.training else mel.double(), []
        for conv, kept in zip(self.convs, state, strict=True):
            full = join(kept, x if edges is None else edges.clear(x))
            x, edges = self._layer(conv, full), behind(edges, conv.delay)
            states.append(last(full, conv.kept))
        return self._hertz(x), tuple(states), edges

    def _layer(self, conv: Conv1d, x: Tensor) -> Tensor:
        if self.training or conv.bias is None:
            return F.elu(conv.valid(x))
        return F.elu(F.conv1d(x, conv.weight.double(), conv.bias.double()))

    def _hertz(self, hidden: Tensor) -> Tensor:
        hidden = hidden.transpose(1, 2)
        if self.training:
            return self.head(hidden).squeeze(-1).abs()
        return F.linear(hidden, self.head.weight.double(), self.head.bias.double()).squeeze(-1).abs()


class Source(nn.Module):
    """Sines at the multiples of f0 where voiced, noise everywhere, mixed to one channel in [-1, 1]."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.merge = nn.Linear(config.harmonics + 1, 1)
        nn.init.ones_(self.merge.weight)  # all harmonics from the start: training finds the pitch sooner
        nn.init.zeros_(self.merge.bias)

    def mixed(self, noise: Tensor) -> Tensor:
        """Noise (B, H + 1, S) as the one channel (B, S) in which it enters."""
        return torch.tensordot(noise.transpose(1, 2), self._weight(), dims=1)

    def forward(self, f0: Tensor, cycles: Tensor, phase: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """f0 (B, T) in Hz, cycles of the fundamental so far (B,) in float64, phase (B, H + 1) in radians, noise (B, S)
        from :meth:`mixed` -> source (B, S) and the cycles after it, modulo 1. No gradient reaches f0.
        """
        config, weight = self.config, self._weight()
        hop, f0 = config.hop_length, f0.detach().double()
        turns = f0 * (hop / config.sample_rate)
        ends = cycles[:, None] + turns.cumsum(1)
        within = torch.arange(1, hop + 1, device=f0.device) / config.sample_rate
        fundamental = ((ends - turns)[..., None] + f0[..., None] * within).flatten(1) % 1.0  # (B, S)
        orders = torch.arange(1, config.harmonics + 2, device=f0.device, dtype=weight.dtype)
        angles = (2 * math.pi) * fundamental.to(weight.dtype)[..., None] * orders + phase.to(weight.dtype)[:, None]
        voiced = (f0 > config.voiced_above).repeat_interleave(hop, dim=1)
        y = config.sine_amplitude * voiced * torch.tensordot(angles.sin_(), weight, dims=1)
        if noise is not None:
            y = y + torch.where(voiced, config.noise_amplitude, config.sine_amplitude / 3).to(y.dtype) * noise
        bias = self.merge.bias.to(weight.dtype)
        return torch.tanh(y + bias), ends[:, -1] % 1.0 if f0.shape[1] else cycles

    def _weight(self) -> Tensor:
        return self.merge.weight[0].to(torch.promote_types(self.merge.weight.dtype, torch.float32))


# ----------------------------------------------------------------------------------------------- Fourier transforms
@lru_cache(maxsize=16)
@torch.inference_mode(False)  # training may want what a stream made first
def _bases(n_fft: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Windowed analysis (N, N + 2), windowed synthesis (N + 2, N) and the squared window (N,), Hann.

    A spectrum is N / 2 + 1 real parts, then as many imaginary ones.
    """
    times, bins = torch.arange(n_fft, dtype=torch.float64), torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    angles = 2 * math.pi * times[:, None] * bins / n_fft
    analysis = window[:, None] * torch.cat([angles.cos(), -angles.sin()], dim=1)
    twice = torch.full_like(bins, 2.0)
    twice[[0, -1]] = 1.0
    synthesis = torch.cat([angles.cos() * twice, -angles.sin() * twice], dim=1).T / n_fft * window
    first, second, third = (x.to(device, dtype).contiguous() for x in (analysis, synthesis, window.square()))
    return first, second, third


@dataclass(frozen=True)
class Analysis:
    """Samples (B, S) -> spectra (B, N + 2, S / hop + 1), frame j around sample j * hop, mirrored beyond both ends."""

    n_fft: int
    hop: int

    @property
    def delay(self) -> int:
        """Frames withheld."""
        return self.n_fft // 2 // self.hop

    @property
    def kept(self) -> int:
        """Samples kept: a window, and one hop more because the end is mirrored about the last sample."""
        return self.n_fft + self.hop

    def whole(self, x: Tensor, edges: Edges | None) -> Tensor:
        """All spectra at once; ``edges`` count samples."""
        half = self.n_fft // 2
        if edges is None:
            return self._transform(F.pad(x[:, None], (half, half), mode="reflect")[:, 0])
        return self._transform(_mirrored(F.pad(x, (half, half)), edges.delayed(half)))

    def step(self, x: Tensor, state: Tensor, edges: Edges | None) -> tuple[Tensor, Tensor]:
        full = torch.cat([state, x], dim=1)
        seen = full if edges is None else _mirrored(full, edges.delayed(self.kept))
        return self._transform(seen[:, self.hop : full.shape[1] - self.hop]), full[:, x.shape[1] :]

    def _transform(self, x: Tensor) -> Tensor:
        analysis, _, _ = _bases(self.n_fft, x.dtype, x.device)
        return (x.unfold(-1, self.n_fft, self.hop) @ analysis).transpose(1, 2)


def _mirrored(x: Tensor, edges: Edges) -> Tensor:
    """``x`` (B, S) with the samples outside the stream read from inside, mirrored about the first and the last."""
    first, final = edges.first[:, None], edges.length[:, None] - 1
    place = (first + torch.arange(x.shape[1], device=x.device)).abs()
    place = torch.where(place > final, 2 * final - place, place)
    return x.gather(1, (place - first).clamp(0, x.shape[1] - 1))


@dataclass(frozen=True)
class Synthesis:
    """Spectra (B, N + 2, F + 1) -> samples (B, F * hop): windowed overlap-add over the sum of squared windows."""

    n_fft: int
    hop: int

    @property
    def delay(self) -> int:
        """Frames withheld."""
        return self.n_fft // 2 // self.hop

    @property
    def kept(self) -> int:
        """Frames kept: those that overlap the next one."""
        return self.n_fft // self.hop - 1

    def whole(self, bins: Tensor, edges: Edges | None) -> Tensor:
        """All samples at once."""
        rows = self._rows(bins)
        inside = rows.new_ones(1, rows.shape[1]) if edges is None else _inside(rows, edges)
        side = self.delay - 1
        return self._add(F.pad(rows, (0, 0, side, side)), F.pad(inside, (side, side)))

    def step(self, bins: Tensor, state: Tensor, edges: Edges | None) -> tuple[Tensor, Tensor]:
        full = torch.cat([state, self._rows(bins)], dim=1)
        inside = full.new_ones(1, full.shape[1]) if edges is None else _inside(full, edges.delayed(self.kept))
        return self._add(full, inside), full[:, full.shape[1] - self.kept :]

    def _rows(self, bins: Tensor) -> Tensor:
        _, synthesis, _ = _bases(self.n_fft, bins.dtype, bins.device)
        return bins.transpose(1, 2) @ synthesis

    def _add(self, rows: Tensor, inside: Tensor) -> Tensor:
        """Frames (B, F + K - 1, N), those outside the stream ignored -> (B, F * hop), K frames over each sample."""
        _, _, squares = _bases(self.n_fft, rows.dtype, rows.device)
        weights = inside[..., None] * squares
        return self._overlap(rows * inside[..., None]) / self._overlap(weights).clamp_min(1e-8)

    def _overlap(self, rows: Tensor) -> Tensor:
        parts = rows.unflatten(2, (-1, self.hop))
        count, overlap = rows.shape[1] - self.kept, self.kept + 1
        total = parts[:, self.kept :, 0]
        for part in range(1, overlap):
            total = total + parts[:, self.kept - part : self.kept - part + count, part]
        return total.flatten(1)


def _inside(rows: Tensor, edges: Edges) -> Tensor:
    place = edges.first[:, None] + torch.arange(rows.shape[1], device=rows.device)
    return ((place >= 0) & (place < edges.length[:, None])).to(rows.dtype)


# ------------------------------------------------------------------------------------------------------- the filter
class Stage(nn.Module):
    """(B, C, T), spectra of the source -> (B, C / 2, T * rate).

    The last stage meets one spectrum more than it has frames: its second frame is set before the first.
    ``late`` and ``source_late`` are the delays of the two inputs, in frames of x and in spectra.
    """

    def __init__(self, config: HiFTConfig, index: int, late: int, source_late: int):
        super().__init__()
        channels = config.channels >> (index + 1)
        rate, stride = config.upsample_rates[index], math.prod(config.upsample_rates[index + 1 :])
        self.rate, self.stride, self.channels = rate, stride, channels
        self.extra = int(index == len(config.upsample_rates) - 1)
        self.upsample = ConvTranspose1d(2 * channels, channels, config.upsample_kernels[index], rate)
        kernel, left = (1, 0) if stride == 1 else (2 * stride, stride // 2)
        self.down = Conv1d(config.istft_n_fft + 2, channels, kernel, stride=stride, left=left)
        own = (config.source_block_kernels[index], config.source_block_dilations[index])
        self.source = MeanOfBlocks([ResidualBlock(channels, *own, 1, Snake)], channels)
        shapes = zip(config.block_kernels, config.block_dilations, strict=True)
        self.blocks = MeanOfBlocks([ResidualBlock(channels, k, d, 1, Snake) for k, d in shapes], channels)
        main = late * rate + self.upsample.delay + self.extra
        coloured = source_late // stride + self.down.delay + self.source.delay
        self.met = max(main, coloured)
        self.waits = Delay(self.met - main), Delay(self.met - coloured)
        self.delay = self.met + self.blocks.delay  # at this stage's rate, everything before it included

    def forward(self, x: Tensor, bins: Tensor, edges: Edges | None, bins_edges: Edges | None) -> Tensor:
        x = self.upsample(F.leaky_relu(x, 0.1), edges)
        if self.extra:
            x = torch.cat([x[..., 1:2].transpose(1, 2), x.transpose(1, 2)], dim=1).transpose(1, 2)
        edges = self.edges(edges)
        return self.blocks(x + self.source(self.down(bins, bins_edges), edges), edges)

    def edges(self, edges: Edges | None) -> Edges | None:
        """Those of a piece behind this stage, delays left out."""
        if edges is None:
            return None
        raised = edges.upsampled(self.rate)
        return Edges(raised.first, raised.length + self.extra)

    def init_state(self, batch: int) -> tuple:
        return (
            self.upsample.init_state(batch),
            silence(self, batch, self.channels, 2 * self.extra),
            self.down.init_state(batch),
            self.source.init_state(batch),
            tuple(silence(self, batch, self.channels, wait.delay) for wait in self.waits),
            self.blocks.init_state(batch),
        )

    def step(
        self, x: Tensor, bins: Tensor, state: tuple, edges: Edges | None, bins_edges: Edges | None, begin: Edges | None
    ) -> tuple[Tensor, tuple]:
        """``edges`` of x, ``bins_edges`` of the spectra, ``begin`` the piece's at this stage's rate, not late."""
        up, before, down, source, waits, blocks = state
        x, up = self.upsample.step(F.leaky_relu(x, 0.1), up, edges)
        if self.extra:
            late = None if edges is None else edges.upsampled(self.rate).delayed(self.upsample.delay + 1)
            x, before = self._mirror(x, before, late)
        colour, down = self.down.step(bins, down, bins_edges)
        coloured = self.met - self.waits[1].delay - self.source.delay
        colour, source = self.source.step(colour, source, behind(begin, coloured))
        x, first = self.waits[0].step(x, waits[0])
        colour, second = self.waits[1].step(colour, waits[1])
        x, blocks = self.blocks.step(x + colour, blocks, behind(begin, self.met))
        return x, (up, before, down, source, (first, second), blocks)

    def _mirror(self, x: Tensor, before: Tensor, edges: Edges | None) -> tuple[Tensor, Tensor]:
        """The frames one later, two ticks late, but the second frame in the first one's place."""
        full = join(before, x)
        y = full[..., : x.shape[-1]]
        if edges is not None:
            place = edges.first[:, None] + torch.arange(x.shape[-1], device=x.device)
            y = torch.where((place == 0)[:, None], x, y)
        return y, last(full, 2)


@dataclass(frozen=True)
class HiFTState:
    """``position``, ``length`` (B,) in mel frames; ``cycles`` (B,) of the fundamental so far, float64; ``phase``
    (B, H + 1) in radians; then what each layer keeps.
    """

    position: Tensor
    length: Tensor
    cycles: Tensor
    phase: Tensor
    predictor: tuple
    noise: Tensor
    source: Tensor
    bins: Tensor
    pre: Tensor
    stages: tuple
    post: Tensor
    rows: Tensor


class HiFT(nn.Module):
    """mel (B, M, T) -> wave (B, S) in [-0.99, 0.99], S = T * hop_length.

    Streaming: ``step`` takes any number of frames and gives hop_length times as many samples, ``delay`` samples late.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.predictor = Predictor(config)
        self.sines = Source(config)
        self.analysis = Analysis(config.istft_n_fft, config.istft_hop)
        self.synthesis = Synthesis(config.istft_n_fft, config.istft_hop)
        bins, step = config.bins_rate, config.bins_rate // config.upsample_rates[0]
        early = self.predictor.delay * bins + self.analysis.delay
        self.bins_late = -(-early // step) * step  # the strides of all stages start at whole ones
        self.hold = Delay(self.bins_late - early)
        self.pre = Conv1d(config.n_mels, config.channels, 7)
        self.stages, late = module_list(list[Stage]()), self.pre.delay
        for index in range(len(config.upsample_rates)):
            self.stages.append(Stage(config, index, late, self.bins_late))
            late = self.stages[-1].delay
        channels = config.channels >> len(config.upsample_rates)
        self.post = Conv1d(channels, config.istft_n_fft + 2, 7)
        self.delay = (late + self.post.delay + self.synthesis.delay) * config.istft_hop
        self.lookahead = -(-self.delay // self.hop_length)  # frames

    def forward(
        self,
        mel: Tensor,
        lengths: Tensor | None = None,
        *,
        source: Tensor | None = None,
        f0: Tensor | None = None,
        phase: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The whole wave; ``lengths`` (B,) in frames makes a padded batch equal to its rows alone.

        ``source`` (B, 1, S) replaces the harmonic source; else f0 (B, T) in Hz replaces the predicted one; ``phase``
        (B, H + 1) in radians and ``noise`` (B, H + 1, S) are those of :meth:`source`.
        """
        edges = whole(lengths)
        if source is None:
            source = self.source(self.f0(mel, lengths) if f0 is None else f0, phase, noise)
        with torch.autocast(mel.device.type, enabled=False):
            bins = self.analysis.whole(source[:, 0], None if edges is None else edges.upsampled(self.hop_length))
        bins = bins.to(self.pre.weight.dtype)
        bins_edges = None if edges is None else self._bins_edges(edges)
        x = self.pre(mel.to(self.pre.weight.dtype), edges)
        for stage in self.stages:
            x = stage(x, bins, edges, bins_edges)
            edges = stage.edges(edges)
        x = self.post(F.leaky_relu(x, 0.01), edges)
        with torch.autocast(mel.device.type, enabled=False):
            return self.synthesis.whole(self._polar(x), edges).clamp(-LOUDEST_SAMPLE, LOUDEST_SAMPLE)

    def f0(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """mel (B, M, T) -> fundamental (B, T) in Hz, float64 outside training; below ``voiced_above``: unvoiced."""
        return self.predictor(mel.to(self.pre.weight.dtype), whole(lengths))

    def source(self, f0: Tensor, phase: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """f0 (B, T) in Hz, phase (B, H + 1) in radians where each sine starts, noise (B, H + 1, S) of unit variance ->
        source (B, 1, S); zeros where they are None.
        """
        with torch.autocast(f0.device.type, enabled=False):
            cycles = torch.zeros(f0.shape[0], dtype=torch.float64, device=f0.device)
            phase = self._phase(f0.shape[0]) if phase is None else phase
            return self.sines(f0, cycles, phase, None if noise is None else self.sines.mixed(noise))[0][:, None]

    def init_state(self, batch: int, phase: Tensor | None = None) -> HiFTState:
        """A fresh stream; ``phase`` (B, H + 1) in radians where each sine starts."""
        position = torch.zeros(batch, dtype=torch.int64, device=self.pre.weight.device)
        exact = self._phase(batch)
        return HiFTState(
            position=position,
            length=torch.full_like(position, ENDLESS),
            cycles=torch.zeros_like(position, dtype=torch.float64),
            phase=exact if phase is None else phase.to(exact),
            predictor=self.predictor.init_state(batch),
            noise=exact.new_zeros(batch, self.predictor.delay * self.hop_length),
            source=exact.new_zeros(batch, self.analysis.kept),
            bins=silence(self, batch, self.config.istft_n_fft + 2, self.hold.delay),
            pre=self.pre.init_state(batch),
            stages=tuple(stage.init_state(batch) for stage in self.stages),
            post=self.post.init_state(batch),
            rows=exact.new_zeros(batch, self.synthesis.kept, self.config.istft_n_fft),
        )

    def step(
        self, mel: Tensor, state: HiFTState, *, noise: Tensor | None = None, inside: bool | None = None
    ) -> tuple[Tensor, HiFTState]:
        """The next mel (B, M, T) and the noise (B, H + 1, T * hop_length) of their samples (None: zeros) ->
        (B, T * hop_length) samples, ``delay`` samples late.

        ``inside`` says that all rows are past their first ``lookahead`` frames and not past their end, which saves the
        clearing of edges; None looks at the positions, which waits for the device.
        """
        edges: Edges | None = Edges(state.position, state.length)
        if self._is_inside(state, mel.shape[-1]) if inside is None else inside:
            edges = None
        mel = mel.to(self.pre.weight.dtype)
        bins, state = self._source_step(mel, state, noise, edges)
        bins_edges = None if edges is None else self._bins_edges(edges).delayed(self.bins_late)
        x, pre = self.pre.step(mel, state.pre, edges)
        begin, edges, stages = edges, behind(edges, self.pre.delay), []
        for stage, kept in zip(self.stages, state.stages, strict=True):
            begin = stage.edges(begin)
            x, kept = stage.step(x, bins, kept, edges, bins_edges, begin)
            edges = behind(begin, stage.delay)
            stages.append(kept)
        x, post = self.post.step(F.leaky_relu(x, 0.01), state.post, edges)
        wave, rows = self.synthesis.step(self._polar(x), state.rows, behind(edges, self.post.delay))
        position = state.position + mel.shape[-1]
        state = replace(state, position=position, pre=pre, stages=tuple(stages), post=post, rows=rows)
        return wave.clamp(-LOUDEST_SAMPLE, LOUDEST_SAMPLE), state

    def flush(self, state: HiFTState) -> Tensor:
        """What is still due after the last frame: (B, lookahead * hop_length), of which ``delay`` samples are real."""
        mel = self.pre.weight.new_zeros(state.position.shape[0], self.config.n_mels, self.lookahead)
        ended = replace(state, length=torch.minimum(state.length, state.position))
        return self.step(mel, ended, inside=False)[0]

    def _source_step(
        self, mel: Tensor, state: HiFTState, noise: Tensor | None, edges: Edges | None
    ) -> tuple[Tensor, HiFTState]:
        """The spectra (B, N + 2, T * bins_rate) of the source that is known by now, ``bins_late`` of them late."""
        f0, predictor, f0_edges = self.predictor.step(mel, state.predictor, edges)
        f0 = f0 if f0_edges is None else f0_edges.clear(f0[:, None])[:, 0]  # the sines start with the stream
        samples = f0.shape[1] * self.hop_length
        mixed = state.noise.new_zeros(f0.shape[0], samples) if noise is None else self.sines.mixed(noise)
        mixed = torch.cat([state.noise, mixed], dim=1)
        source, cycles = self.sines(f0, state.cycles, state.phase, mixed[:, :samples])
        samples_edges = None if f0_edges is None else f0_edges.upsampled(self.hop_length)
        bins, kept = self.analysis.step(source, state.source, samples_edges)
        bins, held = self.hold.step(bins.to(mel.dtype), state.bins)
        return bins, replace(
            state, cycles=cycles, predictor=predictor, noise=mixed[:, samples:], source=kept, bins=held
        )

    def _polar(self, x: Tensor) -> Tensor:
        """Log magnitudes and phases (B, N + 2, T) -> real and imaginary parts."""
        log, angle = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=1)
        magnitude, angle = log.exp().clamp(max=LOUDEST_BIN), angle.sin()
        return torch.cat([magnitude * angle.cos(), magnitude * angle.sin()], dim=1)

    def _bins_edges(self, edges: Edges) -> Edges:
        raised = edges.upsampled(self.config.bins_rate)
        return Edges(raised.first, raised.length + 1)

    def _phase(self, batch: int) -> Tensor:
        weight = self.pre.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(batch, self.config.harmonics + 1, dtype=exact, device=weight.device)

    def _is_inside(self, state: HiFTState, frames: int) -> bool:
        past_start = state.position > self.lookahead
        return bool((past_start & (state.position + frames <= state.length)).all())
