"""SenseVoice's published files: ``model.pt`` under FunASR's names, the statistics of the features in ``am.mvn``, the
vocabulary in a sentencepiece model.

Of the statistics each is one list of numbers; they join the tensors of ``model.pt`` as ``am.mvn/shift`` and
``am.mvn/scale``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vivavoce.checkpoints.binary import Cursor, LazyTensors, damaged, map_file
from vivavoce.checkpoints.protobuf import fields
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import Layout, Row
from vivavoce.errors import CheckpointError

STATISTICS = "am.mvn"
MAX_STATISTICS = 1 << 20
MAX_PIECES = 1 << 20
Kind = Literal["normal", "unknown", "control", "byte"]


def _layer(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.norm1.{{w}}", f"{ours}.attention_norm.{{w}}"),
        Row(f"{theirs}.self_attn.linear_q_k_v.{{w}}", f"{ours}.qkv.{{w}}"),
        Row(f"{theirs}.self_attn.fsmn_block.weight", f"{ours}.memory.weight"),
        Row(f"{theirs}.self_attn.linear_out.{{w}}", f"{ours}.out.{{w}}"),
        Row(f"{theirs}.norm2.{{w}}", f"{ours}.ffn_norm.{{w}}"),
        Row(f"{theirs}.feed_forward.w_1.{{w}}", f"{ours}.ffn_in.{{w}}"),
        Row(f"{theirs}.feed_forward.w_2.{{w}}", f"{ours}.ffn_out.{{w}}"),
    )


def rows(theirs: str = "", ours: str = "") -> tuple[Row, ...]:
    """The table's rows, with what stands before the names on either side where it is part of a larger model."""
    return (
        Row(f"{STATISTICS}/shift", f"{ours}shift"),
        Row(f"{STATISTICS}/scale", f"{ours}scale"),
        Row(f"{theirs}embed.weight", f"{ours}queries.weight"),
        *_layer(f"{theirs}encoder.encoders0.0", f"{ours}layers.0"),
        *_layer(f"{theirs}encoder.encoders.{{i}}", f"{ours}layers.{{i+1}}"),
        Row(f"{theirs}encoder.after_norm.{{w}}", f"{ours}norm.{{w}}"),
        *_layer(f"{theirs}encoder.tp_encoders.{{i}}", f"{ours}top_layers.{{i}}"),
        Row(f"{theirs}encoder.tp_norm.{{w}}", f"{ours}top_norm.{{w}}"),
        Row(f"{theirs}ctc.ctc_lo.{{w}}", f"{ours}head.{{w}}"),
    )


PUBLISHED = Layout(
    "sensevoice, FunASR",
    ("encoder.encoders0.0.self_attn.fsmn_block.weight", "encoder.tp_norm.weight", "embed.weight"),
    rows(),
)
LAYOUTS = (PUBLISHED,)


# ------------------------------------------------------------------------------------------------------------ am.mvn
def with_statistics(checkpoint: Checkpoint) -> LazyTensors:
    """The tensors of a weight file and the statistics that lie beside it, under the names of the table."""
    if STATISTICS not in checkpoint.files:
        raise CheckpointError(
            f"{checkpoint.path.name} has no {STATISTICS} beside it; put SenseVoice's there, or give its whole folder"
        )
    statistics = read_statistics(checkpoint.files[STATISTICS])
    places = [(name, checkpoint.tensors) for name in checkpoint.tensors] + [(name, statistics) for name in statistics]
    return LazyTensors({name: partial(tensors.__getitem__, name) for name, tensors in places})


def read_statistics(path: Path) -> dict[str, Tensor]:
    """``am.mvn``, a network of two layers in Kaldi's text form: what is added to the features (``am.mvn/shift``), and
    what they are then multiplied by (``am.mvn/scale``)."""
    data = map_file(path)
    if len(data) > MAX_STATISTICS:
        raise damaged(path, "it is too large")
    words = bytes(data).decode("utf-8", "replace").split()
    return {f"{STATISTICS}/shift": _numbers(words, "<AddShift>", path),
            f"{STATISTICS}/scale": _numbers(words, "<Rescale>", path)}  # fmt: skip


def _numbers(words: list[str], layer: str, path: Path) -> Tensor:
    """The list in brackets that belongs to a layer, behind its two widths."""
    try:
        at = words.index(layer)
        width, first = int(words[at + 1]), words.index("[", at) + 1
        found = torch.tensor([float(word) for word in words[first : words.index("]", first)]])
    except (ValueError, IndexError) as error:
        raise damaged(path, f"it has no {layer} with a list of numbers") from error
    if found.numel() != width or not found.isfinite().all():
        raise damaged(path, f"{layer} does not hold {width} numbers")
    return found


# -------------------------------------------------------------------------------------------------------- vocabulary
@dataclass(frozen=True)
class Piece:
    """One entry of a vocabulary: its UTF-8 bytes, where U+2581 stands for a space; control pieces spell nothing."""

    spelling: bytes
    kind: Kind = "normal"


def read_pieces(path: Path) -> tuple[Piece, ...]:
    """The vocabulary of a sentencepiece model (``*.model``), in the order of its ids."""
    pieces: list[Piece] = []
    for field, value in fields(Cursor(map_file(path), path)):
        if field != 1 or isinstance(value, int):
            continue
        if len(pieces) == MAX_PIECES:
            raise damaged(path, "its vocabulary has no end")
        pieces.append(_piece(Cursor(value, path)))
    if not pieces:
        raise damaged(path, "it holds no vocabulary")
    return tuple(pieces)


def _piece(cursor: Cursor) -> Piece:
    text, kind = b"", 1
    for field, value in fields(cursor):
        if field == 1 and not isinstance(value, int):
            text = bytes(value)
        elif field == 3 and isinstance(value, int):
            kind = value
    if kind == 6:  # one byte, written <0x41>
        try:
            return Piece(bytes([int(text[3:-1], 16)]), "byte")
        except ValueError as error:
            raise damaged(cursor.path, "a byte of its vocabulary is none") from error
    return Piece(b"", "control") if kind == 3 else Piece(text, "unknown" if kind == 2 else "normal")
