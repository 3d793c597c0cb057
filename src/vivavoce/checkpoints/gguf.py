"""GGUF files: metadata (tokenizer included) and tensors in blocks of few bits, dequantised to float32 when asked for.

Sizes in the file run from the fastest axis: [in, out]; memory is row-major [out, in], which is the order given here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.checkpoints.binary import MAX_NAME, MAX_RANK, Cursor, LazyTensors, damaged, element_count, map_file
from vivavoce.errors import CheckpointError, nearest

MAGIC = b"GGUF"
MAX_ITEMS = 1 << 21  # texts in one list: far more than the largest vocabulary and its merges
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# ---------------------------------------------------------------------------------------------------- dequantisation
# Each function takes blocks (N, bytes) uint8 and gives weights (N, block length) float32.

Bytes = np.ndarray


def _halves(blocks: Bytes, first: int, count: int = 1) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, first : first + 2 * count]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> np.ndarray:
    """(N, 16 g) bytes of g groups to (N, 32 g): the low halves of a group, then its high halves."""
    groups = packed.reshape(len(packed), -1, 1, 16)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(len(packed), -1)


def _fifth_bits(blocks: Bytes, first: int) -> np.ndarray:
    words = np.ascontiguousarray(blocks[:, first : first + 4]).view("<u4")
    return ((words >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4


def _q4_0(blocks: Bytes) -> np.ndarray:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> np.ndarray:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


def _q5_0(blocks: Bytes) -> np.ndarray:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _halves(blocks, 0) * (values.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> np.ndarray:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _halves(blocks, 0) * values.astype(np.float32) + _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> np.ndarray:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(blocks: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima (N, 8, 1) of the eight sub-blocks, six bits each, from the 12 bytes after d and dmin."""
    first, second, third = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return (_halves(blocks, 0) * scales)[..., None], (_halves(blocks, 2) * minima)[..., None]


def _k_nibbles(packed: Bytes) -> np.ndarray:
    """(N, 128) bytes to (N, 8, 32): of every 32 bytes first the low halves, then the high ones."""
    groups = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> np.ndarray:
    scales, minima = _k_scales(blocks)
    return (scales * _k_nibbles(blocks[:, 16:]) - minima).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> np.ndarray:
    scales, minima = _k_scales(blocks)
    high = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    values = _k_nibbles(blocks[:, 48:]) | (high << 4)
    return (scales * values - minima).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> np.ndarray:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    values = (low | (high << 4)).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[..., None] * values).reshape(-1, 256)


def _bf16(blocks: Bytes) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class BlockType:
    """How one quantisation lies in memory: weights and bytes per block, and the way back to float32."""

    name: str
    weights: int
    bytes: int
    dequantise: Callable[[Bytes], np.ndarray]


TYPES = {
    0: BlockType("F32", 1, 4, lambda blocks: np.ascontiguousarray(blocks).view("<f4").astype(np.float32)),
    1: BlockType("F16", 1, 2, lambda blocks: np.ascontiguousarray(blocks).view("<f2").astype(np.float32)),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, _bf16),
}
BY_NAME = {block_type.name: block_type for block_type in TYPES.values()}


def dequantise(kind: str, blocks: np.ndarray) -> np.ndarray:
    """Blocks (..., bytes of whole blocks) uint8 of a type such as "Q4_K" to float32 weights (..., weights)."""
    if kind not in BY_NAME:
        raise CheckpointError(f"the quantisation {kind!r} is not known{nearest(kind, BY_NAME)}")
    block_type = BY_NAME[kind]
    with np.errstate(invalid="ignore", over="ignore"):
        flat = block_type.dequantise(np.ascontiguousarray(blocks).reshape(-1, block_type.bytes))
    return flat.reshape(*blocks.shape[:-1], -1)


def four_bit_groups(kind: str, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rows (N, bytes) of a 4-bit type as they stand: levels 0 to 15 (N, K) uint8, and per 32 weights a scale and a
    lowest value (N, K / 32) float32, weight = level * scale + lowest. None for other types.
    """
    if kind not in FOUR_BIT:
        return None
    flat = np.ascontiguousarray(blocks).reshape(-1, BY_NAME[kind].bytes)
    if kind == "Q4_K":
        scales, minima = _k_scales(flat)
        levels, scale, low = _k_nibbles(flat[:, 16:]), scales[..., 0], -minima[..., 0]
    else:
        levels, scale = _nibbles(flat[:, 2 if kind == "Q4_0" else 4 :]), _halves(flat, 0)
        low = -8 * scale if kind == "Q4_0" else _halves(flat, 2)
    rows = len(blocks)
    return levels.reshape(rows, -1), scale.reshape(rows, -1), low.reshape(rows, -1)


FOUR_BIT = ("Q4_0", "Q4_1", "Q4_K")

# ---------------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies: shape in row-major order [out, in], block type, raw bytes."""

    shape: tuple[int, ...]
    type: BlockType
    data: memoryview


class GGUFFile(LazyTensors):
    """Metadata and lazy tensors of one file; each access dequantises afresh, so take what you need once."""

    def __init__(self, version: int, metadata: dict[str, Any], entries: Mapping[str, GGUFTensor]) -> None:
        super().__init__({name: partial(self.tensor, name) for name in entries})
        self.version, self.metadata, self.entries = version, metadata, dict(entries)

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32 in [out, in] order."""
        entry = self._entry(name)
        # In slices, so that no copy larger than a few MiB stands beside the result.
        blocks, per_slice = self._blocks(entry), (1 << 20) // entry.type.weights
        weights = np.empty((len(blocks), entry.type.weights), np.float32)
        for start in range(0, len(blocks), per_slice):
            weights[start : start + per_slice] = dequantise(entry.type.name, blocks[start : start + per_slice])
        return torch.from_numpy(weights.reshape(entry.shape))

    def raw_blocks(self, name: str) -> tuple[str, np.ndarray]:
        """The type name and the stored bytes (rows, bytes per row) uint8, a read-only view of the mapped file."""
        entry = self._entry(name)
        rows = math.prod(entry.shape[:-1])
        return entry.type.name, np.frombuffer(entry.data, np.uint8).reshape(rows, -1)

    def _entry(self, name: str) -> GGUFTensor:
        if name not in self.entries:
            raise CheckpointError(f"the file has no tensor {name!r}{nearest(name, self.entries)}")
        return self.entries[name]

    def _blocks(self, entry: GGUFTensor) -> np.ndarray:
        return np.frombuffer(entry.data, np.uint8).reshape(-1, entry.type.bytes)


def open_gguf(path: Path) -> GGUFFile:
    """Map a file and read its metadata; sizes, counts and offsets are checked against the file before anything else."""
    cursor = Cursor(map_file(path), path)
    if bytes(cursor.take(4)) != MAGIC:
        raise damaged(path, "it is not GGUF")
    version = cursor.integer("I")
    if version not in (2, 3):
        raise damaged(path, f"GGUF version {version} is unknown")
    n_tensors, n_values = cursor.count("Q", 24), cursor.count("Q", 13)
    if max(n_tensors, n_values) > MAX_ITEMS >> 4:
        raise damaged(path, f"{max(n_tensors, n_values)} entries are too many")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text(_length(cursor, MAX_NAME))
        metadata[key] = _value(cursor, cursor.integer("I"))
    places = [_place(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise damaged(path, "its alignment is absurd")
    start = -(-cursor.position // alignment) * alignment
    entries = {}
    for name, shape, block_type, offset in places:
        if name in entries:
            raise damaged(path, f"{name} comes twice")
        size = math.prod(shape) // block_type.weights * block_type.bytes
        inside = Cursor(cursor.data, path, min(start + offset, len(cursor.data)))
        entries[name] = GGUFTensor(shape, block_type, inside.take(size))
    return GGUFFile(version, metadata, entries)


def _length(cursor: Cursor, limit: int) -> int:
    length = cursor.integer("Q")
    if length > min(limit, cursor.left):
        raise damaged(cursor.path, "a text is too long")
    return length


def _value(cursor: Cursor, kind: int) -> Any:
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _STRING:
        return cursor.text(_length(cursor, 1 << 26))
    if kind != _ARRAY:
        raise damaged(cursor.path, f"the value type {kind} is unknown")
    inner = cursor.integer("I")
    if inner == _STRING:
        count = cursor.count("Q", 8)
        if count > MAX_ITEMS:
            raise damaged(cursor.path, f"{count} texts are too many")
        return [cursor.text(_length(cursor, 1 << 20)) for _ in range(count)]
    if inner not in _NUMBERS:
        raise damaged(cursor.path, "an array holds neither numbers nor texts")
    item = np.dtype("<" + _NUMBERS[inner]) if inner != 7 else np.dtype(np.bool_)
    count = cursor.count("Q", item.itemsize)
    return np.frombuffer(cursor.take(count * item.itemsize), item)  # a list would take many times the bytes


def _place(cursor: Cursor) -> tuple[str, tuple[int, ...], BlockType, int]:
    name = cursor.text(_length(cursor, MAX_NAME))
    rank = cursor.integer("I")
    if rank > MAX_RANK:
        raise damaged(cursor.path, f"{name} has {rank} dimensions")
    shape = tuple(cursor.integer("Q") for _ in range(rank))[::-1]
    kind, offset = cursor.integer("I"), cursor.integer("Q")
    if kind not in TYPES:
        raise CheckpointError(
            f"{cursor.path.name} holds the block type {kind}; give a file in one of: {', '.join(BY_NAME)}"
        )
    block_type = TYPES[kind]
    count = element_count(shape, cursor.path, 2 * len(cursor.data))
    if (shape[-1] if shape else 1) % block_type.weights:
        raise damaged(cursor.path, f"the rows of {name} are not whole blocks")
    if not count:
        raise damaged(cursor.path, f"{name} is empty")
    return name, shape, block_type, offset
