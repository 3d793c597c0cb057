"""Published layouts of the HiFi-GAN generator: the authors' ``g_*`` / ``generator_*`` files, and ParallelWaveGAN's.

Both number the parallel blocks of all stages in one row, three to a stage, and hold weight norm in any of its forms.
"""

from __future__ import annotations

from vivavoce.checkpoints.rules import Layout, Row, WeightNorm

BLOCKS_A_STAGE = 3  # in every published generator


def generator_rows(theirs: str, ours: str, block_type: int) -> tuple[Row, ...]:
    """The rows of a generator whose keys stand behind the prefix ``theirs`` and whose modules stand behind ``ours``."""
    names = {"convs1": 0, "convs2": 1} if block_type == 1 else {"convs": 0}
    return (
        *_normed(f"{theirs}conv_pre", f"{ours}pre"),
        *_normed(f"{theirs}ups.{{i}}", f"{ours}upsamples.{{i}}"),
        *(
            row
            for block in range(BLOCKS_A_STAGE)
            for name, conv in names.items()
            for row in _normed(
                f"{theirs}resblocks.{{{BLOCKS_A_STAGE}*i+{block}}}.{name}.{{k}}",
                f"{ours}stages.{{i}}.blocks.{block}.units.{{k}}.convs.{conv}",
            )
        ),
        *_normed(f"{theirs}conv_post", f"{ours}post"),
    )


def _normed(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.weight", f"{ours}.weight", WeightNorm()),
        Row(f"{theirs}.bias", f"{ours}.bias", optional=True),
    )


ORIGINAL_1 = Layout(
    name="hifigan original, blocks of type 1",
    signature=("conv_pre.bias", "ups.0.bias", "resblocks.0.convs1.0.bias"),
    rows=generator_rows("", "", 1),
)

ORIGINAL_2 = Layout(
    name="hifigan original, blocks of type 2",
    signature=("conv_pre.bias", "ups.0.bias", "resblocks.0.convs.0.bias"),
    rows=generator_rows("", "", 2),
)

PARALLEL_WAVEGAN = Layout(
    name="hifigan of ParallelWaveGAN",
    signature=("input_conv.bias", "upsamples.0.1.bias", "blocks.0.convs1.0.1.bias"),
    rows=(
        *_normed("input_conv", "pre"),
        *_normed("upsamples.{i}.1", "upsamples.{i}"),
        *(
            row
            for block in range(BLOCKS_A_STAGE)
            for conv in (0, 1)
            for row in _normed(
                f"blocks.{{{BLOCKS_A_STAGE}*i+{block}}}.convs{conv + 1}.{{k}}.1",
                f"stages.{{i}}.blocks.{block}.units.{{k}}.convs.{conv}",
            )
        ),
        *_normed("output_conv.1", "post"),
    ),
)

LAYOUTS = (ORIGINAL_1, ORIGINAL_2, PARALLEL_WAVEGAN)
