"""VITS: text to wave in one network, trained end to end as a conditional variational autoencoder.

Kim, Kong, Son 2021, "Conditional Variational Autoencoder with Adversarial Learning for End-to-End Text-to-Speech"
(arXiv 2106.06103). Also the network of the published MMS voices (Pratap et al. 2023) and of Piper's voices.

    speaking   tokens -> text encoder -> mean and log-scale a token -> durations -> the same a frame
               -> + noise -> flow inverted -> latent -> HiFi-GAN -> wave
    training   wave -> spectrogram -> posterior encoder -> latent -> flow -> compared with the prior a frame,
               along the best monotonic alignment, whose durations the duration predictor learns

Bricks: ``nn/hifigan.py`` (decoder), ``nn/coupling.py`` and ``nn/wavenet.py`` (flow, posterior), ``nn/splines.py``
(duration flow), ``nn/alignment.py`` (alignment search). The flow and the decoder look a fixed number of frames ahead,
so both stream exactly: sound leaves long before the sentence is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vivavoce.errors import ConfigError
from vivavoce.nn.alignment import expand, gaussian_scores, monotonic_path
from vivavoce.nn.coupling import CouplingFlow
from vivavoce.nn.hifigan import HiFiGAN, HiFiGANConfig, HiFiGANState
from vivavoce.nn.splines import spline
from vivavoce.nn.streaming import ENDLESS, Conv1d, Edges, module_list, whole
from vivavoce.nn.wavenet import WaveNet

Draw = Tensor | Callable[[tuple[int, ...]], Tensor]  # random numbers as a tensor, or a function from shape to tensor


@dataclass(frozen=True, kw_only=True)
class VITSConfig:
    """Sizes; ``trainable`` False leaves out what only training and voice conversion need (as Piper's files do)."""

    n_symbols: int = 178
    dim: int = 192
    n_layers: int = 6
    n_heads: int = 2
    window: int = 4
    ffn_dim: int = 768
    ffn_kernel: int = 3
    dropout: float = 0.1
    durations: Literal["stochastic", "deterministic"] = "stochastic"
    duration_dim: int = 192
    duration_kernel: int = 3
    duration_dropout: float = 0.5
    n_duration_flows: int = 4
    latent_dim: int = 192
    spectrogram_bins: int = 513
    posterior_layers: int = 16
    n_flows: int = 4
    flow_layers: int = 4
    wavenet_kernel: int = 5
    n_speakers: int = 0
    speaker_dim: int = 0
    sample_rate: int = 22_050
    trainable: bool = True
    decoder: HiFiGANConfig = field(default_factory=lambda: HiFiGANConfig(in_channels=192, post_bias=False))

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise ConfigError(f"VITSConfig.dim {self.dim} is not divisible by n_heads {self.n_heads}")
        if self.decoder.in_channels != self.latent_dim:
            raise ConfigError(
                f"VITSConfig.latent_dim {self.latent_dim} must equal decoder.in_channels {self.decoder.in_channels}"
            )
        if bool(self.n_speakers) != bool(self.speaker_dim) or self.decoder.speaker_dim != self.speaker_dim:
            raise ConfigError("VITSConfig needs n_speakers and the same speaker_dim here and in the decoder, or none")

    @classmethod
    def ljspeech(cls) -> VITSConfig:
        """The paper's single speaker, 36.3 M parameters."""
        return cls()

    @classmethod
    def vctk(cls) -> VITSConfig:
        """The paper's 109 speakers, 39.7 M parameters."""
        decoder = HiFiGANConfig(in_channels=192, post_bias=False, speaker_dim=256)
        return cls(n_speakers=109, speaker_dim=256, decoder=decoder)

    @classmethod
    def piper_medium(cls) -> VITSConfig:
        """A Piper voice of medium quality: a smaller decoder with blocks of type 2, inference parts only, 15.7 M."""
        decoder = replace(HiFiGANConfig.v3(), in_channels=192, post_bias=False)
        return cls(n_symbols=256, trainable=False, decoder=decoder)

    @classmethod
    def tiny(cls) -> VITSConfig:
        """For tests: every part at a toy width."""
        decoder = HiFiGANConfig(
            in_channels=12,
            channels=16,
            upsample_rates=(4, 4),
            upsample_kernels=(8, 8),
            block_type=2,
            block_kernels=(3, 5),
            block_dilations=((1, 2), (1, 3)),
            post_bias=False,
        )
        return cls(
            n_symbols=40,
            dim=16,
            n_layers=2,
            ffn_dim=32,
            duration_dim=16,
            latent_dim=12,
            spectrogram_bins=9,
            posterior_layers=2,
            n_flows=2,
            flow_layers=2,
            sample_rate=8000,
            decoder=decoder,
        )


# --------------------------------------------------------------------------------------------------------- text encoder
class RelativeAttention(nn.Module):
    """Self-attention with learned keys and values for offsets up to ``window`` (Shaw et al. 2018, arXiv 1803.02155),
    shared by the heads. (B, L, D), mask (B, L) -> (B, L, D)."""

    def __init__(self, dim: int, n_heads: int, window: int, dropout: float):
        super().__init__()
        self.n_heads, self.window = n_heads, window
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_keys = nn.Parameter(torch.empty(2 * window + 1, dim // n_heads))
        self.relative_values = nn.Parameter(torch.empty(2 * window + 1, dim // n_heads))
        for table in (self.relative_keys, self.relative_values):
            nn.init.normal_(table, std=(dim // n_heads) ** -0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0] / math.sqrt(heads.shape[-1]), heads[1], heads[2]  # (B, H, L, D / H)
        scores = query @ key.transpose(-1, -2)
        near = query @ self.relative_keys.T  # (B, H, L, 2 * window + 1)
        for column, offset in self._offsets(x.shape[1]):
            start, end = max(0, -offset), min(x.shape[1], x.shape[1] - offset)
            scores.diagonal(offset, -2, -1).add_(near[:, :, start:end, column])
        scores = scores + (~mask[:, None, None]) * -1e4
        weights = self.dropout(torch.softmax(scores, dim=-1))
        out = weights @ value
        band = torch.zeros_like(near)
        for column, offset in self._offsets(x.shape[1]):
            start, end = max(0, -offset), min(x.shape[1], x.shape[1] - offset)
            band[:, :, start:end, column] = weights.diagonal(offset, -2, -1)
        return self.out((out + band @ self.relative_values).transpose(1, 2).flatten(2))

    def _offsets(self, length: int) -> list[tuple[int, int]]:
        reach = min(self.window, length - 1)
        return [(self.window + offset, offset) for offset in range(-reach, reach + 1)]


class EncoderLayer(nn.Module):
    """Attention and a convolutional feed-forward part, each followed by its residual and a layer norm."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        self.attention = RelativeAttention(config.dim, config.n_heads, config.window, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.up = Conv1d(config.dim, config.ffn_dim, config.ffn_kernel)
        self.down = Conv1d(config.ffn_dim, config.dim, config.ffn_kernel)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, edges: Edges) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        y = self.dropout(torch.relu(self.up(x.transpose(1, 2), edges)))
        y = edges.clear(self.down(y, edges)).transpose(1, 2)
        return self.ffn_norm(x + self.dropout(y))


class TextEncoder(nn.Module):
    """tokens (B, L) -> hidden (B, D, L), prior mean and log-scale (B, C, L); zeros behind ``lengths``."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.n_symbols, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.layers = module_list(EncoderLayer(config) for _ in range(config.n_layers))
        self.prior = nn.Linear(config.dim, 2 * config.latent_dim)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        edges, keep = Edges(torch.zeros_like(lengths), lengths), mask[..., None]
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) * keep
        for layer in self.layers:
            x = layer(x, mask, edges)
        x = x * keep
        mean, log_scale = (self.prior(x) * keep).transpose(1, 2).chunk(2, dim=1)
        return x.transpose(1, 2), mean, log_scale


# ------------------------------------------------------------------------------------------------------------ durations
class DilatedStack(nn.Module):
    """Residual layers of depthwise dilated convolution and 1x1 convolution. (B, C, L) -> (B, C, L)."""

    def __init__(self, dim: int, kernel_size: int, n_layers: int, dropout: float = 0.0):
        super().__init__()
        self.depthwise = module_list(
            Conv1d(dim, dim, kernel_size, dilation=kernel_size**i, groups=dim) for i in range(n_layers)
        )
        self.pointwise = module_list(nn.Linear(dim, dim) for _ in range(n_layers))
        self.norms = module_list(nn.LayerNorm(dim) for _ in range(2 * n_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            y = F.gelu(self.norms[2 * i](depthwise(x, edges).transpose(1, 2)))
            y = F.gelu(self.norms[2 * i + 1](pointwise(y)))
            x = x + self.dropout(y).transpose(1, 2)
        return edges.clear(x)


class SplineCoupling(nn.Module):
    """One of two channels moves along a rational-quadratic spline whose shape the other channel decides."""

    def __init__(self, dim: int, kernel_size: int, n_bins: int = 10):
        super().__init__()
        self.dim, self.n_bins = dim, n_bins
        self.pre = Conv1d(1, dim, 1)
        self.stack = DilatedStack(dim, kernel_size, 3)
        self.shape = Conv1d(dim, 3 * n_bins - 1, 1)
        nn.init.zeros_(self.shape.weight)

    def forward(self, z: Tensor, hidden: Tensor, edges: Edges, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """z (B, 2, L) -> the mapped z and log-determinant (B,)."""
        still, moving = z.split(1, dim=1)
        shape = edges.clear(self.shape(self.stack(self.pre(still) + hidden, edges)))
        widths, heights, slopes = shape.transpose(1, 2).split([self.n_bins, self.n_bins, self.n_bins - 1], dim=-1)
        scale = self.dim**-0.5
        moved, log_slope = spline(moving[:, 0], widths * scale, heights * scale, slopes, inverse=inverse)
        moved = torch.cat([still, moved[:, None]], dim=1)
        return edges.clear(moved), edges.clear(log_slope[:, None]).sum((1, 2))


class Affine(nn.Module):
    """y = shift + exp(log_scale) * x for two channels."""

    def __init__(self):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(2, 1))

    def forward(self, z: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        scaled = edges.clear(self.shift + torch.exp(self.log_scale) * z)
        return scaled, edges.clear(self.log_scale.expand_as(z)).sum((1, 2))

    def inverse(self, z: Tensor, edges: Edges) -> Tensor:
        return edges.clear((z - self.shift) * torch.exp(-self.log_scale))


class DurationPosterior(nn.Module):
    """The variational posterior of section 2.2.2: dequantises durations and adds a channel of noise."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        dim = config.duration_dim
        self.pre = Conv1d(1, dim, 1)
        self.stack = DilatedStack(dim, config.duration_kernel, 3, config.duration_dropout)
        self.proj = Conv1d(dim, dim, 1)
        self.affine = Affine()
        self.flows = module_list(SplineCoupling(dim, config.duration_kernel) for _ in range(config.n_duration_flows))

    def forward(self, durations: Tensor, hidden: Tensor, edges: Edges, noise: Tensor) -> tuple[Tensor, Tensor]:
        """durations (B, 1, L), noise (B, 2, L) -> [log(duration - u), extra channel] (B, 2, L) and its log q (B,)."""
        hidden = hidden + edges.clear(self.proj(self.stack(self.pre(durations), edges)))
        noise = edges.clear(noise)
        z, log_det = self.affine(noise, edges)
        for flow in self.flows:
            z, more = flow(z, hidden, edges)
            z, log_det = z.flip(1), log_det + more
        u_raw, extra = z.split(1, dim=1)
        log_det = log_det + edges.clear(F.logsigmoid(u_raw) + F.logsigmoid(-u_raw)).sum((1, 2))
        rest = (durations - edges.clear(torch.sigmoid(u_raw))).clamp_min(1e-5)
        log_rest = edges.clear(rest.log())
        log_q = _log_normal(noise, edges) - log_det
        return torch.cat([log_rest, extra], dim=1), log_q + log_rest.sum((1, 2))


class StochasticDurations(nn.Module):
    """Durations drawn through a flow conditioned on the text (section 2.2.2 and appendix B)."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        dim = config.duration_dim
        self.pre = Conv1d(config.dim, dim, 1)
        self.speaker = nn.Linear(config.speaker_dim, dim) if config.speaker_dim else None
        self.stack = DilatedStack(dim, config.duration_kernel, 3, config.duration_dropout)
        self.proj = Conv1d(dim, dim, 1)
        self.affine = Affine()
        # The published synthesis leaves the first spline out, so it exists for the likelihood only.
        self.first_flow = SplineCoupling(dim, config.duration_kernel) if config.trainable else None
        self.flows = module_list(
            SplineCoupling(dim, config.duration_kernel) for _ in range(config.n_duration_flows - 1)
        )
        self.posterior = DurationPosterior(config) if config.trainable else None

    def forward(self, x: Tensor, edges: Edges, noise: Tensor, speaker: Tensor | None = None) -> Tensor:
        """hidden x (B, D, L) and noise (B, 2, L) -> log durations (B, L) in frames."""
        hidden, z = self._hidden(x, edges, speaker), noise
        for flow in reversed(self.flows):
            z, _ = flow(z.flip(1), hidden, edges, inverse=True)
        return self.affine.inverse(z.flip(1), edges)[:, 0]

    def loss(self, x: Tensor, edges: Edges, durations: Tensor, noise: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Upper bound on the negative log-likelihood (B,) of durations (B, L), summed over positions."""
        if self.posterior is None or self.first_flow is None:
            raise ConfigError("these weights hold inference parts only: create VITS with trainable=True to train")
        hidden = self._hidden(x, edges, speaker)
        z, log_q = self.posterior(durations[:, None], hidden, edges, noise)
        z, log_det = self.affine(z, edges)
        for flow in (self.first_flow, *self.flows):
            z, more = flow(z, hidden, edges)
            z, log_det = z.flip(1), log_det + more
        return log_q - _log_normal(z, edges) - log_det

    def _hidden(self, x: Tensor, edges: Edges, speaker: Tensor | None) -> Tensor:
        x = self.pre(x.detach())
        if self.speaker is not None and speaker is not None:
            x = x + self.speaker(speaker)[..., None]
        return edges.clear(self.proj(self.stack(x, edges)))


class PlainDurations(nn.Module):
    """Durations as a regression: two convolutions (the predictor of Glow-TTS and of some VITS voices)."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        dim = config.duration_dim
        self.convs = module_list(
            [Conv1d(config.dim, dim, config.duration_kernel), Conv1d(dim, dim, config.duration_kernel)]
        )
        self.norms = module_list(nn.LayerNorm(dim) for _ in range(2))
        self.proj = Conv1d(dim, 1, 1)
        self.speaker = nn.Linear(config.speaker_dim, config.dim) if config.speaker_dim else None
        self.dropout = nn.Dropout(config.duration_dropout)

    def forward(self, x: Tensor, edges: Edges, noise: Tensor, speaker: Tensor | None = None) -> Tensor:
        """hidden x (B, D, L) -> log durations (B, L); ``noise`` has no part here."""
        x = x.detach()
        if self.speaker is not None and speaker is not None:
            x = x + self.speaker(speaker)[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.dropout(norm(torch.relu(conv(x, edges)).transpose(1, 2)).transpose(1, 2))
        return edges.clear(self.proj(edges.clear(x)))[:, 0]

    def loss(self, x: Tensor, edges: Edges, durations: Tensor, noise: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Squared error of the logarithm (B,), summed over positions."""
        target = edges.clear(torch.log(durations[:, None] + 1e-6))[:, 0]
        return (self(x, edges, noise, speaker) - target).square().sum(1)


def _log_normal(x: Tensor, edges: Edges) -> Tensor:
    """log N(x; 0, 1) (B,) summed over channels and real positions."""
    return edges.clear(-0.5 * (math.log(2 * math.pi) + x * x)).sum((1, 2))


# ------------------------------------------------------------------------------------------------------------ the model
class PosteriorEncoder(nn.Module):
    """Linear spectrogram (B, F, T) and noise (B, C, T) -> latent, its mean and log-scale (B, C, T)."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        self.pre = Conv1d(config.spectrogram_bins, config.dim, 1)
        self.wavenet = WaveNet(config.dim, config.wavenet_kernel, 1, config.posterior_layers, config.speaker_dim)
        self.proj = Conv1d(config.dim, 2 * config.latent_dim, 1)

    def forward(
        self, spectrogram: Tensor, edges: Edges, noise: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = edges.clear(self.wavenet(self.pre(spectrogram), edges, speaker))
        mean, log_scale = edges.clear(self.proj(x)).chunk(2, dim=1)
        return edges.clear(mean + noise * torch.exp(log_scale)), mean, log_scale


class Prior(NamedTuple):
    """What the text decides: mean and log_scale (B, C, T), durations (B, L) and lengths (B,) in frames."""

    mean: Tensor
    log_scale: Tensor
    durations: Tensor
    lengths: Tensor

    def sample(self, noise: Draw, scale: float) -> Tensor:
        """mean + noise * exp(log_scale) * scale (B, C, T), the input of the inverted flow."""
        return self.mean + drawn(noise, tuple(self.mean.shape)) * torch.exp(self.log_scale) * scale


class VITSTerms(NamedTuple):
    """Pieces of the loss: means ``kl`` and ``duration``, ``latent`` (B, C, T) for the decoder, path (B, L, T)."""

    kl: Tensor
    duration: Tensor
    latent: Tensor
    path: Tensor


@dataclass(frozen=True)
class VITSState:
    """``position`` and ``length`` (B,) in frames, then what flow and decoder keep."""

    position: Tensor
    length: Tensor
    flow: tuple
    decoder: HiFiGANState


class VITS(nn.Module):
    """The whole network; random numbers are passed in, so every method is deterministic."""

    def __init__(self, config: VITSConfig):
        super().__init__()
        self.config = config
        self.speakers = nn.Embedding(config.n_speakers, config.speaker_dim) if config.n_speakers else None
        self.text_encoder = TextEncoder(config)
        kind = StochasticDurations if config.durations == "stochastic" else PlainDurations
        self.duration_predictor = kind(config)
        self.posterior_encoder = PosteriorEncoder(config) if config.trainable else None
        self.flow = CouplingFlow(
            config.latent_dim,
            config.dim,
            config.wavenet_kernel,
            1,
            config.flow_layers,
            config.n_flows,
            config.speaker_dim,
        )
        self.decoder = HiFiGAN(config.decoder)
        self.hop_length = self.decoder.hop_length
        self.lookahead = self.flow.delay + self.decoder.lookahead  # frames
        self.delay = self.flow.delay * self.hop_length + self.decoder.delay  # samples

    def synthesize(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        noise: Draw,
        duration_noise: Draw,
        noise_scale: float = 0.667,
        duration_noise_scale: float = 0.8,
        length_scale: float = 1.0,
        speaker: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, L), lengths (B,) [, speaker (B,)] -> wave (B, S) and durations (B, L) in frames.

        ``noise`` has the shape (B, C, T) and ``duration_noise`` (B, 2, L); T is known only inside, so pass a function
        from shape to tensor where the length matters.
        """
        prior = self.prior(
            tokens,
            lengths,
            duration_noise=duration_noise,
            duration_noise_scale=duration_noise_scale,
            length_scale=length_scale,
            speaker=speaker,
        )
        return self.decode(prior.sample(noise, noise_scale), prior.lengths, speaker), prior.durations

    def prior(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        duration_noise: Draw,
        duration_noise_scale: float = 0.8,
        length_scale: float = 1.0,
        speaker: Tensor | None = None,
    ) -> Prior:
        """Everything before the flow: a cost that grows with the text, not with the sound."""
        hidden, mean, log_scale = self.text_encoder(tokens, lengths)
        edges = Edges(torch.zeros_like(lengths), lengths)
        z = drawn(duration_noise, (tokens.shape[0], 2, tokens.shape[1])).to(hidden) * duration_noise_scale
        log_durations = self.duration_predictor(hidden, edges, z, self.speaker_vector(speaker))
        durations = edges.clear((torch.exp(log_durations) * length_scale)[:, None])[:, 0].ceil()
        frames = durations.sum(1).long().clamp_min(1)
        longest = int(frames.max())
        return Prior(expand(mean, durations, longest), expand(log_scale, durations, longest), durations.long(), frames)

    def decode(self, sample: Tensor, lengths: Tensor | None = None, speaker: Tensor | None = None) -> Tensor:
        """A sample of the prior (B, C, T) -> wave (B, T * hop_length), through the inverted flow."""
        vector = self.speaker_vector(speaker)
        padded = lengths if lengths is not None and bool((lengths < sample.shape[-1]).any()) else None
        return self.decoder(self.flow.inverse(sample, whole(padded), vector), padded, vector)

    def init_state(self, batch: int) -> VITSState:
        """A fresh stream."""
        position = torch.zeros(batch, dtype=torch.int64, device=self.text_encoder.embedding.weight.device)
        flow, decoder = self.flow.init_state(batch), self.decoder.init_state(batch, late=self.flow.delay)
        return VITSState(position, torch.full_like(position, ENDLESS), flow, decoder)

    def begin(self, sample: Tensor, speaker: Tensor | None = None) -> tuple[Tensor, VITSState]:
        """The first piece (B, C, T) of streams that start together, T > flow.delay: ``step`` on a fresh state, but the
        decoder is spared the frames before the start: (T - flow.delay) * hop_length samples, of which the first
        ``decoder.delay`` lie before the wave."""
        vector, state = self.speaker_vector(speaker), self.init_state(sample.shape[0])
        latent, flow = self.flow.step(sample, state.flow, Edges(state.position, state.length), vector)
        decoder = self.decoder.init_state(sample.shape[0])
        wave, decoder = self.decoder.step(latent[..., self.flow.delay :], decoder, vector, inside=False)
        return wave, replace(state, position=state.position + sample.shape[-1], flow=flow, decoder=decoder)

    def step(
        self, sample: Tensor, state: VITSState, speaker: Tensor | None = None, *, inside: bool | None = None
    ) -> tuple[Tensor, VITSState]:
        """The next frames of the prior's sample (B, C, T) -> (B, T * hop_length) samples, ``delay`` samples late.

        ``inside`` as in :meth:`HiFiGAN.step`.
        """
        frames = sample.shape[-1]
        if inside is None:
            past_start = state.position >= self.lookahead
            inside = bool((past_start & (state.position + frames <= state.length)).all())
        vector, edges = self.speaker_vector(speaker), None if inside else Edges(state.position, state.length)
        latent, flow = self.flow.step(sample, state.flow, edges, vector)
        wave, decoder = self.decoder.step(latent, state.decoder, vector, inside=inside)
        return wave, replace(state, position=state.position + frames, flow=flow, decoder=decoder)

    def flush(self, state: VITSState, speaker: Tensor | None = None) -> Tensor:
        """What is still due after the last frame: (B, lookahead * hop_length), of which ``delay`` samples are real."""
        length = torch.minimum(state.length, state.position)
        ended = replace(state, length=length, decoder=replace(state.decoder, length=length))
        empty = self.flow.couplings[0].pre.weight.new_zeros(
            state.position.shape[0], self.config.latent_dim, self.lookahead
        )
        return self.step(empty, ended, speaker, inside=False)[0]

    def convert(self, spectrogram: Tensor, lengths: Tensor, source: Tensor, target: Tensor, *, noise: Draw) -> Tensor:
        """The words of a spectrogram (B, F, T) spoken by ``target`` (B,) instead of ``source`` (B,) (section 2.4)."""
        edges, before, after = whole(lengths), self.speaker_vector(source), self.speaker_vector(target)
        latent, _, _ = self._posterior(spectrogram, edges, noise, before)
        latent = self.flow.inverse(self.flow(latent, edges, before), edges, after)
        return self.decoder(latent, lengths, after)

    def loss_terms(
        self,
        tokens: Tensor,
        lengths: Tensor,
        spectrogram: Tensor,
        frame_lengths: Tensor,
        *,
        noise: Draw,
        duration_noise: Draw,
        speaker: Tensor | None = None,
    ) -> VITSTerms:
        """tokens (B, L) and spectrogram (B, F, T) with their lengths (B,) -> the terms of section 2.1 and 2.2.

        The reconstruction and adversarial terms belong to the recipe: they need the decoder on cuts of ``latent``.
        """
        vector = self.speaker_vector(speaker)
        text_edges, edges = Edges(torch.zeros_like(lengths), lengths), Edges(torch.zeros_like(lengths), frame_lengths)
        hidden, mean, log_scale = self.text_encoder(tokens, lengths)
        latent, _, posterior_log_scale = self._posterior(spectrogram, edges, noise, vector)
        mapped = edges.clear(self.flow(latent, edges, vector))
        path = monotonic_path(gaussian_scores(mapped, mean, log_scale).detach(), lengths, frame_lengths)
        extra = drawn(duration_noise, (tokens.shape[0], 2, tokens.shape[1]))
        bound = self.duration_predictor.loss(hidden, text_edges, path.sum(2), extra, vector)
        mean, log_scale = mean @ path, log_scale @ path
        kl = log_scale - posterior_log_scale - 0.5 + 0.5 * (mapped - mean) ** 2 * torch.exp(-2 * log_scale)
        return VITSTerms(edges.clear(kl).sum() / frame_lengths.sum(), bound.sum() / lengths.sum(), latent, path)

    def speaker_vector(self, speaker: Tensor | None) -> Tensor | None:
        """Speaker numbers (B,) -> vectors (B, G); None without speakers."""
        if self.speakers is None:
            return None
        if speaker is None:
            raise ConfigError(f"this voice has {self.config.n_speakers} speakers: say which by number")
        return self.speakers(speaker)

    def _posterior(
        self, spectrogram: Tensor, edges: Edges | None, noise: Draw, speaker: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.posterior_encoder is None or edges is None:
            raise ConfigError("these weights hold inference parts only: use a checkpoint with a posterior encoder")
        shape = (spectrogram.shape[0], self.config.latent_dim, spectrogram.shape[-1])
        return self.posterior_encoder(spectrogram, edges, drawn(noise, shape), speaker)


def drawn(noise: Draw, shape: tuple[int, ...]) -> Tensor:
    """``noise`` itself, cut to ``shape`` in its last dimension, or what the function gives for ``shape``."""
    return noise(shape) if callable(noise) else noise[..., : shape[-1]]
