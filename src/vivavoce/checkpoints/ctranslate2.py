"""CTranslate2 ``model.bin``: a flat list of named variables, float or int8 with a scale per row.

Layout (little-endian): u32 version, spec name, u32 revision, u32 count; per variable name, u8 rank, u32 sizes, u8 type,
u32 bytes, data; u32 aliases, then pairs of names. A name is a u16 length that counts a closing NUL, then the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivavoce.checkpoints.binary import Cursor, LazyTensors, damaged, element_count, map_file
from vivavoce.errors import CheckpointError

VERSIONS = range(4, 7)
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Variable:
    """One stored variable: its name, sizes, type as an index of ``TYPES``, and raw bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: memoryview

    def tensor(self) -> Tensor:
        """A copy of the variable in its stored type."""
        if not len(self.data):
            return torch.empty(self.shape, dtype=TYPES[self.kind])
        raw = torch.from_numpy(np.frombuffer(self.data, np.uint8).copy())
        return raw.view(TYPES[self.kind]).reshape(self.shape)


@dataclass(frozen=True)
class CTranslate2File:
    """A whole file: ``tensors`` are dequantised, without the scales; ``variables`` are what is stored, in order."""

    version: int
    spec: str
    revision: int
    variables: dict[str, Variable]
    aliases: dict[str, str]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def open_ctranslate2(path: Path) -> CTranslate2File:
    """Map a file; quantised weights are divided by their scales when they are asked for."""
    cursor = Cursor(map_file(path), path)
    version = cursor.integer("I")
    if version not in VERSIONS:
        raise damaged(path, f"CTranslate2 version {version} is unknown")
    spec, revision = _name(cursor), cursor.integer("I")
    variables: dict[str, Variable] = {}
    for _ in range(cursor.count("I", 9)):
        variable = _variable(cursor)
        if variable.name in variables:
            raise damaged(path, f"{variable.name} comes twice")
        variables[variable.name] = variable
    aliases: dict[str, str] = {}
    for _ in range(cursor.count("I", 6)):
        alias, target = _name(cursor), _name(cursor)
        if target not in variables:
            raise damaged(path, f"the alias {alias} leads nowhere")
        aliases[alias] = target
    if cursor.left:
        raise damaged(path, "bytes follow its end")
    scales = {f"{name}_scale" for name, variable in variables.items() if variable.kind in (1, 2)}
    makers = {name: partial(_dequantised, variables, name, path) for name in variables if name not in scales}
    return CTranslate2File(version, spec, revision, variables, aliases, LazyTensors(makers))


def write_ctranslate2(
    path: Path, spec: str, revision: int, variables: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> None:
    """Write variables in order, as version 6; reading a file and writing its variables gives the same bytes."""
    parts = [struct.pack("<I", VERSIONS[-1]), _packed(spec), struct.pack("<II", revision, len(variables))]
    for name, tensor in variables.items():
        if tensor.dtype not in TYPES:
            raise CheckpointError(f"CTranslate2 files cannot hold {tensor.dtype} ({name}); convert it to float32 first")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        sizes = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [_packed(name), sizes, struct.pack("<BI", TYPES.index(tensor.dtype), len(data)), data]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [_packed(name) for pair in aliases.items() for name in pair]
    path.write_bytes(b"".join(parts))


def _packed(name: str) -> bytes:
    data = name.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def _name(cursor: Cursor) -> str:
    text = cursor.text(cursor.integer("H"))
    if not text.endswith("\0"):
        raise damaged(cursor.path, "a name does not end")
    return text[:-1]


def _variable(cursor: Cursor) -> Variable:
    name = _name(cursor)
    shape = tuple(cursor.integer("I") for _ in range(cursor.integer("B")))
    kind, size = cursor.integer("B"), cursor.integer("I")
    if kind >= len(TYPES):
        raise damaged(cursor.path, f"{name} has the unknown type {kind}")
    if element_count(shape, cursor.path, cursor.left) * TYPES[kind].itemsize != size:
        raise damaged(cursor.path, f"{name} has {size} bytes for the shape {list(shape)}")
    return Variable(name, shape, kind, cursor.take(size))


def _dequantised(variables: Mapping[str, Variable], name: str, path: Path) -> Tensor:
    variable = variables[name]
    scale = variables.get(f"{name}_scale")
    stored = variable.tensor()
    if variable.kind not in (1, 2) or scale is None:
        return stored
    factors = scale.tensor().float()
    if not stored.ndim or factors.numel() not in (1, stored.shape[0]):
        raise damaged(path, f"the scale of {name} does not fit")
    return stored.float() / factors.reshape(-1, *(1,) * (stored.ndim - 1))
