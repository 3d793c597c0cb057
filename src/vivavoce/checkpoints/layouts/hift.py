"""The published layout of HiFT: ``hift.pt`` of GLM-4-Voice and CosyVoice.

The parallel blocks of all stages are numbered in one row, three to a stage; weight norm in any of its forms.
"""

from __future__ import annotations

from vivavoce.checkpoints.rules import Layout, Row, WeightNorm

BLOCKS_A_STAGE = 3


def _normed(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{theirs}.weight", f"{ours}.weight", WeightNorm()), Row(f"{theirs}.bias", f"{ours}.bias"))


def _plain(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{theirs}.weight", f"{ours}.weight"), Row(f"{theirs}.bias", f"{ours}.bias"))


def _block(theirs: str, ours: str) -> tuple[Row, ...]:
    """A residual block: two convolutions a unit, each behind a Snake."""
    return tuple(
        row
        for half in (0, 1)
        for row in (
            *_normed(f"{theirs}.convs{half + 1}.{{k}}", f"{ours}.units.{{k}}.convs.{half}"),
            Row(f"{theirs}.activations{half + 1}.{{k}}.alpha", f"{ours}.units.{{k}}.activations.{half}.alpha"),
        )
    )


PUBLISHED = Layout(
    name="hift published",
    signature=(
        "m_source.l_linear.weight",
        "f0_predictor.classifier.weight",
        "source_downs.0.weight",
        "source_resblocks.0.activations1.0.alpha",
        "conv_pre.weight_v",
        "conv_post.weight_v",
    ),  # longer than HiFi-GAN's, whose keys are among these
    rows=(
        *_plain("m_source.l_linear", "sines.merge"),
        *_normed("f0_predictor.condnet.{2*i}", "predictor.convs.{i}"),
        *_plain("f0_predictor.classifier", "predictor.head"),
        *_normed("conv_pre", "pre"),
        *_normed("ups.{i}", "stages.{i}.upsample"),
        *_plain("source_downs.{i}", "stages.{i}.down"),
        *_block("source_resblocks.{i}", "stages.{i}.source.blocks.0"),
        *(
            row
            for block in range(BLOCKS_A_STAGE)
            for row in _block(f"resblocks.{{{BLOCKS_A_STAGE}*i+{block}}}", f"stages.{{i}}.blocks.blocks.{block}")
        ),
        *_normed("conv_post", "post"),
    ),
)

LAYOUTS = (PUBLISHED,)
