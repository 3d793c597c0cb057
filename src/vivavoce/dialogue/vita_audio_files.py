"""VITA-Audio's published files to a model: sizes from ``config.json``, weights through the layout table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.read import Checkpoint, read_json
from vivavoce.checkpoints.rules import import_weights
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.errors import CheckpointError
from vivavoce.nn.decoder import DecoderConfig


def read_config(published: Mapping[str, Any]) -> VITAAudioConfig:
    """The sizes in a published ``config.json``; CheckpointError where it is of another family."""
    kind = published.get("model_type")
    if kind != "qwen2_mtp":
        raise CheckpointError(f"model type {kind!r} is not VITA-Audio's qwen2_mtp; give the files of a plain checkpoint")
    if published.get("rope_scaling") or published.get("use_sliding_window") or published.get("tie_word_embeddings"):
        raise CheckpointError("this checkpoint scales positions, slides its attention or ties its head: not supported")
    try:
        modules = int(published["num_nextn_predict_layers"])
        heads, dim = int(published["num_attention_heads"]), int(published["hidden_size"])
        decoder = DecoderConfig(
            dim=dim, n_layers=int(published["num_hidden_layers"]) - modules, n_heads=heads,
            n_kv_heads=int(published["num_key_value_heads"]), head_dim=dim // heads,
            ffn_dim=int(published["intermediate_size"]), context=int(published["max_position_embeddings"]),
            rope_base=float(published["rope_theta"]), norm_eps=float(published["rms_norm_eps"]), qkv_bias=True,
        )  # fmt: skip
        return VITAAudioConfig(
            decoder=decoder, vocab_size=int(published["vocab_size"]), modules=modules,
            module_loss=float(published.get("mtp_loss_weight", 1.0)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json of this checkpoint is incomplete ({error}); fetch it again") from error


def import_vita_audio(checkpoint: Checkpoint, modules: int | None = None) -> tuple[VITAAudioConfig, dict[str, Tensor]]:
    """Configuration and our state dict; ``modules``, where given, must be the checkpoint's own number."""
    if "config.json" not in checkpoint.files:
        raise CheckpointError(f"{checkpoint.path.name} has no config.json beside it; give the whole published folder")
    config = read_config(read_json(checkpoint.files["config.json"]))
    if modules is not None and modules != config.modules:
        raise CheckpointError(
            f"{checkpoint.path.name} has {config.modules} prediction modules, not {modules}; "
            "choose a checkpoint of that size"
        )
    c = config.decoder
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VITAAudio(config).state_dict().items()}
    layout = transformers(c.n_layers, config.modules, c.n_heads, c.n_kv_heads)
    return config, import_weights(layout, checkpoint.tensors, shapes)
