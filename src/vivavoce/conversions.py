"""What ``viva pull`` does once with published files: read them through their layout table and write a model folder.

    whisper  float16 weights, tokenizer.json
    llama    int8 rows with scales, tokenizer.json, how a chat is written
    vits     float32 weights, symbol numbers and default scales of the voice
    silero   the networks of both sample rates in one file (``wide.*`` at 16 kHz, ``narrow.*`` at 8 kHz)

Run time reads only these folders (:mod:`vivavoce.checkpoints.native`).
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.asr.whisper_files import import_whisper
from vivavoce.catalogue import system_of
from vivavoce.checkpoints.layouts.silero import TORCHSCRIPT, TORCHSCRIPT_8K
from vivavoce.checkpoints.native import save_native
from vivavoce.checkpoints.read import Checkpoint, open_checkpoint, read_json
from vivavoce.checkpoints.rules import import_weights
from vivavoce.checkpoints.sources import WeightRow
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama_files import int8_parts, read_tokenizer
from vivavoce.lm.llama_four_bit import has_four_bits, int4_parts, int4_shapes, integer_shapes
from vivavoce.tts.vits_files import open_vits

CHATML = ("<|im_start|>", "<|im_end|>")


def convert(row: WeightRow, files: dict[str, Path], folder: Path) -> None:
    """The hook of :func:`vivavoce.checkpoints.store.pull`: published ``files`` of ``row`` -> a model folder."""
    weights = (
        files[row.sources[0].files[0].name] if row.sources[0].files[0].name in files else next(iter(files.values()))
    )
    SYSTEMS[system_of(row.name)](weights, files, folder)


def convert_whisper(weights: Path, files: Mapping[str, Path], folder: Path) -> None:
    """Any of Whisper's layouts, with ``tokenizer.json`` among ``files``."""
    opened = open_checkpoint(weights)
    checkpoint = Checkpoint(opened.format, opened.path, opened.tensors, opened.metadata, {**opened.files, **files})
    config, tensors = import_whisper(checkpoint)
    save_native(folder, "whisper", config, {key: tensor.half() for key, tensor in tensors.items()})
    shutil.copyfile(files["tokenizer.json"], folder / "tokenizer.json")


def convert_llama(weights: Path, files: Mapping[str, Path], folder: Path) -> None:
    """A GGUF file, or safetensors with their side files; the layers pass one by one, so memory stays small."""
    checkpoint = open_checkpoint(weights)
    tokenizer, _ = read_tokenizer(checkpoint)
    four = has_four_bits(checkpoint)  # what was published in 4 bits stays in 4 bits
    config, parts = int4_parts(checkpoint) if four else int8_parts(checkpoint)
    save_native(folder, "llama", config, {}, chat_settings(tokenizer.specials))
    shapes = int4_shapes(checkpoint) if four else integer_shapes(config)
    write_parts(folder / "model.safetensors", shapes, parts)
    tokenizer.save(folder / "tokenizer.json")


def write_parts(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], parts: Iterable[Mapping[str, Tensor]]
) -> None:
    """A safetensors file whose tensors come in parts, in any order; ``shapes`` tells type and shape beforehand."""
    about, end = {}, 0
    for key, (kind, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * (4 if kind == "F32" else 1)
        about[key] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(about, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % 64)  # matrices that stay mapped begin on a cache line
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(file.tell() + end)
        left = set(about)
        for part in parts:
            for key, tensor in part.items():
                begin, end = about[key]["data_offsets"]
                data = tensor.contiguous().numpy()
                if data.nbytes != end - begin:
                    raise CheckpointError(f"{key} has {data.nbytes} bytes instead of {end - begin}: the file is odd")
                file.seek(8 + len(head) + begin)
                data.tofile(file)
                left.discard(key)
    if left:
        raise CheckpointError(f"the file gave no weights for {', '.join(sorted(left)[:5])}: it cannot be converted")


def chat_settings(specials: Mapping[str, int]) -> dict[str, Any]:
    """How turns are written, told by the special tokens that exist; the template in the file is never run."""
    if all(name in specials for name in CHATML):
        return {"chat": "chatml", "stop": [name for name in (CHATML[1], "<|endoftext|>") if name in specials]}
    return {"chat": None, "stop": [name for name in ("</s>", "<|endoftext|>") if name in specials]}


def convert_vits(weights: Path, files: Mapping[str, Path], folder: Path) -> None:
    """A Piper voice: the graph with ``*.onnx.json`` among ``files``."""
    about = next((path for name, path in files.items() if name.endswith(".onnx.json")), None)
    if about is None:
        raise CheckpointError(f"{weights.name} is a Piper voice without its .onnx.json: put both in one folder")
    settings = voice_settings(about)
    model = open_vits(weights, sample_rate=settings["sample_rate"])
    save_native(folder, "vits", model.config, model.state_dict(), settings)
    for name, path in files.items():
        if name == "MODEL_CARD":
            shutil.copyfile(path, folder / name)


def voice_settings(path: Path) -> dict[str, Any]:
    """The symbol numbers, language, speakers and scales in a Piper configuration."""
    about = read_json(path)
    try:
        inference = about.get("inference", {})
        return {
            "sample_rate": int(about["audio"]["sample_rate"]),
            "language": str(about["espeak"]["voice"]),
            "symbols": {str(symbol): [int(i) for i in ids] for symbol, ids in about["phoneme_id_map"].items()},
            "speakers": {str(name): int(number) for name, number in (about.get("speaker_id_map") or {}).items()},
            "noise_scale": float(inference.get("noise_scale", 0.667)),
            "duration_noise_scale": float(inference.get("noise_w", 0.8)),
            "length_scale": float(inference.get("length_scale", 1.0)),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path.name} is not a Piper configuration: fetch it again") from None


def convert_silero(weights: Path, files: Mapping[str, Path], folder: Path) -> None:
    """The TorchScript archive, read as data: both networks."""
    checkpoint = open_checkpoint(weights)
    tensors: dict[str, Tensor] = {}
    for prefix, layout, config in (
        ("wide", TORCHSCRIPT, SileroConfig()),
        ("narrow", TORCHSCRIPT_8K, SileroConfig.narrowband()),
    ):
        with torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in Silero(config).state_dict().items()}
        ours = import_weights(layout, checkpoint.tensors, shapes)
        tensors |= {f"{prefix}.{key}": tensor for key, tensor in ours.items()}
    save_native(folder, "silero", SileroConfig(), tensors)


SYSTEMS: dict[str, Callable[[Path, Mapping[str, Path], Path], None]] = {
    "whisper": convert_whisper,
    "llama": convert_llama,
    "vits": convert_vits,
    "silero": convert_silero,
}
