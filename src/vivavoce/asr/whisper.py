"""Whisper (Radford et al. 2022, arXiv 2212.04356): an encoder hears 30 s of log-mel, a decoder writes text and times.

    mel (B, M, 3000) -> conv, conv / 2 -> + sinusoids -> Encoder -> memory (B, 1500, D)
    tokens (B, L) -> embedding + positions -> [self-attention, attention over memory, feed-forward] x layers
        -> logits (B, L, V)

Bricks: nn/encoder.py, nn/attention.py. The rules of decoding live in whisper_decoding.py, word times in
whisper_timing.py, long files in whisper_recognizer.py. Attention projections are stored fused (qkv, kv), which the
paper's code keeps apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import MelFormat
from vivavoce.nn.attention import KVCache, append, attend, init_cache, join_heads, split_heads, visible
from vivavoce.nn.encoder import Encoder
from vivavoce.nn.streaming import module_list

SAMPLE_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Sizes of the published checkpoints; ``alignment_heads`` are (layer, head) pairs whose attention follows the
    words.
    """

    n_mels: int = 80
    audio_context: int = 1500  # encoder positions of 20 ms: 30 s
    audio_dim: int = 512
    audio_heads: int = 8
    audio_layers: int = 6
    vocab_size: int = 51_865
    text_context: int = 448
    text_dim: int = 512
    text_heads: int = 8
    text_layers: int = 6
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @classmethod
    def sized(cls, name: str) -> WhisperConfig:
        """A published size: tiny, base, small, medium, large-v2, large-v3, large-v3-turbo, with ``.en`` where it
        exists.
        """
        dim, heads, layers = {
            "tiny": (384, 6, 4),
            "base": (512, 8, 6),
            "small": (768, 12, 12),
            "medium": (1024, 16, 24),
            "large": (1280, 20, 32),
        }[name.split("-")[0].removesuffix(".en")]
        newest = "v3" in name
        return cls(
            n_mels=128 if newest else 80,
            audio_dim=dim,
            audio_heads=heads,
            audio_layers=layers,
            vocab_size=51_864 if name.endswith(".en") else 51_866 if newest else 51_865,
            text_dim=dim,
            text_heads=heads,
            text_layers=4 if name.endswith("turbo") else layers,
        )

    @classmethod
    def tiny(cls) -> WhisperConfig:
        """Small enough for a test: two layers of width 24, 2 s of sound."""
        return cls(
            n_mels=20, audio_context=100, audio_dim=24, audio_heads=3, audio_layers=2,
            vocab_size=2300, text_context=64, text_dim=24, text_heads=3, text_layers=2,
        )  # fmt: skip

    @property
    def mel(self) -> MelFormat:
        return MelFormat.whisper(self.n_mels)

    @property
    def heads_for_alignment(self) -> tuple[tuple[int, int], ...]:
        """The published pairs, or every head of the upper half of the decoder where none were published."""
        if self.alignment_heads:
            return self.alignment_heads
        return tuple((i, j) for i in range(self.text_layers // 2, self.text_layers) for j in range(self.text_heads))


@dataclass(frozen=True)
class Memory:
    """What the decoder reads of the sound: per layer keys (B, H, D, T), stored transposed for one-row products, and
    values (B, H, T, D).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class AudioEncoder(nn.Module):
    """Log-mel (B, M, 2T) -> memory (B, T, D) with T = audio_context."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.conv1 = nn.Conv1d(config.n_mels, config.audio_dim, 3, padding=1)
        self.conv2 = nn.Conv1d(config.audio_dim, config.audio_dim, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(config.audio_context, config.audio_dim))
        self.stack = Encoder(config.audio_dim, config.audio_heads, config.audio_layers, 4 * config.audio_dim)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)  # (B, T, D)
        return self.stack(x + self.positions[: x.shape[1]])


class TextLayer(nn.Module):
    """One decoder block: causal self-attention, attention over the sound, feed-forward; all pre-norm."""

    def __init__(self, dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_query = nn.Linear(dim, dim)
        self.cross_kv = nn.Linear(dim, 2 * dim)
        self.cross_out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, 4 * dim)
        self.ffn_out = nn.Linear(4 * dim, dim)

    def remember(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, T, D) -> this layer's keys (B, H, D, T) and values (B, H, T, D)."""
        key, value = (split_heads(part, self.n_heads) for part in self.cross_kv(encoded).chunk(2, dim=-1))
        return key.transpose(2, 3).contiguous(), value.contiguous()

    def forward(
        self, x: Tensor, cache: KVCache, keys: Tensor, values: Tensor, mask: Tensor | None, span: int
    ) -> tuple[Tensor, KVCache, Tensor]:
        """x (N, L, D), N a multiple of the memory's batch -> (x, cache, attention logits to the sound (N, H, L, T))."""
        query, key, value = (
            split_heads(part, self.n_heads) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        cache = append(cache, key, value, span)
        x = x + self.out(join_heads(attend(query, cache.key[:, :, :span], cache.value[:, :, :span], mask)))

        query = split_heads(self.cross_query(self.cross_norm(x)), self.n_heads)
        rows, heads, length, width = query.shape
        # beams of one sound share its keys and values: they become further rows of one matrix product
        shared = (
            query.reshape(keys.shape[0], -1, heads, length, width)
            .transpose(1, 2)
            .reshape(keys.shape[0], heads, -1, width)
        )
        logits = torch.matmul(shared * width**-0.5, keys)
        seen = torch.matmul(torch.softmax(logits, dim=-1), values)  # (B, H, beams x L, D)
        seen = seen.reshape(keys.shape[0], heads, -1, length, width).transpose(1, 2).reshape(rows, heads, length, width)
        x = x + self.cross_out(join_heads(seen))
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x)))), cache, logits


class TextDecoder(nn.Module):
    """Tokens and memory -> logits, one step at a time; the output matrix is the embedding."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.n_heads = config.text_heads
        self.embedding = nn.Embedding(config.vocab_size, config.text_dim)
        self.positions = nn.Parameter(torch.zeros(config.text_context, config.text_dim))
        self.layers = module_list(TextLayer(config.text_dim, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.text_dim)
        self.head = nn.Linear(config.text_dim, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def remember(self, encoded: Tensor) -> Memory:
        """Prepare every layer's view of the sound once: (B, T, D) -> Memory."""
        keys, values = zip(*(layer.remember(encoded) for layer in self.layers), strict=True)
        return Memory(keys, values)

    def init_state(self, batch: int, capacity: int | None = None) -> tuple[KVCache, ...]:
        """Empty caches, one a layer; capacity in tokens (default: the whole text context)."""
        like = self.positions
        width = like.shape[1] // self.n_heads
        return tuple(init_cache(batch, self.n_heads, capacity or like.shape[0], width, like) for _ in self.layers)

    def hidden(
        self, tokens: Tensor, state: tuple[KVCache, ...], memory: Memory, span: int
    ) -> tuple[Tensor, tuple[KVCache, ...], list[Tensor]]:
        """(N, L) tokens that end at position ``span`` -> (normed states (N, L, D), state, attention logits of each
        layer).
        """
        length = tokens.shape[1]
        position = state[0].position
        steps = position[:, None] + torch.arange(length, device=tokens.device)
        x = self.embedding(tokens) + self.positions[steps]
        mask = visible(position, length, span)
        caches, looks = [], []
        for layer, cache, keys, values in zip(self.layers, state, memory.keys, memory.values, strict=True):
            x, cache, look = layer(x, cache, keys, values, mask, span)
            caches.append(cache)
            looks.append(look)
        return self.norm(x), tuple(caches), looks

    def step(
        self, tokens: Tensor, state: tuple[KVCache, ...], memory: Memory, span: int
    ) -> tuple[Tensor, tuple[KVCache, ...]]:
        """Feed (N, L) tokens; returns the logits after the last one (N, V) and the state, which the call consumed."""
        x, state, _ = self.hidden(tokens, state, memory, span)
        return self.head(x[:, -1]), state

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Teacher forcing: tokens (B, L) -> logits (B, L, V)."""
        x, _, _ = self.hidden(tokens, self.init_state(tokens.shape[0], tokens.shape[1]), memory, tokens.shape[1])
        return self.head(x)


class Whisper(nn.Module):
    """Encoder and decoder; ``forward`` is the training form, :meth:`TextDecoder.step` the one that writes."""

    def __init__(self, config: WhisperConfig):
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config)
        self.decoder = TextDecoder(config)

    def encode(self, mel: Tensor) -> Tensor:
        """Log-mel (B, M, 3000) -> (B, 1500, D)."""
        return self.encoder(mel)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """mel (B, M, 3000), tokens (B, L) -> logits (B, L, V)."""
        return self.decoder(tokens, self.decoder.remember(self.encoder(mel)))

    def loss_terms(self, mel: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Mean cross-entropy of each next token: tokens (B, L) with start sequence and end token, lengths (B,) real
        ones.
        """
        logits = self(mel, tokens[:, :-1])
        real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
        return F.cross_entropy(logits[real], tokens[:, 1:][real])

    def alignment_logits(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attention logits of the alignment heads (A, L, T) and token logits (L, V) for one sequence (1, L)."""
        state = self.decoder.init_state(1, tokens.shape[1])
        x, _, looks = self.decoder.hidden(tokens, state, memory, tokens.shape[1])
        chosen = torch.stack([looks[layer][0, head] for layer, head in self.config.heads_for_alignment])
        return chosen, self.decoder.head(x)[0]
