"""The speech decoder of GLM-4-Voice (arXiv 2412.02612, section 2.2): tokens at 12.5 Hz to a mel spectrogram by flow
matching, which is CosyVoice's decoder (arXiv 2407.05407, section 2.3) with an encoder that reads in blocks.

    tokens (B, L) -> embedding -> relative-position encoder (B, L, D) -> M channels -> stretched to T frames and
        smoothed: mu (B, M, T)
    noise (B, M, T) -> Euler steps along U-Net(x, mu, speaker, past mel; time) -> mel (B, M, T)

Two forms by configuration. As published everything looks at the whole sequence, and speech is continued by giving the
mel that is already there as a condition (``codecs/glm4_decoder_stream.py`` is the reference's own loop). With
``causal`` every layer reads a window of the past and the token's own frames: a stream gives exactly what
:meth:`GLM4Decoder.forward` gives, ``lookahead`` tokens late, at constant work a token. Each Euler step then has a U-Net
state of its own, and noise belongs to a frame of the stream (:func:`time_noise`), not to a call. The small sizes also
let the U-Net name the mel itself, from which the velocity follows: a network that is hardly wider than the noise it
would have to pass on learns that sooner (Li & He 2025, arXiv 2511.13720, section 3).

Bricks: nn/relative.py, nn/unet.py, nn/sliding.py, nn/flow_matching.py, nn/streaming.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import ConfigError
from vivavoce.nn.flow_matching import cosine_schedule, euler, guided, straight_path, toward
from vivavoce.nn.noise import place_noise
from vivavoce.nn.relative import RelativeEncoder, block_mask
from vivavoce.nn.sliding import stream_mask, window_mask
from vivavoce.nn.streaming import Conv1d, module_list, whole
from vivavoce.nn.unet import Convolved, Reach, UNet, UNetConfig, join_channels

Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True, kw_only=True)
class GLM4DecoderConfig:
    """Sizes; the defaults are the published ones.

    ``block``: tokens that see one another in the encoder. ``guidance``: how far to move away from the direction without
    conditions. ``predicts``: what the U-Net gives. ``window`` (frames) and ``token_window`` (tokens): how far back the
    causal form reads, 0 in the other. ``lookahead``: tokens that the causal form hears before it makes a token's mel,
    since codes of a recogniser tell a sound a little late.
    """

    vocab_size: int = 16_384
    dim: int = 512
    n_heads: int = 8
    ffn_dim: int = 2048
    n_layers: int = 6
    block: int = 10
    n_mels: int = 80
    speaker_dim: int = 192
    token_rate: float = 12.5
    sample_rate: int = 22_050
    hop_length: int = 256
    channels: tuple[int, ...] = (256, 256)
    n_blocks: int = 4
    n_mid_blocks: int = 12
    unet_heads: int = 8
    unet_head_dim: int = 64
    unet_ffn_dim: int = 1024
    guidance: float = 0.7
    steps: int = 10
    predicts: Literal["velocity", "data"] = "velocity"
    causal: bool = False
    window: int = 0
    token_window: int = 0
    lookahead: int = 0

    def __post_init__(self) -> None:
        if not self.causal:
            return
        if self.frames_per_token.denominator != 1:
            raise ConfigError(f"a causal decoder needs whole frames a token, and {self.frames_per_token} are not")
        if self.block != 1 or self.guidance or self.token_window < 1 or self.lookahead < 0:
            raise ConfigError("a causal decoder takes block 1, guidance 0 and a token_window of at least 1")

    @property
    def frames_per_token(self) -> Fraction:
        """Mel frames for one token: 441/64 as published."""
        return Fraction(self.sample_rate, self.hop_length) / Fraction(self.token_rate)

    @classmethod
    def published(cls) -> GLM4DecoderConfig:
        """111,166,208 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> GLM4DecoderConfig:
        """The published form, a few thousand parameters: for tests."""
        return cls(
            vocab_size=32, dim=16, n_heads=2, ffn_dim=24, n_layers=2, block=4, n_mels=6, speaker_dim=5,
            channels=(16, 16), n_blocks=1, n_mid_blocks=1, unet_heads=2, unet_head_dim=6, unet_ffn_dim=20, steps=3,
        )  # fmt: skip

    @classmethod
    def tiny_causal(cls) -> GLM4DecoderConfig:
        """The causal form of :meth:`tiny`, 3 frames a token."""
        return replace(
            cls.tiny(), block=1, speaker_dim=0, channels=(16,), sample_rate=9600, guidance=0.0, steps=2,
            predicts="data", causal=True, window=6, token_window=4,
        )  # fmt: skip

    @classmethod
    def nano(cls) -> GLM4DecoderConfig:
        """The causal form for 16 kHz: 5 frames a token, a second of past, eight transformer blocks of width 96."""
        return cls(
            vocab_size=1024, dim=128, n_heads=4, ffn_dim=256, n_layers=2, block=1, speaker_dim=0, sample_rate=16_000,
            channels=(96,), n_blocks=2, n_mid_blocks=2, unet_heads=3, unet_head_dim=32, unet_ffn_dim=192, guidance=0.0,
            steps=4, predicts="data", causal=True, window=60, token_window=25, lookahead=2,
        )  # fmt: skip


class Smoother(nn.Module):
    """What follows the stretching: convolutions of three frames with norm, and a 1x1 convolution."""

    def __init__(self, n_mels: int, streams: bool, n_layers: int = 4):
        super().__init__()
        self.layers = module_list(Convolved(n_mels, n_mels, 1, streams) for _ in range(n_layers))
        self.out = Conv1d(n_mels, n_mels, 1)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """x (B, M, T), real frames (B,) -> (B, M, T)."""
        edges = whole(frames)
        for layer in self.layers:
            x = layer(x, edges)
        x = self.out(x)
        return x if edges is None else edges.clear(x)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(layer.conv.init_state(batch) for layer in self.layers)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        made = []
        for layer, before in zip(self.layers, state, strict=True):
            x, after = layer.step(x, before)
            made.append(after)
        return self.out(x), tuple(made)


@dataclass(frozen=True)
class GLM4DecoderState:
    """position (B,): tokens so far. ``flows``: one U-Net state for each Euler step."""

    position: Tensor
    encoder: tuple
    smoother: tuple[Tensor, ...]
    flows: tuple
    speaker: Tensor | None


class GLM4Decoder(nn.Module):
    """Tokens (B, L) and noise to mel (B, M, T); see the file's head for the two forms."""

    def __init__(self, config: GLM4DecoderConfig):
        super().__init__()
        self.config = config
        self.lookahead = config.lookahead
        self.embedding = nn.Embedding(config.vocab_size + bool(config.lookahead), config.dim)  # one for "no more"
        self.encoder = RelativeEncoder(config.dim, config.n_heads, config.n_layers, config.ffn_dim)
        self.projection = nn.Linear(config.dim, config.n_mels)
        self.smoother = Smoother(config.n_mels, config.causal)
        self.speaker = nn.Linear(config.speaker_dim, config.n_mels) if config.speaker_dim else None
        conditions = 1 + (self.speaker is not None) + (not config.causal)
        sizes = UNetConfig(
            in_channels=config.n_mels * (1 + conditions), out_channels=config.n_mels, channels=config.channels,
            n_blocks=config.n_blocks, n_mid_blocks=config.n_mid_blocks, n_heads=config.unet_heads,
            head_dim=config.unet_head_dim, ffn_dim=config.unet_ffn_dim,
        )  # fmt: skip
        self.rate = config.frames_per_token
        self.unet = UNet(sizes, Reach(config.window, self.rate.numerator) if config.causal else None)

    def frames(self, n_tokens: Count) -> Count:
        """Mel frames of so many tokens, rounded down.

        The published code rounds in float32 and gives one frame less at 21 lengths between 3,392 and 20,000 tokens.
        """
        return n_tokens * self.rate.numerator // self.rate.denominator

    # ----------------------------------------------------------------------------------------------- whole sequences
    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """tokens (B, L), of which ``lengths`` (B,) are real -> (B, L, D)."""
        config, ahead = self.config, self.lookahead
        if ahead:  # every row is followed by its own end
            tokens = F.pad(tokens, (0, ahead), value=config.vocab_size)
            if lengths is not None:
                over = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
                tokens = tokens.masked_fill(over, config.vocab_size)
        length = tokens.shape[1]
        if config.causal:
            mask = window_mask(length, config.token_window, 1, tokens.device)[None, None, :, config.token_window :]
            return self.encoder(self.embedding(tokens), mask)[:, ahead:]
        x = self.embedding(tokens)
        if lengths is not None:
            x = x * (torch.arange(length, device=x.device) < lengths[:, None])[..., None].to(x.dtype)
        return self.encoder(x, block_mask(length, config.block, lengths, x.device))

    def condition(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the encoder says, at the mel's rate: (B, L, D) -> mu (B, M, T)."""
        x = self.projection(hidden)
        if self.config.causal:
            x = x.repeat_interleave(self.rate.numerator, dim=1)
            return self.smoother(x.transpose(1, 2))
        real = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.long) if lengths is None else lengths
        index = _nearest(real, self.frames(real), self.frames(x.shape[1]))
        x = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        return self.smoother(x.transpose(1, 2), None if lengths is None else self.frames(lengths))

    def forward(
        self,
        tokens: Tensor,
        noise: Tensor,
        *,
        lengths: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        speaker: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """tokens (B, L) and noise (B, M, T), T = frames(L) -> mel (B, M, T), zeros behind ``lengths`` (B,) tokens.

        ``prompt_mel`` (B, M, P), published form only: the first P frames as they are known to be; the result has them
        too, as the flow sees them. ``speaker`` (B, speaker_dim): a vector of any length, none where it is zero.
        """
        real = None if lengths is None else self.frames(lengths)
        mu = self.condition(self.encode(tokens, lengths), lengths)
        past = None if prompt_mel is None else F.pad(prompt_mel, (0, mu.shape[-1] - prompt_mel.shape[-1]))
        given = self._conditions(mu, self._speaker(speaker, mu), past)
        mel = euler(partial(self._velocity, given=given, real=real), noise, steps or self.config.steps)
        edges = whole(real)
        return mel if edges is None else edges.clear(mel)

    def loss_terms(
        self,
        tokens: Tensor,
        mel: Tensor,
        *,
        noise: Tensor,
        time: Tensor,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        prompt_frames: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Conditional flow matching (Lipman et al. 2023, equation 23) as ``{"flow": ()}``: mean squared error of the
        velocity, or of the mel where the U-Net predicts that: the same error, weighed by (1 - flow time) squared.

        tokens (B, L), mel and noise (B, M, frames(L)), ``lengths`` (B,) real tokens. ``time`` (B,) is uniform in
        [0, 1]; the cosine schedule is applied here. For the published recipe: ``prompt_frames`` (B,) frames of the mel
        are given as known past (half of the rows, up to 0.8 of their length), and ``keep`` (B,) bool is False for the
        fifth of the rows that learn to do without conditions, which guidance needs.
        """
        real = None if lengths is None else self.frames(lengths)
        mu = self.condition(self.encode(tokens, lengths), lengths)
        past = None
        if prompt_frames is not None:
            past = mel * (torch.arange(mel.shape[-1], device=mel.device) < prompt_frames[:, None])[:, None].to(
                mel.dtype
            )
        given = self._conditions(mu, self._speaker(speaker, mu), past)
        if keep is not None:
            given = given * keep[:, None, None].to(given.dtype)
        time = cosine_schedule(time)
        x, velocity = straight_path(noise, mel, time)
        target = mel if self.config.predicts == "data" else velocity
        error = (self.unet(join_channels(x, given), time, real).float() - target.float()) ** 2
        edges = whole(real)
        if edges is None or real is None:
            return {"flow": error.mean()}
        return {"flow": edges.clear(error).sum() / (real.sum() * mel.shape[1])}

    def _speaker(self, speaker: Tensor | None, like: Tensor) -> Tensor | None:
        """A speaker vector (B, speaker_dim) as M further channels (B, M)."""
        if self.speaker is None:
            return None
        if speaker is None:
            speaker = like.new_zeros(like.shape[0], self.config.speaker_dim)
        return self.speaker(F.normalize(speaker, dim=1))

    def _conditions(self, mu: Tensor, speaker: Tensor | None, past: Tensor | None) -> Tensor:
        """All that the U-Net is told beside x, as channels (B, C, T)."""
        parts = [mu]
        if speaker is not None:
            parts.append(speaker[..., None].to(mu.dtype).expand(-1, -1, mu.shape[-1]))
        if not self.config.causal:
            parts.append(torch.zeros_like(mu) if past is None else past.to(mu.dtype))
        return join_channels(*parts)

    def _velocity(self, x: Tensor, time: Tensor, _: int, *, given: Tensor, real: Tensor | None) -> Tensor:
        strength = self.config.guidance
        if not strength:
            return self._direction(self.unet(join_channels(x, given), time.expand(x.shape[0]), real), x, time)
        both = join_channels(x.repeat(2, 1, 1), torch.cat([given, torch.zeros_like(given)]))
        real = None if real is None else real.repeat(2)
        told, untold = self.unet(both, time.expand(2 * x.shape[0]), real).chunk(2)
        return self._direction(guided(told, untold, strength), x, time)

    def _direction(self, predicted: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return toward(predicted, x, time) if self.config.predicts == "data" else predicted

    # ----------------------------------------------------------------------------------------------------- streaming
    def init_state(self, batch: int, *, speaker: Tensor | None = None, steps: int | None = None) -> GLM4DecoderState:
        """Before the first token of the causal form; the number of Euler steps is the stream's own."""
        if not self.config.causal:
            raise ConfigError("the published form does not stream token by token: use ReferenceStream or a causal size")
        position = torch.zeros(batch, dtype=torch.long, device=self.projection.weight.device)
        return GLM4DecoderState(
            position,
            self.encoder.init_state(batch, self.config.token_window),
            self.smoother.init_state(batch),
            tuple(self.unet.init_state(batch) for _ in range(steps or self.config.steps)),
            self._speaker(speaker, self.projection.weight.new_zeros(batch, 1)),
        )

    def step(self, tokens: Tensor, state: GLM4DecoderState, noise: Tensor) -> tuple[Tensor, GLM4DecoderState]:
        """Further tokens (B, L) -> the mel of the tokens that are due by now, ``lookahead`` behind, and the state.

        ``noise`` (B, M, frames(:meth:`due`)) is that of the frames which come out. All rows began at the same time.
        """
        config, rate = self.config, self.rate.numerator
        mask = stream_mask(state.position, tokens.shape[1], config.token_window, 1)
        hidden, encoder = self.encoder.step(self.embedding(tokens), state.encoder, mask)
        n_tokens = self.due(int(state.position[0]), tokens.shape[1])
        heard, made = state.position + tokens.shape[1], (state.position - self.lookahead).clamp_min(0)
        hidden = hidden[:, hidden.shape[1] - n_tokens :]
        if not n_tokens:
            mel = noise.new_zeros(noise.shape[0], config.n_mels, 0)
            return mel, replace(state, position=heard, encoder=encoder)
        x = self.projection(hidden).repeat_interleave(rate, dim=1)
        mu, smoother = self.smoother.step(x.transpose(1, 2), state.smoother)
        given = self._conditions(mu, state.speaker, None)
        mask = stream_mask(made * rate, n_tokens * rate, config.window, rate)
        flows = []

        def velocity(x: Tensor, time: Tensor, n: int) -> Tensor:
            y, after = self.unet.step(join_channels(x, given), time.expand(x.shape[0]), state.flows[n], mask)
            flows.append(after)
            return self._direction(y, x, time)

        mel = euler(velocity, noise, len(state.flows))
        return mel, GLM4DecoderState(heard, encoder, smoother, tuple(flows), state.speaker)

    def due(self, heard: int, further: int) -> int:
        """How many tokens' mel comes out of a step with ``further`` tokens after ``heard`` ones."""
        return max(0, heard + further - self.lookahead) - max(0, heard - self.lookahead)

    def flush(self, state: GLM4DecoderState, noise: Tensor) -> Tensor:
        """The mel of the last tokens, which nothing follows; ``noise`` as in :meth:`step`."""
        batch = state.position.shape[0]
        ends = torch.full((batch, self.lookahead), self.config.vocab_size, device=state.position.device)
        return self.step(ends, state, noise)[0]


def _nearest(lengths: Tensor, frames: Tensor, n_frames: int) -> Tensor:
    """The token (B, T) that each frame repeats, in the float32 arithmetic of nearest-neighbour interpolation."""
    place = torch.arange(n_frames, device=lengths.device, dtype=torch.float32)
    index = (place * (lengths.float() / frames.float())[:, None]).floor().long()
    return index.minimum(lengths[:, None] - 1)


def time_noise(first: int, frames: int, n_mels: int, seed: int = 42) -> Tensor:
    """Normal noise (M, frames) for the frames from ``first`` on; a frame's numbers depend on its index alone."""
    return place_noise(first, frames, n_mels, seed)
