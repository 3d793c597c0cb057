"""Llama (arXiv 2302.13971) and Qwen2 (arXiv 2407.10671): a decoder-only language model at any size.

    tokens (B, T) -> embedding -> Decoder (nn/decoder.py) -> head -> logits (B, T, V)

SmolLM2 is a Llama with a tied head; Qwen2.5 is the same stack with biases on query, key and value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.attention import KVCache
from vivavoce.nn.decoder import Decoder, DecoderConfig


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A decoder stack with a vocabulary; ``tied``: the head is the embedding."""

    decoder: DecoderConfig
    vocab_size: int
    tied: bool = True

    @classmethod
    def smollm2_135m(cls) -> LlamaConfig:
        return cls(
            decoder=DecoderConfig(
                dim=576,
                n_layers=30,
                n_heads=9,
                n_kv_heads=3,
                head_dim=64,
                ffn_dim=1536,
                context=8192,
                rope_base=100_000.0,
            ),
            vocab_size=49_152,
        )

    @classmethod
    def qwen25(cls, size: str) -> LlamaConfig:
        """Qwen2.5 ``"0.5b"``, ``"1.5b"`` or ``"7b"``."""
        dim, layers, heads, kv, ffn, vocabulary, tied = {
            "0.5b": (896, 24, 14, 2, 4864, 151_936, True),
            "1.5b": (1536, 28, 12, 2, 8960, 151_936, True),
            "7b": (3584, 28, 28, 4, 18_944, 152_064, False),
        }[size]
        decoder = DecoderConfig(
            dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv, head_dim=dim // heads, ffn_dim=ffn, context=32_768,
            rope_base=1e6, norm_eps=1e-6, qkv_bias=True,
        )  # fmt: skip
        return cls(decoder=decoder, vocab_size=vocabulary, tied=tied)

    @classmethod
    def tiny(cls) -> LlamaConfig:
        """Three heads on one key head, biases, 64 positions: for tests."""
        decoder = DecoderConfig(
            dim=24, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=8, ffn_dim=40, context=64, qkv_bias=True
        )
        return cls(decoder=decoder, vocab_size=97)

    def with_context(self, context: int) -> LlamaConfig:
        """The same model with room for another number of positions."""
        return replace(self, decoder=replace(self.decoder, context=context))


class Llama(nn.Module):
    """Logits of the next token. ``prefill`` and ``step`` are one function: T tokens further."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.decoder.dim)
        self.decoder = Decoder(config.decoder)
        self.head = nn.Linear(config.decoder.dim, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def init_state(self, batch: int, capacity: int | None = None) -> tuple[KVCache, ...]:
        return self.decoder.init_state(batch, capacity)

    def step(
        self, tokens: Tensor, state: tuple[KVCache, ...], span: int | None = None
    ) -> tuple[Tensor, tuple[KVCache, ...]]:
        """(B, T) further tokens -> logits after the last one (B, V) and the state; the state given is consumed."""
        x, state = self.decoder.step(self.embedding(tokens), state, span)
        return self.head(x[:, -1:])[:, 0], state

    def logits(self, tokens: Tensor) -> Tensor:
        """Teacher forcing: (B, T) -> (B, T, V)."""
        return self.head(self.decoder(self.embedding(tokens)))

    forward = logits

    def loss_terms(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mean cross-entropy of next tokens: tokens (B, T), mask (B, T) True where a token is to be learned."""
        logits = self.logits(tokens[:, :-1])
        return F.cross_entropy(logits[mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])
