"""Published Llama and Qwen2 files to a model: configuration from GGUF metadata or config.json, weights through the
table.

Quantised GGUF weights are turned row by row into int8 with a scale: the same integers at run time as at rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivavoce.checkpoints.gguf import GGUFFile, dequantise
from vivavoce.checkpoints.layouts.llama import gguf, transformers, with_head
from vivavoce.checkpoints.read import Checkpoint, read_json
from vivavoce.checkpoints.rules import Layout, import_weights
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.nn.quantized import quantize_rows
from vivavoce.text.tokenizer import Tokenizer

KNOWN = ("llama", "qwen2")
MAX_SIZE, MAX_LAYERS = 1 << 24, 1 << 10  # far beyond every published model
SLICE = 1 << 18  # weights that are floats at a time: a mebibyte stays in the processor's cache


def read_config(checkpoint: Checkpoint) -> LlamaConfig:
    """From GGUF metadata, or the config.json beside safetensors."""
    if checkpoint.format != "gguf" and "config.json" not in checkpoint.files:
        raise CheckpointError("a Llama checkpoint needs its config.json: give the folder, not the weight file alone")
    try:
        if checkpoint.format == "gguf":
            config = _gguf_config(checkpoint.metadata, checkpoint.tensors)
        else:
            config = _transformers_config(read_json(checkpoint.files["config.json"]))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "holds an entry in an unknown form"
        raise CheckpointError(
            f"the configuration of {checkpoint.path.name} {what}; give the files as they were published"
        ) from error
    decoder = config.decoder
    sizes = (decoder.dim, decoder.n_layers, decoder.n_heads, decoder.n_kv_heads, decoder.head_dim, decoder.ffn_dim,
             decoder.context, config.vocab_size)  # fmt: skip
    if min(sizes) < 1 or max(sizes) > MAX_SIZE or decoder.n_layers > MAX_LAYERS or decoder.n_heads % decoder.n_kv_heads:
        raise CheckpointError(
            f"the configuration of {checkpoint.path.name} holds an impossible size; give the files as published"
        )
    return config


def _transformers_config(about: Mapping[str, Any]) -> LlamaConfig:
    kind = about.get("model_type")
    if kind not in KNOWN:
        raise CheckpointError(f"this checkpoint is of the type {kind!r}; known are {', '.join(KNOWN)}")
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    _check_positions(rope.get("rope_type", rope.get("type", "default")))
    heads = int(about["num_attention_heads"])
    decoder = DecoderConfig(
        dim=int(about["hidden_size"]), n_layers=int(about["num_hidden_layers"]), n_heads=heads,
        n_kv_heads=int(about.get("num_key_value_heads", heads)),
        head_dim=int(about.get("head_dim") or about["hidden_size"] // heads),
        ffn_dim=int(about["intermediate_size"]), context=int(about["max_position_embeddings"]),
        rope_base=float(about.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        norm_eps=float(about["rms_norm_eps"]), qkv_bias=bool(about.get("attention_bias", kind == "qwen2")),
    )  # fmt: skip
    return LlamaConfig(
        decoder=decoder, vocab_size=int(about["vocab_size"]), tied=bool(about.get("tie_word_embeddings", False))
    )


def _check_positions(scaling: str | None) -> None:
    """Refuse a model whose rotary positions are scaled: without the scaling it would run, and answer nonsense."""
    if scaling not in (None, "none", "default"):
        raise CheckpointError(
            f"this checkpoint scales its rotary positions ({scaling!r}), which is not supported; use a model without"
        )


def _gguf_config(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlamaConfig:
    kind = about.get("general.architecture")
    if kind not in KNOWN:
        raise CheckpointError(f"this GGUF file holds a {kind!r} model; known are {', '.join(KNOWN)}")
    factors = tensors.get("rope_freqs.weight")
    scaled = factors is not None and bool((factors != 1).any())
    _check_positions(about.get(f"{kind}.rope.scaling.type") or ("factors in rope_freqs" if scaled else None))
    heads = int(about[f"{kind}.attention.head_count"])
    dim = int(about[f"{kind}.embedding_length"])
    decoder = DecoderConfig(
        dim=dim, n_layers=int(about[f"{kind}.block_count"]), n_heads=heads,
        n_kv_heads=int(about.get(f"{kind}.attention.head_count_kv", heads)),
        head_dim=int(about.get(f"{kind}.attention.key_length", dim // heads)),
        ffn_dim=int(about[f"{kind}.feed_forward_length"]), context=int(about[f"{kind}.context_length"]),
        rope_base=float(about.get(f"{kind}.rope.freq_base", 10_000.0)),
        norm_eps=round(float(about[f"{kind}.attention.layer_norm_rms_epsilon"]), 12), qkv_bias=kind == "qwen2",
    )  # fmt: skip
    vocabulary = len(about["tokenizer.ggml.tokens"])
    return LlamaConfig(decoder=decoder, vocab_size=vocabulary, tied="output.weight" not in tensors)


def layout_of(checkpoint: Checkpoint, config: LlamaConfig) -> Layout:
    """The table that fits the file."""
    heads = config.decoder.n_heads, config.decoder.n_kv_heads
    if checkpoint.format == "gguf":
        interleaved = checkpoint.metadata["general.architecture"] == "llama"
        return with_head(gguf(*heads, interleaved), "token_embd.weight", "output.weight", config.tied)
    return with_head(transformers(*heads), "model.embed_tokens.weight", "lm_head.weight", config.tied)


def import_llama(checkpoint: Checkpoint) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and our float state dict."""
    config = read_config(checkpoint)
    return config, import_weights(layout_of(checkpoint, config), checkpoint.tensors, state_shapes(config))


def state_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the float state dict."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Llama(config).state_dict().items()}


def int8_parts(
    checkpoint: Checkpoint, left: Mapping[str, Sequence[str]] | None = None
) -> tuple[LlamaConfig, Iterator[dict[str, Tensor]]]:
    """Configuration and int8 state dict in parts: ``X.weight`` (N, K) int8, ``X.weight_scale`` (N,); the rest float32.
    A tied head is left out.

    A part is what stands outside the layers, then one layer at a time. Weights are dequantised and rounded a few rows
    at a time, so no float copy of a matrix is ever there. ``left``: keys of ours that somebody else makes, with the
    names in the file that they come from.
    """
    config = read_config(checkpoint)
    shapes = state_shapes(config)
    return config, _int8_parts(checkpoint, layout_of(checkpoint, config), shapes, config.tied, left or {})


def import_int8(checkpoint: Checkpoint) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Configuration and the whole int8 state dict of :func:`int8_parts`."""
    config, parts = int8_parts(checkpoint)
    return config, {key: tensor for part in parts for key, tensor in part.items()}


def _int8_parts(
    checkpoint: Checkpoint,
    layout: Layout,
    shapes: Mapping[str, tuple[int, ...]],
    tied: bool,
    left: Mapping[str, Sequence[str]],
) -> Iterator[dict[str, Tensor]]:
    passed = {name for names in left.values() for name in names}
    for names, ours in _parts(checkpoint.tensors, shapes):
        names, ours = [n for n in names if n not in passed], {key: ours[key] for key in ours if key not in left}
        floats: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name in names:
            if name.endswith("norm.weight") or not name.endswith("weight") or "rope_freqs" in name:
                floats[name] = checkpoint.tensors[name].float()
            else:
                rows[name], scale = int8_rows(checkpoint.tensors, name)
                scales[name] = scale[:, None]
        table = _rows_for(layout, ours)
        if left:  # a row may have nothing left to do; what is still wanted is missed all the same
            table = tuple(replace(row, optional=True) for row in table)
        part = import_weights(Layout(layout.name, (), table), {**rows, **floats}, ours)
        # every operation on matrices of this family moves whole rows, so the scales take the same way
        matrices = tuple(row for row in table if not any("norm" in key for key in row.own))
        heights = {key: (shape[0], 1) for key, shape in ours.items() if len(shape) == 2}
        for key, scale in import_weights(Layout(layout.name, (), matrices), scales, heights).items():
            part[f"{key}_scale"] = scale[:, 0].contiguous()
        if tied and "head.weight" in part:  # the embedding's rows serve both
            del part["head.weight"], part["head.weight_scale"]
        yield part


def int8_rows(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """One matrix of a file as int8 rows (N, K) and scales (N,), a few rows at a time where the file allows it."""
    if not isinstance(tensors, GGUFFile):
        return quantize_rows(tensors[name])
    kind, blocks = tensors.raw_blocks(name)
    width = tensors.entries[name].shape[-1]
    step = max(1, SLICE // width)
    rows, scales = torch.empty(len(blocks), width, dtype=torch.int8), torch.empty(len(blocks))
    for start in range(0, len(blocks), step):
        floats = torch.from_numpy(dequantise(kind, blocks[start : start + step]))
        rows[start : start + step], scales[start : start + step] = quantize_rows(floats)
    return rows, scales


def _parts(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[list[str], dict[str, tuple[int, ...]]]]:
    """The file in pieces: what stands outside the layers, then one layer at a time, their names beside our shapes."""

    def number(key: str) -> str:
        return next((part for part in key.split(".") if part.isdigit()), "")

    known = {number(key) for key in shapes}
    for n in sorted(known, key=lambda text: int(text or -1)):
        # a layer that our model does not have is looked at with the first part, which reports it
        theirs = [key for key in tensors if number(key) == n or (not n and number(key) not in known)]
        yield theirs, {key: shape for key, shape in shapes.items() if number(key) == n}


def _rows_for(layout: Layout, ours: Mapping[str, tuple[int, ...]]):
    inside = any(key.startswith("decoder.layers.") for key in ours)
    return tuple(row for row in layout.rows if not row.own or row.own[0].startswith("decoder.layers.") == inside)


def read_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, str | None]:
    """The tokenizer and the chat template's text (which is only ever recognised, never run)."""
    if checkpoint.format == "gguf":
        return Tokenizer.from_gguf(checkpoint.metadata), checkpoint.metadata.get("tokenizer.chat_template")
    if "tokenizer.json" not in checkpoint.files:
        raise CheckpointError("the checkpoint has no tokenizer.json beside it; add the file to its folder")
    return Tokenizer.from_file(checkpoint.files["tokenizer.json"]), None
