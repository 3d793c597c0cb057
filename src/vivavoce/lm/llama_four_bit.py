"""A GGUF model of 4-bit types in 4-bit layers: the published levels and scales, not converted.

Matrices that a file keeps in another type (and joined ones of mixed types) become int8 rows, as everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vivavoce.checkpoints.gguf import FOUR_BIT, GGUFFile, four_bit_groups
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import Layout, Row, import_weights
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import LlamaConfig
from vivavoce.lm.llama_files import int8_parts, layout_of
from vivavoce.nn.quantized import GROUP

LINEAR = ("qkv.weight", "out.weight", "gate_up.weight", "down.weight")


def import_int4(checkpoint: Checkpoint) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and state dict: ``X.levels`` (N, K) uint8, ``X.group_scale`` and ``X.group_low`` (N, K / 32), the
    rest as :func:`~vivavoce.lm.llama_files.import_int8` gives it.
    """
    file = checkpoint.tensors
    if not isinstance(file, GGUFFile):
        raise CheckpointError("4-bit layers come from GGUF files of the types Q4_0, Q4_1 or Q4_K; give such a file")
    config, parts = int8_parts(checkpoint)
    layout = layout_of(checkpoint, config)
    made: dict[str, Tensor] = {}
    for part in parts:
        for key in [key for key in part if key.endswith(LINEAR)]:
            four = _groups(file, layout, key, tuple(part[key].shape))
            if four is not None:
                name = key.removesuffix(".weight")
                del part[key], part[f"{key}_scale"]
                part |= {f"{name}.levels": four[0], f"{name}.group_scale": four[1], f"{name}.group_low": four[2]}
        made |= part
    return config, made


def _groups(file: GGUFFile, layout: Layout, key: str, shape: tuple[int, ...]) -> tuple[Tensor, ...] | None:
    """Levels, scales and lowest values of one of our matrices, or None where the file has not all of it in 4 bits."""
    number = key.split(".")[2]
    ours = key.replace(f".{number}.", ".{i}.")
    row = next(row for row in layout.rows if row.own and row.own[0].replace("{w}", "weight") == ours)
    names = [name.replace("{i}", number).replace("{w}", "weight") for name in row.foreign]
    blocks = [file.raw_blocks(name) for name in names]
    if any(kind not in FOUR_BIT for kind, _ in blocks):
        return None
    groups = [four_bit_groups(kind, rows) for kind, rows in blocks]
    plain = Row(row.theirs, row.ours, row.operation)
    made = []
    for place, width in ((0, shape[1]), (1, shape[1] // GROUP), (2, shape[1] // GROUP)):
        source = {name: torch.from_numpy(group[place]) for name, group in zip(names, groups, strict=True) if group}
        made.append(import_weights(Layout(layout.name, (), (plain,)), source, {key: (shape[0], width)})[key])
    return tuple(made)
