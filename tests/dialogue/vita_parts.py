"""A VITA-Audio of tiny random parts that fit each other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from tests.tiny import randomised
from torch import nn

from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_prompts import INTERLEAVES, VITATokens
from vivavoce.dialogue.vita_audio_session import VITAAudioParts
from vivavoce.recipes.vita_audio_records import make_tokenizer, vocabulary_size
from vivavoce.vocoders.hift import HiFT, HiFTConfig

CODES = 32


@cache
def tokens() -> VITATokens:
    return VITATokens(make_tokenizer(CODES, 400))


def stirred(module: nn.Module, seed: int) -> nn.Module:
    """As it starts, with noise on top."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return module.eval().requires_grad_(False)


@cache
def parts(modules: int = 10, reads: int | None = 4) -> VITAAudioParts:
    config = VITAAudioConfig.tiny()
    config = replace(
        config, vocab_size=vocabulary_size(tokens()), modules=modules, module_reads=reads,
        decoder=replace(config.decoder, context=256),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = VITAAudio(config), GLM4Tokenizer(GLM4TokenizerConfig.tiny())
        decoder = GLM4Decoder(replace(GLM4DecoderConfig.tiny_causal(), vocab_size=CODES, lookahead=1))
        vocoder = HiFT(HiFTConfig.tiny())
    return VITAAudioParts(
        randomised(model), tokens(), stirred(tokenizer, 1), stirred(decoder, 2), stirred(vocoder, 3),
        INTERLEAVES["boost"], mean=-1.0, scale=0.5, name="tiny",
    )  # fmt: skip
