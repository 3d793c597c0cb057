"""Llama and Qwen2: transformers (halved rotary pairs) and GGUF (Llama interleaves them, Qwen2 does not).

The tables depend on the head counts, since export cuts the joined query, key and value by them; the signatures do not.
"""

from __future__ import annotations

from vivavoce.checkpoints.rules import Chain, Drop, Each, Join, Layout, RopeHalves, Row, Same, Tie


def transformers(n_heads: int, n_kv_heads: int) -> Layout:
    """The table of safetensors for the head counts of one file."""
    return Layout(
        "llama, transformers",
        ("model.embed_tokens.weight", "model.layers.{i}.self_attn.q_proj.weight"),
        (
            Row(
                "model.layers.{i}.self_attn.rotary_emb.inv_freq",
                None,
                Drop("follows from the configuration"),
                optional=True,
            ),
            Row("model.layers.{i}.input_layernorm.weight", "decoder.layers.{i}.attention_norm.weight"),
            Row(
                tuple(f"model.layers.{{i}}.self_attn.{name}_proj.{{w}}" for name in "qkv"),
                "decoder.layers.{i}.qkv.{w}",
                Join(0, (n_heads, n_kv_heads, n_kv_heads)),
            ),
            Row("model.layers.{i}.self_attn.o_proj.weight", "decoder.layers.{i}.out.weight"),
            Row("model.layers.{i}.post_attention_layernorm.weight", "decoder.layers.{i}.ffn_norm.weight"),
            Row(
                ("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
                "decoder.layers.{i}.gate_up.weight",
                Join(0),
            ),
            Row("model.layers.{i}.mlp.down_proj.weight", "decoder.layers.{i}.down.weight"),
            Row("model.norm.weight", "decoder.norm.weight"),
        ),
    )


def gguf(n_heads: int, n_kv_heads: int, interleaved: bool = True) -> Layout:
    """The GGUF table for the head counts of one file."""
    turn = Each(RopeHalves(n_heads), RopeHalves(n_kv_heads), Same()) if interleaved else Each(Same(), Same(), Same())
    join = Join(0, (n_heads, n_kv_heads, n_kv_heads))
    return Layout(
        "llama, GGUF",
        ("token_embd.weight", "blk.{i}.attn_q.weight"),
        (
            Row("rope_freqs.weight", None, Drop("follows from the configuration"), optional=True),
            Row("blk.{i}.attn_norm.weight", "decoder.layers.{i}.attention_norm.weight"),
            Row(
                tuple(f"blk.{{i}}.attn_{name}.{{w}}" for name in "qkv"),
                "decoder.layers.{i}.qkv.{w}",
                Chain(turn, join),
            ),
            Row("blk.{i}.attn_output.weight", "decoder.layers.{i}.out.weight"),
            Row("blk.{i}.ffn_norm.weight", "decoder.layers.{i}.ffn_norm.weight"),
            Row(("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"), "decoder.layers.{i}.gate_up.weight", Join(0)),
            Row("blk.{i}.ffn_down.weight", "decoder.layers.{i}.down.weight"),
            Row("output_norm.weight", "decoder.norm.weight"),
        ),
    )


def with_head(layout: Layout, embedding: str, head: str, tied: bool) -> Layout:
    """The table with the rows of embedding and head: one tensor for both, or one each."""
    if tied:
        rows = (Row(embedding, ("embedding.weight", "head.weight"), Tie()),)
    else:
        rows = (Row(embedding, "embedding.weight"), Row(head, "head.weight"))
    return Layout(layout.name, layout.signature, (*layout.rows, *rows))
