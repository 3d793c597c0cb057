"""Model folders with random weights, small enough for every test: a cache that looks as if models had been pulled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine
from torch import Tensor, nn

from vivavoce.asr.whisper import Whisper, WhisperConfig
from vivavoce.checkpoints.native import save_native
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.nn.quantized import quantize_rows
from vivavoce.tts.vits import VITS, VITSConfig

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WHISPER_TOKENS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
    *(f"<|{0.02 * i:.2f}|>" for i in range(101)),
)
PHONEMES = " .,?!abdefhijklmnoprstuvwzæðŋɑɐəɚɛɪɹɾʃʊˈˌ"[:37]


def tokenizer(path: Path, specials: tuple[str, ...]) -> int:
    """Write a tokenizer of single bytes and the special tokens; gives the size of its vocabulary."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Engine(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    engine.save(str(path))
    return engine.get_vocab_size()


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Normal weights everywhere, so that nothing is zero by default."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def whisper_config(vocab_size: int) -> WhisperConfig:
    return replace(WhisperConfig.tiny(), vocab_size=vocab_size)


def write_whisper(folder: Path, languages: bool = True) -> None:
    folder.mkdir(parents=True)
    specials = WHISPER_TOKENS if languages else tuple(token for token in WHISPER_TOKENS if len(token) != 6)
    config = whisper_config(tokenizer(folder / "tokenizer.json", specials))
    save_native(folder, "whisper", config, {k: v.half() for k, v in randomised(Whisper(config)).state_dict().items()})


def write_silero(folder: Path) -> None:
    """Networks that take anything for speech."""
    tensors: dict[str, Tensor] = {}
    for prefix, config in (("wide", SileroConfig()), ("narrow", SileroConfig.narrowband())):
        model = randomised(Silero(config))
        model.head.bias.data.fill_(5.0)
        tensors |= {f"{prefix}.{key}": value for key, value in model.state_dict().items()}
    save_native(folder, "silero", SileroConfig(), tensors)


def voice_settings() -> dict[str, Any]:
    symbols = {symbol: [i] for i, symbol in enumerate(("_", "^", "$", *PHONEMES))}
    return {"sample_rate": 8000, "language": "en-us", "symbols": symbols, "speakers": {}, "noise_scale": 0.667,
            "duration_noise_scale": 0.8, "length_scale": 1.0}  # fmt: skip


def write_vits(folder: Path) -> None:
    config = VITSConfig.tiny()
    torch.manual_seed(1)
    save_native(folder, "vits", config, VITS(config).state_dict(), voice_settings())


def int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as rows and scales, the rest as it is."""
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.dim() == 2:
            made[key], made[f"{key}_scale"] = quantize_rows(value)
        else:
            made[key] = value
    return made


def write_llama(folder: Path) -> None:
    folder.mkdir(parents=True)
    size = tokenizer(folder / "tokenizer.json", CHAT_TOKENS)
    config = replace(LlamaConfig.tiny(), vocab_size=size).with_context(512)
    save_native(folder, "llama", config, int8(randomised(Llama(config)).state_dict()), {"chat": "chatml"})


WRITERS = {
    "whisper-base": write_whisper,
    "whisper-tiny.en": lambda folder: write_whisper(folder, languages=False),
    "silero-vad": write_silero,
    "vits-joe": write_vits,
    "smollm2-135m-instruct": write_llama,
}


def write_cache(cache: Path) -> None:
    """All tiny models under the names of published ones."""
    import hashlib

    for name, write in WRITERS.items():
        folder = cache / "models" / name
        write(folder)
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        record = {"name": name, "licence": "none", "origin": "random", "files": files}
        (folder / "manifest.json").write_text(json.dumps(record))


def tone(seconds: float, sample_rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """(S, C) float32: a rising tone, another in each channel."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    waves = [0.3 * np.sin(2 * np.pi * (200 + 50 * c) * t * (1 + t)) for c in range(channels)]
    return np.stack(waves, axis=1).astype(np.float32)
