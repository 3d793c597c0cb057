"""GLM-4-Voice's speech tokenizer as published: a transformers Whisper encoder with a codebook."""

from __future__ import annotations

from vivavoce.checkpoints.layouts.whisper import transformers_block
from vivavoce.checkpoints.rules import Drop, Layout, Row

TRANSFORMERS = Layout(
    "glm4_tokenizer, transformers",
    ("conv1.weight", "embed_positions.weight", "codebook.weight"),
    (
        Row("conv{n}.{w}", "conv{n}.{w}"),
        Row("embed_positions.weight", "positions"),
        *transformers_block("layers.{i}", "layers.{i}"),
        Row("codebook.weight", "codebook.weight"),
        Row("embed_positions2.weight", None, Drop("added after quantisation, where this half of the network ends")),
        Row("ema_count", None, Drop("running count of the codebook's training")),
        Row("ema_weight", None, Drop("running sum of the codebook's training")),
    ),
)
LAYOUTS = (TRANSFORMERS,)
