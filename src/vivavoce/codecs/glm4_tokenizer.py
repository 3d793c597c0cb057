"""The speech tokenizer of GLM-4-Voice (arXiv 2412.02612, section 2.1): a Whisper encoder cut after some layers and
quantised to 12.5 codes a second.

    wave (B, S) 16 kHz -> log-mel (B, M, 8N) -> causal conv, causal conv / 2 -> + positions -> layers (B, 4N, D)
        -> mean of 4 -> nearest row of the codebook -> codes (B, N), N = ceil(S / 1280)

Attention is block-causal: a frame sees the past and its own block of ``block`` frames (published: 4 s), so codes are
final as soon as their block is complete. Sound is cut into windows of ``context`` frames (30 s) that know nothing of
each other. Bricks: nn/encoder.py, nn/streaming.py, nn/vector_quantizer.py.

Whisper's log-mel is clamped 80 dB below the loudest value of the whole clip, which no stream can know: with
``ceiling`` None the offline form does that, as published, and a stream takes the loudest value of the window's first
block (the difference is not zero where later sound is much louder). A fixed ``ceiling`` makes the stream exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import MelFormat, mel_spectrum
from vivavoce.codecs import CodeFormat, Codes
from vivavoce.errors import ConfigError
from vivavoce.nn.attention import KVCache, init_cache
from vivavoce.nn.encoder import EncoderLayer
from vivavoce.nn.streaming import Conv1d, module_list
from vivavoce.nn.vector_quantizer import VectorQuantizer

SAMPLE_RATE = 16_000
SAMPLES = 320  # a frame after the second convolution: 20 ms
AHEAD = 40  # samples that the last frame of a block sees beyond it: half a window of 400 less one hop


@dataclass(frozen=True, kw_only=True)
class GLM4TokenizerConfig:
    """Sizes; ``block`` and ``context`` in frames of 20 ms, ``pooling`` frames a code, ``ceiling`` in log10 energy."""

    n_mels: int = 128
    dim: int = 1280
    n_heads: int = 20
    n_layers: int = 16
    ffn_dim: int = 5120
    context: int = 1500
    block: int = 200
    pooling: int = 4
    codes: int = 16_384
    ceiling: float | None = None

    @classmethod
    def tiny(cls) -> GLM4TokenizerConfig:
        """Two layers of width 16, blocks of 0.32 s, windows of 0.96 s: for tests."""
        return cls(
            n_mels=20, dim=16, n_heads=2, n_layers=2, ffn_dim=24, context=48, block=16, codes=32, ceiling=1.0
        )  # fmt: skip

    @classmethod
    def nano(cls) -> GLM4TokenizerConfig:
        """The first four layers of Whisper base, blocks of 1.28 s, 1,024 codes."""
        return cls(
            n_mels=80, dim=512, n_heads=8, n_layers=4, ffn_dim=2048, block=64, codes=1024, ceiling=1.5
        )  # fmt: skip

    @classmethod
    def published(cls, config: Mapping[str, Any]) -> GLM4TokenizerConfig:
        """The sizes in a published ``config.json``; ConfigError where one is missing or a variant is not known."""
        try:
            if config.get("encoder_causal_attention") or not config["encoder_causal_convolution"]:
                raise ConfigError("this tokenizer is not block-causal with causal convolutions; give another one")
            if config["pooling_position"] != config["quantize_position"] or config["pooling_type"] != "avg":
                raise ConfigError("this tokenizer does not average right before it quantises; give another one")
            return cls(
                n_mels=int(config["num_mel_bins"]), dim=int(config["d_model"]),
                n_heads=int(config["encoder_attention_heads"]), n_layers=int(config["quantize_position"]),
                ffn_dim=int(config["encoder_ffn_dim"]), context=int(config["max_source_positions"]),
                block=int(config["quantize_causal_block_size"]), pooling=int(config["pooling_kernel_size"]),
                codes=int(config["quantize_vocab_size"]),
            )  # fmt: skip
        except KeyError as error:
            raise ConfigError(f"the tokenizer's config.json lacks {error}; give the published file") from None

    @property
    def mel(self) -> MelFormat:
        return MelFormat.whisper(self.n_mels)

    @property
    def format(self) -> CodeFormat:
        return CodeFormat(name="glm4", rate=SAMPLE_RATE / self.samples_per_code, codes=self.codes)

    @property
    def samples_per_code(self) -> int:
        return SAMPLES * self.pooling


@dataclass(frozen=True)
class GLM4TokenizerState:
    """``wave`` (B, S): samples not yet used; ``past`` (B, <= 360): the last ones used, which the next mel window still
    sees; conv1, conv2: frames kept; caches: one a layer; ``loudest`` (B,): ceiling of this window; ``position`` (B,):
    frames of the window that are done, the same for all rows."""

    wave: Tensor
    past: Tensor
    conv1: Tensor
    conv2: Tensor
    caches: tuple[KVCache, ...]
    loudest: Tensor
    position: Tensor

    @property
    def frames(self) -> int:
        return int(self.position[0])


class GLM4Tokenizer(nn.Module):
    """Waves to codes, whole or piece by piece."""

    def __init__(self, config: GLM4TokenizerConfig):
        super().__init__()
        c = self.config = config
        self.conv1 = Conv1d(c.n_mels, c.dim, 3, left=2)
        self.conv2 = Conv1d(c.dim, c.dim, 3, stride=2, left=2)
        self.positions = nn.Parameter(torch.randn(c.context, c.dim) * 0.02)
        self.layers = module_list(EncoderLayer(c.dim, c.n_heads, c.ffn_dim) for _ in range(c.n_layers))
        self.codebook = VectorQuantizer(c.codes, c.dim)

    # -------------------------------------------------------------------------------------------------- offline
    def mel(self, wave: Tensor) -> Tensor:
        """(B, S), S a multiple of a code's samples -> scaled log-mel (B, M, S / 160)."""
        return self._scale(mel_spectrum(wave, self.config.mel), None)

    def features(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scaled log-mel (B, M, 8N), at most a window -> pooled states (B, N, D) before quantisation.

        ``lengths`` (B,) frames of 20 ms that hold sound, a row: what lies behind them is not seen.
        """
        c = self.config
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        mask = block_causal(x.shape[1], c.block, x.device)
        if lengths is not None:
            real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            mask = mask & real[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return x.unflatten(1, (-1, c.pooling)).mean(2)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Codes:
        """Waves (B, S) at 16 kHz, of which ``lengths`` (B,) samples are real -> codes (B, 1, N)."""
        c, per = self.config, self.config.samples_per_code
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[1], dtype=torch.long, device=wave.device)
        wave = F.pad(wave, (0, -wave.shape[1] % per))
        wave = wave * (torch.arange(wave.shape[1], device=wave.device) < lengths[:, None])
        codes = []
        for first in range(0, wave.shape[1], SAMPLES * c.context):
            window = wave[:, first : first + SAMPLES * c.context]
            frames = (-(-(lengths - first) // SAMPLES)).clamp(1, window.shape[1] // SAMPLES)
            codes.append(self.codebook(self.features(self.mel(window), frames)))
        return Codes(torch.cat(codes, dim=1)[:, None], -(-lengths // per))

    encode = forward

    def _scale(self, log_mel: Tensor, loudest: Tensor | None) -> Tensor:
        """Whisper's compression under the configured ceiling, or under ``loudest`` (B,), or the clip's own maximum."""
        if loudest is None:
            loudest = self._loudest(log_mel)
        return (torch.maximum(log_mel, loudest[:, None, None] - 8.0) + 4.0) / 4.0

    def _loudest(self, log_mel: Tensor) -> Tensor:
        if self.config.ceiling is not None:
            return log_mel.new_full((log_mel.shape[0],), self.config.ceiling)
        return log_mel.amax(dim=(-2, -1))

    # ------------------------------------------------------------------------------------------------ streaming
    def init_state(self, batch: int) -> GLM4TokenizerState:
        c, weight = self.config, self.positions
        return GLM4TokenizerState(
            wave=weight.new_zeros(batch, 0),
            past=weight.new_zeros(batch, 0),
            conv1=self.conv1.init_state(batch),
            conv2=self.conv2.init_state(batch),
            caches=tuple(init_cache(batch, c.n_heads, c.context, c.dim // c.n_heads, weight) for _ in self.layers),
            loudest=weight.new_zeros(batch),
            position=torch.zeros(batch, dtype=torch.long, device=weight.device),
        )

    def step(self, wave: Tensor, state: GLM4TokenizerState) -> tuple[Tensor, GLM4TokenizerState]:
        """Further samples (B, S) -> the codes (B, N) of the blocks that are complete by now, and the state."""
        c = self.config
        wave, codes = torch.cat([state.wave, wave], dim=1), []
        while True:
            frames = min(c.block, c.context - state.frames)
            needed, last = SAMPLES * frames, state.frames + frames == c.context
            if wave.shape[1] < needed + (0 if last else AHEAD):
                break
            ready, state = self._block(wave[:, : needed + (0 if last else AHEAD)], frames, last, state)
            codes.append(ready)
            wave = wave[:, needed:]
        done = torch.cat(codes, dim=1) if codes else torch.zeros(wave.shape[0], 0, dtype=torch.long, device=wave.device)
        return done, replace(state, wave=wave)

    def flush(self, state: GLM4TokenizerState) -> Tensor:
        """The codes (B, N) of what is left, padded with silence to a whole code."""
        wave = F.pad(state.wave, (0, -state.wave.shape[1] % self.config.samples_per_code))
        codes, empty = [], (wave.shape[1] - state.wave.shape[1]) // SAMPLES  # whole frames of padding are not seen
        while wave.shape[1]:  # more than a block lies here only when its look-ahead has not arrived
            frames = min(self.config.block, self.config.context - state.frames, wave.shape[1] // SAMPLES)
            rest = wave.shape[1] - SAMPLES * frames
            last = rest == 0 or state.frames + frames == self.config.context
            ready, state = self._block(
                wave[:, : SAMPLES * frames + (0 if last else AHEAD)], frames, last, state, 0 if rest else empty
            )
            codes.append(ready)
            wave = wave[:, SAMPLES * frames :]
        if codes:
            return torch.cat(codes, dim=1)
        return torch.zeros(wave.shape[0], 0, dtype=torch.long, device=wave.device)

    def _block(
        self, wave: Tensor, frames: int, last: bool, state: GLM4TokenizerState, empty: int = 0
    ) -> tuple[Tensor, GLM4TokenizerState]:
        """One block of ``frames``, the last ``empty`` of them padding, from its samples (and AHEAD more unless it is
        the ``last`` of its window)."""
        form, done = self.config.mel, state.frames
        first = done == 0
        half = form.n_fft // 2
        # the window's own edges are reflected, as offline; inside it real samples stand there
        before = wave[:, 1 : half + 1].flip(1) if first else state.past[:, -half:]
        after = wave[:, -half - 1 : -1].flip(1) if last else wave[:, SAMPLES * frames :]
        sound = wave[:, : SAMPLES * frames]
        needed = (2 * frames - 1) * form.hop_length + form.n_fft
        whole = torch.cat([before, sound, after], dim=1)[:, :needed]
        spectrum = mel_spectrum(whole, replace(form, centre=False, pad="none", drop_last=False))
        loudest = self._loudest(spectrum) if first else state.loudest
        mel = self._scale(spectrum, loudest)
        y, conv1 = self.conv1.step(mel, state.conv1)
        y, conv2 = self.conv2.step(F.gelu(y), state.conv2)
        x = F.gelu(y).transpose(1, 2) + self.positions[done : done + frames]
        caches, span = [], done + frames
        mask = (torch.arange(span, device=x.device) < span - empty)[None, None, None] if empty else None
        for layer, cache in zip(self.layers, state.caches, strict=True):
            x, cache = layer.step(x, cache, span, mask)
            caches.append(cache)
        codes = self.codebook(x.unflatten(1, (-1, self.config.pooling)).mean(2))
        if last:
            fresh = self.init_state(wave.shape[0])
            return codes, fresh
        past = torch.cat([state.past, sound], dim=1)[:, -half:]
        return codes, GLM4TokenizerState(
            state.wave, past, conv1, conv2, tuple(caches), loudest, state.position + frames
        )


def block_causal(frames: int, block: int, device: torch.device | None = None) -> Tensor:
    """bool (1, 1, T, T): a frame reads what lies before it and all of its own block."""
    index = torch.arange(frames, device=device)
    end = (index // block + 1) * block
    return (index < end[:, None])[None, None]
