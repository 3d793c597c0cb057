"""ONNX files read as weights: initialisers, constants and the nodes that use them, through a small protobuf reader.

Exporters keep the module names of some weights and number the others ("onnx::Conv_123"). Those get the path of the node
that uses them: input 1 of ``/flow/enc/Conv`` becomes ``flow.enc.weight`` and input 2 ``flow.enc.bias``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.checkpoints.binary import MAX_RANK, Cursor, LazyTensors, damaged, element_count, map_file
from vivavoce.checkpoints.protobuf import fields
from vivavoce.errors import CheckpointError

MAX_DEPTH = 8
MAX_FIELDS = 1 << 20  # of all messages together: each becomes an object many times the size it has in the file
PIECE = 1 << 20  # bytes of packed numbers that are taken apart at a time
LONG = 64  # numbers: a longer list stays an array

# TensorProto.data_type to (torch type, the field that may hold the values instead of raw_data)
_TYPES: dict[int, tuple[torch.dtype, int]] = {
    1: (torch.float32, 4),
    2: (torch.uint8, 5),
    3: (torch.int8, 5),
    4: (torch.uint16, 5),
    5: (torch.int16, 5),
    6: (torch.int32, 5),
    7: (torch.int64, 7),
    9: (torch.bool, 5),
    10: (torch.float16, 5),
    11: (torch.float64, 10),
    12: (torch.uint32, 11),
    13: (torch.uint64, 11),
    16: (torch.bfloat16, 5),
}
_WHOLE = (6, 7, 9)
_WEIGHTED = frozenset(
    ("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "LSTM", "GRU", "DynamicQuantizeLSTM")
)


@dataclass(frozen=True)
class Node:
    """One operation of the graph; attributes are numbers, texts, lists of them (long ones of numbers as arrays), or the
    name of a constant tensor."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


class OnnxFile(LazyTensors):
    """The weights by name, the numbered ones by module path; ``stored`` maps each name given to the one in the file.

    ``constants`` hold what belongs to the computation and not to the model: values of Constant nodes, and initialisers
    that an exporter folded (a path or a number as name, and a scalar or whole numbers as value), under their own names.
    """

    def __init__(self, path: Path, stored: dict[str, str], graph: _Graph) -> None:
        super().__init__({name: partial(_tensor, path, graph.initialisers[raw]) for name, raw in stored.items()})
        self.stored, self.nodes, self.inputs, self.metadata = stored, graph.nodes, graph.inputs, graph.metadata
        folded = {name: place for name, place in graph.initialisers.items() if _is_folded(place)}
        places = folded | graph.constants
        self.constants = LazyTensors({name: partial(_tensor, path, place) for name, place in places.items()})


@dataclass
class _Graph:
    initialisers: dict[str, _TensorPlace] = field(default_factory=dict)
    constants: dict[str, _TensorPlace] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    n_fields: int = 0

    def fields(self, cursor: Cursor) -> Iterator[tuple[int, memoryview | int]]:
        """The fields of one message, counted."""
        for found in fields(cursor):
            self.n_fields += 1
            if self.n_fields > MAX_FIELDS:
                raise damaged(cursor.path, "it has too many parts")
            yield found


@dataclass(frozen=True)
class _TensorPlace:
    name: str
    shape: tuple[int, ...]
    kind: int
    raw: memoryview | None
    typed: dict[int, list[memoryview | int]]


def open_onnx(path: Path) -> OnnxFile:
    """Map a file and read its graph; tensor data stays in the file until asked for."""
    graph = _Graph()
    seen_graph = False
    for number, value in graph.fields(Cursor(map_file(path), path)):
        if number == 7:
            seen_graph = True
            _read_graph(_inside(value, path), graph, 0)
        elif number == 14:
            pair = dict(graph.fields(_inside(value, path)))
            graph.metadata[_text(pair.get(1, b""))] = _text(pair.get(2, b""))
    if not seen_graph:
        raise damaged(path, "it holds no ONNX graph")
    return OnnxFile(path, _named(graph), graph)


# ---------------------------------------------------------------------------------------------------- values


def _inside(value: memoryview | int, path: Path) -> Cursor:
    if isinstance(value, int):
        raise damaged(path, "a message is missing")
    return Cursor(value, path)


def _text(value: memoryview | bytes | int) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integers(value: memoryview | int, path: Path) -> np.ndarray:
    """A repeated integer, packed or single: int64."""
    return np.concatenate([np.empty(0, np.int64), *_pieces(value, path)])


def _pieces(value: memoryview | int, path: Path) -> Iterator[np.ndarray]:
    """The same, some at a time, so that little stands beside what is made of them."""
    if isinstance(value, int):
        yield np.array([_signed(value)])
        return
    data = np.frombuffer(value, np.uint8)
    while len(data):
        ends = np.flatnonzero(data[:PIECE] < 128)  # the last byte of each number has no mark
        if not len(ends):
            raise damaged(path, "a number is too long" if len(data) >= 10 else "it ends too early")
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise damaged(path, "a number is too long")
        found = np.zeros(len(ends), np.uint64)
        for at in range(int(lengths.max())):
            longer = np.flatnonzero(lengths > at)
            found[longer] |= (data[starts[longer] + at].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * at)
        yield found.view(np.int64)
        data = data[int(ends[-1]) + 1 :]


# ---------------------------------------------------------------------------------------------------- messages


def _read_graph(cursor: Cursor, graph: _Graph, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise damaged(cursor.path, "graphs are nested too deep")
    for number, value in graph.fields(cursor):
        if number == 1:
            graph.nodes.append(_read_node(_inside(value, cursor.path), graph, depth))
        elif number == 5:
            place = _read_tensor(_inside(value, cursor.path), graph)
            if place.name in graph.initialisers and not depth:
                raise damaged(cursor.path, f"{place.name} comes twice")
            graph.initialisers.setdefault(place.name, place)
        elif number == 11 and not depth:
            graph.inputs.append(_text(dict(graph.fields(_inside(value, cursor.path))).get(1, b"")))


def _read_node(cursor: Cursor, graph: _Graph, depth: int) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    attributes: dict[str, Any] = {}
    for number, value in graph.fields(cursor):
        if number in texts:
            texts[number].append(_text(value))
        elif number == 5:
            name, held = _read_attribute(_inside(value, cursor.path), graph, depth)
            attributes[name] = held
    node = Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]), attributes)
    held = attributes.get("value")
    if node.op_type == "Constant" and isinstance(held, _TensorPlace) and node.outputs:
        graph.constants[node.outputs[0]] = held
        attributes["value"] = node.outputs[0]
    return node


def _read_attribute(cursor: Cursor, graph: _Graph, depth: int) -> tuple[str, Any]:
    name, held, many = "", None, list[Any]()
    for number, value in graph.fields(cursor):
        if number == 1:
            name = _text(value)
        elif number == 3 and isinstance(value, int):
            held = _signed(value)
        elif number == 8:
            whole = _integers(value, cursor.path)
            many += whole.tolist() if len(whole) <= LONG else [whole]
        elif number == 6:
            _read_graph(_inside(value, cursor.path), graph, depth + 1)
        elif isinstance(value, int):
            continue
        elif number == 2 and len(value) == 4:
            held = struct.unpack("<f", value)[0]
        elif number == 4:
            held = _text(value)
        elif number == 5:
            held = _read_tensor(Cursor(value, cursor.path), graph)
        elif number == 7 and len(value) % 4 == 0:
            floats = np.frombuffer(value, "<f4")
            many += floats.tolist() if len(floats) <= LONG else [floats]
        elif number == 9:
            many.append(_text(value))
    if len(many) == 1 and isinstance(many[0], np.ndarray):
        return name, many[0]
    return name, many or held


def _read_tensor(cursor: Cursor, graph: _Graph) -> _TensorPlace:
    shape: list[int] = []
    kind, name, raw = 0, "", None
    typed: dict[int, list[memoryview | int]] = {}
    for number, value in graph.fields(cursor):
        if number == 1:
            shape += _integers(value, cursor.path)[: MAX_RANK + 1].tolist()
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
        elif number in (4, 5, 7, 10, 11):
            typed.setdefault(number, []).append(value)
        elif number == 13:
            raise CheckpointError(
                f"{cursor.path.name} keeps its weights in a second file; save it as one ONNX file first"
            )
    return _TensorPlace(name, tuple(shape), kind, raw, typed)


def _tensor(path: Path, place: _TensorPlace) -> Tensor:
    """Read one tensor; its size must equal what its bytes hold."""
    if place.kind not in _TYPES:
        raise damaged(path, f"{place.name} has the unknown type {place.kind}")
    dtype, number = _TYPES[place.kind]
    if place.raw is not None:
        data = bytes(place.raw)
    elif number in (4, 10):
        data = b"".join(bytes(piece) for piece in place.typed.get(number, []) if not isinstance(piece, int))
    else:
        form = f"<u{dtype.itemsize}"  # a narrower type takes the low bytes
        pieces = (piece for value in place.typed.get(number, []) for piece in _pieces(value, path))
        data = b"".join(piece.astype(form).tobytes() for piece in pieces)
    if element_count(place.shape, path, len(data)) * dtype.itemsize != len(data):
        raise damaged(path, f"{place.name} has {len(data)} bytes for the shape {list(place.shape)}")
    if not data:
        return torch.empty(place.shape, dtype=dtype)
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype).reshape(place.shape)


def _named(graph: _Graph) -> dict[str, str]:
    """Given name -> stored name: numbered initialisers take the path of the first node that uses them."""
    roles = {1: "weight", 2: "bias"}
    paths: dict[str, str] = {}
    for node in graph.nodes:
        module = ".".join(part for part in node.name.split("/") if part).rpartition(".")[0]
        if not module or node.op_type not in _WEIGHTED:
            continue
        for position, name in enumerate(node.inputs):
            if name not in paths and name in graph.initialisers and _numbered(name):
                paths[name] = f"{module}.{roles.get(position, f'input{position}')}"
    named: dict[str, str] = {}  # a name already taken leaves the stored one
    for raw, place in graph.initialisers.items():
        if _is_folded(place):
            continue
        name = paths.get(raw, raw)
        named[raw if name in named or (name != raw and name in graph.initialisers) else name] = raw
    return named


def _is_folded(place: _TensorPlace) -> bool:
    return (place.name.startswith("/") or _numbered(place.name)) and (not place.shape or place.kind in _WHOLE)


def _numbered(name: str) -> bool:
    return "::" in name or name.isdigit()
