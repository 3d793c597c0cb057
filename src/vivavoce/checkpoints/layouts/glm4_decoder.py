"""The published layout of GLM-4-Voice's speech decoder: ``flow.pt``, 1,185 tensors, CosyVoice's names.

The U-Net has two levels in every published file; its first level leads to the second by a module that wraps its
convolution, its second by the convolution itself.
"""

from __future__ import annotations

from vivavoce.checkpoints.rules import Join, Layout, Row

QKV = ("q", "k", "v")


def _encoder(theirs: str, ours: str) -> tuple[Row, ...]:
    attention = f"{theirs}.encoders.{{i}}.self_attn"
    layer = f"{ours}.layers.{{i}}"
    return (
        Row(f"{theirs}.embed.out.0.{{w}}", f"{ours}.input.{{w}}"),
        Row(f"{theirs}.embed.out.1.{{w}}", f"{ours}.input_norm.{{w}}"),
        *(
            Row(tuple(f"{attention}.linear_{part}.{kind}" for part in QKV), f"{layer}.qkv.{kind}", Join(0))
            for kind in ("weight", "bias")
        ),
        Row(f"{attention}.linear_out.{{w}}", f"{layer}.out.{{w}}"),
        Row(f"{attention}.linear_pos.weight", f"{layer}.distance.weight"),
        Row(f"{attention}.pos_bias_u", f"{layer}.content_bias"),
        Row(f"{attention}.pos_bias_v", f"{layer}.distance_bias"),
        Row(f"{theirs}.encoders.{{i}}.norm_mha.{{w}}", f"{layer}.attention_norm.{{w}}"),
        Row(f"{theirs}.encoders.{{i}}.norm_ff.{{w}}", f"{layer}.ffn_norm.{{w}}"),
        Row(f"{theirs}.encoders.{{i}}.feed_forward.w_1.{{w}}", f"{layer}.ffn_in.{{w}}"),
        Row(f"{theirs}.encoders.{{i}}.feed_forward.w_2.{{w}}", f"{layer}.ffn_out.{{w}}"),
        Row(f"{theirs}.after_norm.{{w}}", f"{ours}.norm.{{w}}"),
    )


def _stages(theirs: str, ours: str) -> tuple[Row, ...]:
    """One residual with the transformer blocks behind it."""
    block, own = f"{theirs}.{{i}}.1.{{j}}", f"{ours}.{{i}}.blocks.{{j}}"
    return (
        Row(f"{theirs}.{{i}}.0.mlp.1.{{w}}", f"{ours}.{{i}}.residual.time.{{w}}"),
        Row(f"{theirs}.{{i}}.0.block1.block.0.{{w}}", f"{ours}.{{i}}.residual.first.conv.{{w}}"),
        Row(f"{theirs}.{{i}}.0.block1.block.1.{{w}}", f"{ours}.{{i}}.residual.first.norm.{{w}}"),
        Row(f"{theirs}.{{i}}.0.block2.block.0.{{w}}", f"{ours}.{{i}}.residual.second.conv.{{w}}"),
        Row(f"{theirs}.{{i}}.0.block2.block.1.{{w}}", f"{ours}.{{i}}.residual.second.norm.{{w}}"),
        Row(f"{theirs}.{{i}}.0.res_conv.{{w}}", f"{ours}.{{i}}.residual.beside.{{w}}"),
        Row(f"{block}.norm1.{{w}}", f"{own}.attention_norm.{{w}}"),
        Row(tuple(f"{block}.attn1.to_{part}.weight" for part in QKV), f"{own}.qkv.weight", Join(0)),
        Row(f"{block}.attn1.to_out.0.{{w}}", f"{own}.out.{{w}}"),
        Row(f"{block}.norm3.{{w}}", f"{own}.ffn_norm.{{w}}"),
        Row(f"{block}.ff.net.0.proj.{{w}}", f"{own}.ffn_in.{{w}}"),
        Row(f"{block}.ff.net.2.{{w}}", f"{own}.ffn_out.{{w}}"),
    )


def _unet(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.time_mlp.linear_1.{{w}}", f"{ours}.time_in.{{w}}"),
        Row(f"{theirs}.time_mlp.linear_2.{{w}}", f"{ours}.time_out.{{w}}"),
        *_stages(f"{theirs}.down_blocks", f"{ours}.down"),
        *_stages(f"{theirs}.mid_blocks", f"{ours}.middle"),
        *_stages(f"{theirs}.up_blocks", f"{ours}.up"),
        *(
            row
            for name in ("down", "up")
            for row in (
                Row(f"{theirs}.{name}_blocks.0.2.conv.{{w}}", f"{ours}.{name}.0.resample.{{w}}"),
                Row(f"{theirs}.{name}_blocks.1.2.{{w}}", f"{ours}.{name}.1.resample.{{w}}"),
            )
        ),
        Row(f"{theirs}.final_block.block.0.{{w}}", f"{ours}.final.conv.{{w}}"),
        Row(f"{theirs}.final_block.block.1.{{w}}", f"{ours}.final.norm.{{w}}"),
        Row(f"{theirs}.final_proj.{{w}}", f"{ours}.head.{{w}}"),
    )


PUBLISHED = Layout(
    name="glm4_decoder flow.pt",
    signature=("input_embedding.weight", "length_regulator.model.0.weight", "decoder.estimator.final_proj.weight"),
    rows=(
        Row("input_embedding.weight", "embedding.weight"),
        Row("spk_embed_affine_layer.{w}", "speaker.{w}"),
        *_encoder("encoder", "encoder"),
        Row("encoder_proj.{w}", "projection.{w}"),
        Row("length_regulator.model.12.{w}", "smoother.out.{w}"),
        Row("length_regulator.model.{3*i}.{w}", "smoother.layers.{i}.conv.{w}"),
        Row("length_regulator.model.{3*i+1}.{w}", "smoother.layers.{i}.norm.{w}"),
        *_unet("decoder.estimator", "unet"),
    ),
)

LAYOUTS = (PUBLISHED,)
