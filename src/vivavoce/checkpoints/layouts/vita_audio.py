"""VITA-Audio's published layouts: Qwen2 keys, the modules' decoder layers counted on behind the backbone's; in the Plus
checkpoints a SenseVoice and a projection beside them."""

from __future__ import annotations

from dataclasses import replace

from vivavoce.checkpoints.layouts import sensevoice
from vivavoce.checkpoints.rules import Join, Layout, Row


def transformers(n_heads: int, n_kv_heads: int, n_layers: int = 1, n_modules: int = 1) -> Layout:
    """The table for the head counts of a file, its backbone layers and its modules (the signature needs none)."""
    rows = [Row("model.embed_tokens.weight", "embedding.weight"), Row("model.norm.weight", "decoder.norm.weight"),
            Row("lm_head.weight", "head.weight")]  # fmt: skip
    for layer in range(n_layers):
        rows += _layer(f"model.layers.{layer}", f"decoder.layers.{layer}", n_heads, n_kv_heads)
    for module in range(n_modules):
        rows += _layer(f"model.layers.{n_layers + module}", f"mctp.{module}.layer", n_heads, n_kv_heads)
        rows += [
            Row(f"mtp_projs.{module}.weight", f"mctp.{module}.project.weight"),
            Row(f"mtp_embed_norms.{module}.weight", f"mctp.{module}.embed_norm.weight"),
            Row(f"mtp_hidden_norms.{module}.weight", f"mctp.{module}.hidden_norm.weight"),
        ]
    signature = ("model.embed_tokens.weight", "lm_head.weight", *(("mtp_projs.0.weight",) if n_modules else ()))
    return Layout("vita_audio, transformers", signature, tuple(rows))


def plus(n_heads: int, n_kv_heads: int, n_layers: int = 1, n_modules: int = 0) -> Layout:
    """The same of a VITA-Audio-Plus, which hears by SenseVoice; the statistics of its features lie in ``am.mvn``."""
    plain = transformers(n_heads, n_kv_heads, n_layers, n_modules)
    rows = (
        *(replace(row, ours=tuple(f"model.{name}" for name in row.own)) for row in plain.rows),
        *sensevoice.rows("model.audio_model.model.", "hearing."),
        Row("model.audio_projection.pre_proj_layernorm.{w}", "projector.norm.{w}"),
        Row("model.audio_projection.mlp.0.weight", "projector.inner.weight"),
        Row("model.audio_projection.mlp.2.weight", "projector.out.weight"),
    )
    signature = (*plain.signature, "model.audio_projection.mlp.0.weight", "model.audio_model.model.embed.weight")
    return Layout("vita_audio_plus, transformers", signature, rows)


def _layer(theirs: str, ours: str, n_heads: int, n_kv_heads: int) -> list[Row]:
    return [
        Row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        Row(
            tuple(f"{theirs}.self_attn.{name}_proj.{{w}}" for name in "qkv"),
            f"{ours}.qkv.{{w}}",
            Join(0, (n_heads, n_kv_heads, n_kv_heads)),
        ),
        Row(f"{theirs}.self_attn.o_proj.weight", f"{ours}.out.weight"),
        Row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight"),
        Row(
            (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"),
            f"{ours}.gate_up.weight",
            Join(0),
        ),
        Row(f"{theirs}.mlp.down_proj.weight", f"{ours}.down.weight"),
    ]
