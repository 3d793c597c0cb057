"""Whisper's three published layouts: openai (.pt), transformers (safetensors) and CTranslate2 (model.bin).

The key projection has no bias in openai and transformers files; CTranslate2 stores q, k, v already stacked with a zero
bias.
"""

from __future__ import annotations

from vivavoce.checkpoints.rules import Drop, Join, Layout, Row, Tie


def _openai_block(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.attn_ln.{{w}}", f"{ours}.attention_norm.{{w}}"),
        Row(tuple(f"{theirs}.attn.{part}.weight" for part in ("query", "key", "value")), f"{ours}.qkv.weight", Join(0)),
        Row(
            tuple(f"{theirs}.attn.{part}.bias" for part in ("query", "key", "value")),
            f"{ours}.qkv.bias",
            Join(0, zero_if_missing=(1,)),
        ),
        Row(f"{theirs}.attn.out.{{w}}", f"{ours}.out.{{w}}"),
        Row(f"{theirs}.mlp_ln.{{w}}", f"{ours}.ffn_norm.{{w}}"),
        Row(f"{theirs}.mlp.0.{{w}}", f"{ours}.ffn_in.{{w}}"),
        Row(f"{theirs}.mlp.2.{{w}}", f"{ours}.ffn_out.{{w}}"),
    )


OPENAI = Layout(
    "whisper, openai",
    ("encoder.conv1.weight", "encoder.positional_embedding", "decoder.token_embedding.weight"),
    (
        Row("encoder.conv{n}.{w}", "encoder.conv{n}.{w}"),
        Row("encoder.positional_embedding", "encoder.positions"),
        *_openai_block("encoder.blocks.{i}", "encoder.stack.layers.{i}"),
        Row("encoder.ln_post.{w}", "encoder.stack.norm.{w}"),
        Row("decoder.token_embedding.weight", ("decoder.embedding.weight", "decoder.head.weight"), Tie()),
        Row("decoder.positional_embedding", "decoder.positions"),
        *_openai_block("decoder.blocks.{i}", "decoder.layers.{i}"),
        Row("decoder.blocks.{i}.cross_attn_ln.{w}", "decoder.layers.{i}.cross_norm.{w}"),
        Row("decoder.blocks.{i}.cross_attn.query.{w}", "decoder.layers.{i}.cross_query.{w}"),
        Row(
            ("decoder.blocks.{i}.cross_attn.key.weight", "decoder.blocks.{i}.cross_attn.value.weight"),
            "decoder.layers.{i}.cross_kv.weight",
            Join(0),
        ),
        Row(
            ("decoder.blocks.{i}.cross_attn.key.bias", "decoder.blocks.{i}.cross_attn.value.bias"),
            "decoder.layers.{i}.cross_kv.bias",
            Join(0, zero_if_missing=(0,)),
        ),
        Row("decoder.blocks.{i}.cross_attn.out.{w}", "decoder.layers.{i}.cross_out.{w}"),
        Row("decoder.ln.{w}", "decoder.norm.{w}"),
    ),
)


def transformers_block(theirs: str, ours: str) -> tuple[Row, ...]:
    names = ("q_proj", "k_proj", "v_proj")
    return (
        Row(f"{theirs}.self_attn_layer_norm.{{w}}", f"{ours}.attention_norm.{{w}}"),
        Row(tuple(f"{theirs}.self_attn.{name}.weight" for name in names), f"{ours}.qkv.weight", Join(0)),
        Row(
            tuple(f"{theirs}.self_attn.{name}.bias" for name in names),
            f"{ours}.qkv.bias",
            Join(0, zero_if_missing=(1,)),
        ),
        Row(f"{theirs}.self_attn.out_proj.{{w}}", f"{ours}.out.{{w}}"),
        Row(f"{theirs}.final_layer_norm.{{w}}", f"{ours}.ffn_norm.{{w}}"),
        Row(f"{theirs}.fc1.{{w}}", f"{ours}.ffn_in.{{w}}"),
        Row(f"{theirs}.fc2.{{w}}", f"{ours}.ffn_out.{{w}}"),
    )


TRANSFORMERS = Layout(
    "whisper, transformers",
    ("model.encoder.conv1.weight", "model.decoder.embed_tokens.weight"),
    (
        Row("model.encoder.conv{n}.{w}", "encoder.conv{n}.{w}"),
        Row("model.encoder.embed_positions.weight", "encoder.positions"),
        *transformers_block("model.encoder.layers.{i}", "encoder.stack.layers.{i}"),
        Row("model.encoder.layer_norm.{w}", "encoder.stack.norm.{w}"),
        Row("model.decoder.embed_tokens.weight", ("decoder.embedding.weight", "decoder.head.weight"), Tie()),
        Row("proj_out.weight", None, Drop("a second copy of the token embedding")),
        Row("model.decoder.embed_positions.weight", "decoder.positions"),
        *transformers_block("model.decoder.layers.{i}", "decoder.layers.{i}"),
        Row("model.decoder.layers.{i}.encoder_attn_layer_norm.{w}", "decoder.layers.{i}.cross_norm.{w}"),
        Row("model.decoder.layers.{i}.encoder_attn.q_proj.{w}", "decoder.layers.{i}.cross_query.{w}"),
        Row(
            (
                "model.decoder.layers.{i}.encoder_attn.k_proj.weight",
                "model.decoder.layers.{i}.encoder_attn.v_proj.weight",
            ),
            "decoder.layers.{i}.cross_kv.weight",
            Join(0),
        ),
        Row(
            ("model.decoder.layers.{i}.encoder_attn.k_proj.bias", "model.decoder.layers.{i}.encoder_attn.v_proj.bias"),
            "decoder.layers.{i}.cross_kv.bias",
            Join(0, zero_if_missing=(0,)),
        ),
        Row("model.decoder.layers.{i}.encoder_attn.out_proj.{w}", "decoder.layers.{i}.cross_out.{w}"),
        Row("model.decoder.layer_norm.{w}", "decoder.norm.{w}"),
    ),
)


def _ctranslate2_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{theirs}/gamma", f"{ours}.weight"), Row(f"{theirs}/beta", f"{ours}.bias"))


def _ctranslate2_block(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *_ctranslate2_norm(f"{theirs}/self_attention/layer_norm", f"{ours}.attention_norm"),
        Row(f"{theirs}/self_attention/linear_0/{{w}}", f"{ours}.qkv.{{w}}"),
        Row(f"{theirs}/self_attention/linear_1/{{w}}", f"{ours}.out.{{w}}"),
        *_ctranslate2_norm(f"{theirs}/ffn/layer_norm", f"{ours}.ffn_norm"),
        Row(f"{theirs}/ffn/linear_0/{{w}}", f"{ours}.ffn_in.{{w}}"),
        Row(f"{theirs}/ffn/linear_1/{{w}}", f"{ours}.ffn_out.{{w}}"),
    )


CTRANSLATE2 = Layout(
    "whisper, CTranslate2",
    ("encoder/conv1/weight", "encoder/position_encodings/encodings", "decoder/embeddings/weight"),
    (
        *(Row(f"*/{name}", None, Drop("a setting, read from shapes")) for name in ("num_heads", "activation", "alibi")),
        *(
            Row(f"decoder/{name}", None, Drop("a setting of the translation engine"))
            for name in ("alignment_heads", "alignment_layer", "alibi_use_positive_positions", "scale_alibi",
                         "scale_embeddings", "scale_outputs", "start_from_zero_embedding", "pre_norm")
        ),
        *(
            Row(f"*/{name}", None, Drop("a setting of the translation engine"))
            for name in ("pre_norm", "alibi_use_positive_positions", "scale_alibi", "num_heads_kv", "head_dim",
                         "sliding_window", "multi_query_attention", "original_max_position_embeddings")
        ),
        Row("encoder/conv{n}/{w}", "encoder.conv{n}.{w}"),
        Row("encoder/position_encodings/encodings", "encoder.positions"),
        *_ctranslate2_block("encoder/layer_{i}", "encoder.stack.layers.{i}"),
        *_ctranslate2_norm("encoder/layer_norm", "encoder.stack.norm"),
        Row("decoder/projection/weight", None, Drop("an alias of the token embedding")),
        Row("decoder/embeddings/weight", ("decoder.embedding.weight", "decoder.head.weight"), Tie()),
        Row("decoder/position_encodings/encodings", "decoder.positions"),
        *_ctranslate2_block("decoder/layer_{i}", "decoder.layers.{i}"),
        *_ctranslate2_norm("decoder/layer_{i}/attention/layer_norm", "decoder.layers.{i}.cross_norm"),
        Row("decoder/layer_{i}/attention/linear_0/{w}", "decoder.layers.{i}.cross_query.{w}"),
        Row("decoder/layer_{i}/attention/linear_1/{w}", "decoder.layers.{i}.cross_kv.{w}"),
        Row("decoder/layer_{i}/attention/linear_2/{w}", "decoder.layers.{i}.cross_out.{w}"),
        *_ctranslate2_norm("decoder/layer_norm", "decoder.norm"),
    ),
)  # fmt: skip

LAYOUTS = (OPENAI, TRANSFORMERS, CTRANSLATE2)
