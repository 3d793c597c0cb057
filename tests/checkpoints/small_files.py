"""Small weight files of every format, written by hand for the tests of the readers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.checkpoints.ctranslate2 import write_ctranslate2
from vivavoce.checkpoints.gguf import TYPES

WEIGHT = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
BIAS = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float16)
STATE = {"layer.weight": WEIGHT, "layer.bias": BIAS}


def gguf_bytes(tensors: dict[str, tuple[int, tuple[int, ...], bytes]], metadata: dict[str, object]) -> bytes:
    """A GGUF file; each tensor is (type number, row-major shape, block bytes)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        if isinstance(value, str):
            head += text(key) + struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            head += text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
        else:
            head += text(key) + struct.pack("<Ii", 5, value)
    data = b""
    for name, (kind, shape, blocks) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += blocks + bytes(-len(blocks) % 32)
    return head + bytes(-len(head) % 32) + data


def message(*fields: tuple[int, bytes | int | str]) -> bytes:
    """One protobuf message."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    out = b""
    for number, value in fields:
        data = value.encode() if isinstance(value, str) else value
        out += varint(number << 3) + varint(data) if isinstance(data, int) else varint(number << 3 | 2)
        out += b"" if isinstance(data, int) else varint(len(data)) + data
    return out


def onnx_bytes() -> bytes:
    """A graph with a named bias, a numbered weight used by a convolution, and a folded constant."""
    raw = WEIGHT.numpy().tobytes()
    weight = message((1, 3), (1, 4), (2, 1), (8, "onnx::Conv_12"), (9, raw))
    bias = message((1, b"\x03"), (2, 10), (8, "layer.bias"), (5, b"".join(_varints(BIAS))))
    folded = message((2, 7), (8, "/layer/Constant_output_0"), (9, struct.pack("<q", 5)))
    kernel = message((1, "kernel_shape"), (8, 4), (8, 3), (20, 7))
    node = message(
        (1, "x"), (1, "onnx::Conv_12"), (1, "layer.bias"), (2, "y"), (3, "/layer/Conv"), (4, "Conv"), (5, kernel)
    )
    value = message((1, "value"), (5, message((1, 2), (2, 1), (4, np.float32([1, 2]).tobytes()))))
    constant = message((2, "two"), (3, "/c/Constant"), (4, "Constant"), (5, value))
    graph = message((1, node), (1, constant), (5, weight), (5, bias), (5, folded), (11, message((1, "x"))))
    return message((1, 8), (7, graph), (14, message((1, "author"), (2, "us"))))


def _varints(values: Tensor) -> list[bytes]:
    return [message((0, int(value)))[1:] for value in values.view(torch.int16).to(torch.int64) & 0xFFFF]


def write_all(folder: Path) -> dict[str, Path]:
    """One small file per format."""
    paths = {name: folder / name for name in ("a.safetensors", "zip.pt", "old.pt", "model.bin", "a.gguf", "a.onnx")}
    save_file(STATE, paths["a.safetensors"], {"note": "hello"})
    torch.save({"model": STATE, "step": 3}, paths["zip.pt"])
    torch.save({"model": STATE, "step": 3}, paths["old.pt"], _use_new_zipfile_serialization=False)
    quantised = torch.tensor([[127, -64, 3, 0], [1, 2, 3, 4], [9, 9, 9, 127]], dtype=torch.int8)
    variables = {
        "a/weight": quantised,
        "a/weight_scale": torch.tensor([10.0, 20.0, 40.0]),
        "a/bias": BIAS,
        "heads": torch.tensor(3, dtype=torch.int16),
    }
    write_ctranslate2(paths["model.bin"], "ToySpec", 3, variables, {"b/weight": "a/weight"})
    blocks = {
        kind: np.random.default_rng(kind).integers(0, 60, 2 * block.bytes, np.uint8).tobytes()
        for kind, block in TYPES.items()
    }
    tensors = {f"t{kind}": (kind, (2, block.weights), blocks[kind]) for kind, block in TYPES.items()}
    metadata = {"general.architecture": "toy", "tokens": ["a", "b"], "n": 7}
    paths["a.gguf"].write_bytes(gguf_bytes(tensors, metadata))
    paths["a.onnx"].write_bytes(onnx_bytes())
    return paths
