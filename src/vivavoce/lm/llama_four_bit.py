"""A GGUF model of 4-bit types in 4-bit layers: the published levels, scales and lowest values, not converted.

Matrices that a file keeps in another type (and joined ones of mixed types) become int8 rows, as everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from vivavoce.checkpoints.gguf import FOUR_BIT, GGUFFile, four_bit_groups
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import Layout, Row, import_weights
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import LlamaConfig
from vivavoce.lm.llama_files import int8_parts, layout_of, read_config, state_shapes
from vivavoce.nn.quantized import GROUP, pack_tiles, tiles_shape

LINEAR = ("qkv.weight", "out.weight", "gate_up.weight", "down.weight")


def int4_parts(checkpoint: Checkpoint) -> tuple[LlamaConfig, Iterator[dict[str, Tensor]]]:
    """Configuration and state dict in parts, one layer at a time: ``X.tiles`` uint8 (nn/quantized.py: pack_tiles) where
    the file has 4 bits, the rest as :func:`~vivavoce.lm.llama_files.int8_parts` gives it."""
    file, config, found = _four_bit_keys(checkpoint)
    _, parts = int8_parts(checkpoint, found)
    return config, _int4_parts(file, layout_of(checkpoint, config), state_shapes(config), found, parts)


def import_int4(checkpoint: Checkpoint) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and the whole state dict of :func:`int4_parts`."""
    config, parts = int4_parts(checkpoint)
    return config, {key: tensor for part in parts for key, tensor in part.items()}


def int4_shapes(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(safetensors type, shape) of every tensor that :func:`int4_parts` gives."""
    _, config, found = _four_bit_keys(checkpoint)
    return integer_shapes(config, found)


def integer_shapes(config: LlamaConfig, four_bit: Collection[str] = ()) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(safetensors type, shape) of a model whose ``four_bit`` matrices are tiles and whose others are int8 rows. A tied
    head is left out: the embedding serves both."""
    made: dict[str, tuple[str, tuple[int, ...]]] = {}
    for key, shape in state_shapes(config).items():
        if key == "head.weight" and config.tied:
            continue
        if key in four_bit:
            made[f"{key.removesuffix('.weight')}.tiles"] = ("U8", tiles_shape(*shape))
        elif len(shape) == 2:
            made |= {key: ("I8", shape), f"{key}_scale": ("F32", shape[:1])}
        else:
            made[key] = ("F32", shape)
    return made


def has_four_bits(checkpoint: Checkpoint) -> bool:
    """Whether most matrices of the file are of 4-bit types, so that 4 bits are what was published."""
    file = checkpoint.tensors
    if not isinstance(file, GGUFFile):
        return False
    kinds = [entry.type.name in FOUR_BIT for entry in file.entries.values() if len(entry.shape) == 2]
    return 2 * sum(kinds) > len(kinds)


def _four_bit_keys(checkpoint: Checkpoint) -> tuple[GGUFFile, LlamaConfig, dict[str, list[str]]]:
    """The keys of ours that the file has all of in 4 bits, and the names there that each comes from."""
    file = checkpoint.tensors
    if not isinstance(file, GGUFFile):
        raise CheckpointError("4-bit layers come from GGUF files of the types Q4_0, Q4_1 or Q4_K; give such a file")
    config = read_config(checkpoint)
    layout, found = layout_of(checkpoint, config), {}
    for key in state_shapes(config):
        if key.endswith(LINEAR):
            names = _names(_row(layout, key), key)
            if all(name in file.entries and file.entries[name].type.name in FOUR_BIT for name in names):
                found[key] = names
    return file, config, found


def _row(layout: Layout, key: str) -> Row:
    ours = key.replace(f".{key.split('.')[2]}.", ".{i}.")
    return next(row for row in layout.rows if row.own and row.own[0].replace("{w}", "weight") == ours)


def _names(row: Row, key: str) -> list[str]:
    return [name.replace("{i}", key.split(".")[2]).replace("{w}", "weight") for name in row.foreign]


def _int4_parts(
    file: GGUFFile, layout: Layout, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, list[str]],
    parts: Iterator[dict[str, Tensor]],
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    for part in parts:
        numbers = {key.split(".")[2] for key in part if key.startswith("decoder.layers.")}
        for key, names in found.items():
            if key.split(".")[2] in numbers:
                groups = _groups(file, layout, key, names, shapes[key])
                part[f"{key.removesuffix('.weight')}.tiles"] = pack_tiles(*groups)
        yield part


def _groups(
    file: GGUFFile, layout: Layout, key: str, names: list[str], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, scales and lowest values of one of our matrices; they take the way that whole rows take."""
    row = _row(layout, key)
    plain = Layout(layout.name, (), (Row(row.theirs, row.ours, row.operation),))
    groups = [four_bit_groups(*file.raw_blocks(name)) for name in names]

    def moved(place: int, width: int) -> Tensor:
        source = {name: torch.from_numpy(group[place]) for name, group in zip(names, groups, strict=True) if group}
        return import_weights(plain, source, {key: (shape[0], width)})[key]

    return moved(0, shape[1]), moved(1, shape[1] // GROUP), moved(2, shape[1] // GROUP)
