"""Every catalogue row at a tiny size, in the form that the shared laws need.

``tiny`` makes it, ``STREAMS`` runs it offline and piece by piece, ``layouts`` pairs each published layout with a model
that it can hold. A new row adds an entry to each; the tests say which is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import randomised
from vivavoce.api import create
from vivavoce.asr.whisper import Whisper
from vivavoce.catalogue import CATALOGUE, reference
from vivavoce.checkpoints.layouts import llama as llama_layouts
from vivavoce.checkpoints.rules import Layout
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_plus import VITAAudioPlus, VITAAudioPlusConfig
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.nn.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.tts.vits import VITS, VITSConfig
from vivavoce.vocoders.hift import HiFT


def hifigan_config(block_type: int = 2) -> HiFiGANConfig:
    return replace(HiFiGANConfig.tiny(), block_type=1 if block_type == 1 else 2)


def vits_config(trainable: bool = True) -> VITSConfig:
    decoder = replace(hifigan_config(), in_channels=12, post_bias=False)
    return replace(VITSConfig.tiny(), decoder=decoder, trainable=trainable)


def llama_config(tied: bool) -> LlamaConfig:
    """Three heads that share one key head."""
    return replace(LlamaConfig.tiny(), tied=tied)


def tiny(stem: str) -> nn.Module:
    """The smallest model of a row, nothing left at zero: the size ``tiny-test``, or a small one made here."""
    if stem == "vits":
        return _stirred(vits_config())
    return randomised(create(stem, "tiny-test"))


def _stirred(config: VITSConfig) -> VITS:
    """VITS as it starts, with noise on top: gains stay near one, and what starts at zero does not stay there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VITS(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- streaming


@dataclass(frozen=True)
class Stream:
    """How a row runs offline and in pieces: ``unit`` columns of input to a tick, outputs (B, T, ...) with time second.

    ``late``: how many output columns the stream withholds; ``ahead``: ticks that an output may look ahead; ``grows``:
    attention reads the past, so the work of a step may grow by the same small amount each time. ``together``: the rows
    of a batch begin at the same time.
    """

    model: nn.Module
    draw: Callable[[int, int, int], Tensor]  # batch, ticks, seed -> input, time last
    start: Callable[[int], Any]
    step: Callable[[Tensor, Any], tuple[Tensor, Any]]
    flush: Callable[[Any], Tensor] | None
    whole: Callable[[Tensor], Tensor]
    unit: int = 1
    late: int = 0
    ahead: int = 0
    grows: bool = False
    together: bool = False

    def run(self, x: Tensor, ticks: list[int], state: Any = None) -> Tensor:
        """The stream cut into pieces of so many ticks, without the columns before its start and behind its end."""
        state = self.start(x.shape[0]) if state is None else state
        made = []
        for piece in x.split([n * self.unit for n in ticks], dim=-1):
            y, state = self.step(piece, state)
            made.append(y)
        if self.flush is not None:
            made.append(self.flush(state))
        y = torch.cat(made, dim=1)
        return y[:, self.late :][:, : y.shape[1] - self.late]


def _silero() -> Stream:
    model = tiny("silero")
    assert isinstance(model, Silero)
    chunk = model.config.chunk
    return Stream(model, lambda b, n, seed: noise(b, n * chunk, seed=seed), model.init_state, model.step, None, model,
                  unit=chunk)  # fmt: skip


def _hifigan() -> Stream:
    model = tiny("hifigan")
    assert isinstance(model, HiFiGAN)
    return Stream(model, lambda b, n, seed: noise(b, 6, n, seed=seed), model.init_state, model.step, model.flush, model,
                  late=model.delay, ahead=model.lookahead)  # fmt: skip


def _vits() -> Stream:
    model = tiny("vits")
    assert isinstance(model, VITS)
    return Stream(model, lambda b, n, seed: noise(b, 12, n, seed=seed), model.init_state, model.step, model.flush,
                  model.decode, late=model.delay, ahead=model.lookahead)  # fmt: skip


def _llama() -> Stream:
    model = tiny("llama")
    assert isinstance(model, Llama)

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = model.decoder.step(model.embedding(tokens), state)
        return model.head(hidden), state

    def draw(batch: int, ticks: int, seed: int) -> Tensor:
        return torch.randint(97, (batch, ticks), generator=torch.Generator().manual_seed(seed))

    return Stream(model, draw, model.init_state, step, None, model, grows=True)


def _whisper() -> Stream:
    """The writer; what it hears is one memory for all rows."""
    model = tiny("whisper")
    assert isinstance(model, Whisper)
    with torch.inference_mode():
        heard = model.encode(noise(1, 20, 200))

    def memory(batch: int):
        return model.decoder.remember(heard.expand(batch, -1, -1))

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        span = int(state[0].position.max()) + tokens.shape[1]
        hidden, state, _ = model.decoder.hidden(tokens, state, memory(tokens.shape[0]), span)
        return model.decoder.head(hidden), state

    def draw(batch: int, ticks: int, seed: int) -> Tensor:
        return torch.randint(2300, (batch, ticks), generator=torch.Generator().manual_seed(seed))

    return Stream(model, draw, model.decoder.init_state, step, None,
                  lambda tokens: model.decoder(tokens, memory(tokens.shape[0])), grows=True)  # fmt: skip


def _glm4_decoder() -> Stream:
    """The causal form; noise is a function of the token, so that it moves with the input."""
    model = tiny("glm4_decoder")
    assert isinstance(model, GLM4Decoder)

    def noisy(tokens: Tensor) -> Tensor:
        return tokens.repeat_interleave(model.frames(1), dim=1)[:, None].float().sin().expand(-1, 6, -1)

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        mel, state = model.step(tokens, state, noisy(tokens))
        return mel.transpose(1, 2), state

    def draw(batch: int, ticks: int, seed: int) -> Tensor:
        return torch.randint(32, (batch, ticks), generator=torch.Generator().manual_seed(seed))

    return Stream(model, draw, model.init_state, step, None,
                  lambda tokens: model(tokens, noisy(tokens)).transpose(1, 2))  # fmt: skip


def _glm4_tokenizer() -> Stream:
    """Whole blocks of a long window; a block is given out when the 40 samples behind it are there."""
    model = randomised(GLM4Tokenizer(replace(GLM4TokenizerConfig.tiny(), context=1600)))
    assert isinstance(model, GLM4Tokenizer)
    unit = 320 * model.config.block

    def step(wave: Tensor, state: Any) -> tuple[Tensor, Any]:
        codes, state = model.step(wave, state)
        return codes.float(), state

    return Stream(model, lambda b, n, seed: 0.1 * noise(b, n * unit, seed=seed), model.init_state, step,
                  lambda state: model.flush(state).float(), lambda wave: model(wave).values[:, 0].float(), unit=unit,
                  ahead=1, grows=True, together=True)  # fmt: skip


def _hift() -> Stream:
    model = tiny("hift")
    assert isinstance(model, HiFT)
    return Stream(model, lambda b, n, seed: noise(b, 6, n, seed=seed), model.init_state, model.step, model.flush, model,
                  late=model.delay, ahead=model.lookahead)  # fmt: skip


def _vita_audio() -> Stream:
    """The backbone; its modules are followed by tests/dialogue/test_vita_audio.py."""
    model = randomised(VITAAudio(VITAAudioConfig.tiny().with_modules(0)))
    assert isinstance(model, VITAAudio)

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = model.step(tokens, state)
        return model.logits(hidden), state

    def draw(batch: int, ticks: int, seed: int) -> Tensor:
        return torch.randint(61, (batch, ticks), generator=torch.Generator().manual_seed(seed))

    return Stream(model, draw, model.init_state, step, None, lambda tokens: model.logits(model(tokens)[0]),
                  grows=True)  # fmt: skip


def _vita_audio_plus() -> Stream:
    """The backbone without sound; with it, see tests/dialogue/test_vita_audio_plus.py."""
    model = randomised(VITAAudioPlus(replace(VITAAudioPlusConfig.tiny(), model=VITAAudioConfig.tiny().with_modules(0))))
    assert isinstance(model, VITAAudioPlus)

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = model.step(tokens, state)
        return model.logits(hidden), state

    def draw(batch: int, ticks: int, seed: int) -> Tensor:
        return torch.randint(61, (batch, ticks), generator=torch.Generator().manual_seed(seed))

    return Stream(model, draw, model.init_state, step, None, lambda tokens: model.logits(model(tokens)[0]),
                  grows=True)  # fmt: skip


STREAMS: dict[str, Callable[[], Stream]] = {
    "silero": _silero,
    "hifigan": _hifigan,
    "vits": _vits,
    "glm4_tokenizer": _glm4_tokenizer,
    "glm4_decoder": _glm4_decoder,
    "hift": _hift,
    "vita_audio": _vita_audio,
    "vita_audio_plus": _vita_audio_plus,
    "llama": _llama,
    "whisper": _whisper,
}

# ---------------------------------------------------------------------------------------------------- layouts


def _llama_layout(published: Callable[..., Layout], tied: bool) -> Layout:
    decoder = llama_config(tied).decoder
    table = published(decoder.n_heads, decoder.n_kv_heads)
    if published is llama_layouts.gguf:
        return llama_layouts.with_head(table, "token_embd.weight", "output.weight", tied)
    return llama_layouts.with_head(table, "model.embed_tokens.weight", "lm_head.weight", tied)


def layouts() -> Iterator[tuple[str, Layout, Callable[[], nn.Module]]]:
    """(name, table, a model it can hold) of every layout that a row names."""
    for row in CATALOGUE:
        for name, path in row.layouts.items():
            table = reference(path)
            if row.stem == "vita_audio_plus":
                decoder = VITAAudioConfig.tiny().decoder
                table = table(decoder.n_heads, decoder.n_kv_heads, decoder.n_layers, 3)
                yield f"{row.stem}, {name}", table, lambda: tiny("vita_audio_plus")
            elif row.stem == "vita_audio":
                decoder = VITAAudioConfig.tiny().decoder
                table = table(decoder.n_heads, decoder.n_kv_heads, decoder.n_layers, 3)
                yield f"{row.stem}, {name}", table, lambda: tiny("vita_audio")
            elif row.stem == "llama":
                for tied in (True, False):
                    label = f"llama, {name}, {'tied' if tied else 'own head'}"
                    yield label, _llama_layout(table, tied), lambda tied=tied: randomised(Llama(llama_config(tied)))
            else:
                yield f"{row.stem}, {name}", table, lambda table=table, stem=row.stem: _holder(stem, table)


def _holder(stem: str, table: Layout) -> nn.Module:
    if stem == "silero":
        return randomised(Silero(SileroConfig.narrowband() if "8 kHz" in table.name else SileroConfig()))
    if stem == "glm4_decoder":
        return randomised(GLM4Decoder(GLM4DecoderConfig.tiny()))
    if stem == "hifigan":
        return randomised(HiFiGAN(hifigan_config(2 if table.name.endswith("2") else 1)))
    if stem == "vits":
        return _stirred(vits_config(trainable=table.name != "vits piper"))
    return tiny(stem)
