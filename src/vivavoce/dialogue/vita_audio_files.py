"""VITA-Audio's files: the published ones through the layout table, and our own bundle of a model and its codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.checkpoints.compact import Kind, expand, shrink
from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.checkpoints.read import Checkpoint, read_json
from vivavoce.checkpoints.rules import import_weights
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.dialogue.vita_audio_prompts import VITATokens
from vivavoce.dialogue.vita_audio_session import VITAAudioParts
from vivavoce.errors import CheckpointError
from vivavoce.nn.decoder import DecoderConfig
from vivavoce.text.tokenizer import Tokenizer
from vivavoce.vocoders.hift import HiFT, HiFTConfig


def read_config(published: Mapping[str, Any]) -> VITAAudioConfig:
    """The sizes in a published ``config.json``; CheckpointError where it is of another family."""
    kind = published.get("model_type")
    if kind != "qwen2_mtp":
        raise CheckpointError(f"model type {kind!r} is not VITA-Audio's qwen2_mtp; give a plain checkpoint")
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
    layout = transformers(c.n_heads, c.n_kv_heads, c.n_layers, config.modules)
    return config, import_weights(layout, checkpoint.tensors, shapes)


# ------------------------------------------------------------------------------------------------------ our own form
@dataclass(frozen=True)
class VITAAudioBundle:
    """Configurations of a model and its codec, as one model folder holds them; see
    :class:`~vivavoce.dialogue.vita_audio_session.VITAAudioParts` for ``interleave``, ``mean`` and ``scale``."""

    model: VITAAudioConfig
    tokenizer: GLM4TokenizerConfig
    decoder: GLM4DecoderConfig
    vocoder: HiFTConfig
    interleave: tuple[int, ...]
    mean: float
    scale: float


MODULES = {"model": VITAAudio, "tokenizer": GLM4Tokenizer, "decoder": GLM4Decoder, "vocoder": HiFT}


def small_weight(name: str, tensor: Tensor) -> Kind:
    """How a bundle keeps a weight: the wide feed-forward layers of the speech tokenizer in 4 bits, other matrices in 8,
    small convolutions in halves."""
    if name.startswith("tokenizer.layers") and ".ffn_" in name and name.endswith("weight"):
        return "int4"
    if name.startswith("vocoder.") or tensor.numel() < 4096:
        return "half"
    return "int8"


def save_bundle(folder: Path, parts: VITAAudioParts) -> None:
    """Write model and codec as one small folder (see :func:`small_weight`)."""
    modules = {"model": parts.model, "tokenizer": parts.tokenizer, "decoder": parts.decoder, "vocoder": parts.vocoder}
    tensors = {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}
    bundle = VITAAudioBundle(
        parts.model.config, parts.tokenizer.config, parts.decoder.config, parts.vocoder.config, parts.interleave,
        parts.mean, parts.scale,
    )  # fmt: skip
    save_native(folder, "vita_audio", bundle, shrink(tensors, small_weight))
    parts.tokens.tokenizer.save(folder / "tokenizer.json")


def open_bundle(folder: Path, name: str | None = None, modules: int | None = None) -> VITAAudioParts:
    """A model folder to ready parts; ``modules``, where given, must be the folder's own number."""
    about = open_native(folder)
    if about.system != "vita_audio":
        raise CheckpointError(f"{folder} holds a {about.system}, not a vita_audio; give another folder")
    bundle = from_dict(VITAAudioBundle, about.config)
    if modules is not None and modules != bundle.model.modules:
        raise CheckpointError(
            f"{folder.name} has {bundle.model.modules} prediction modules, not {modules}; choose a model of that size"
        )
    stored = about.tensors()
    made: dict[str, Any] = {}
    for part, kind in MODULES.items():
        own = {key.removeprefix(f"{part}."): stored[key] for key in stored if key.startswith(f"{part}.")}
        made[part] = build(kind, getattr(bundle, part), expand(own))
    tokens = VITATokens(Tokenizer.from_file(folder / "tokenizer.json"))
    if tokens.first_code + tokens.codes > bundle.model.vocab_size:
        raise CheckpointError(f"tokenizer.json in {folder} has more tokens than the model; take the files of one model")
    return VITAAudioParts(
        made["model"], tokens, made["tokenizer"], made["decoder"], made["vocoder"], bundle.interleave, bundle.mean,
        bundle.scale, name or folder.name,
    )  # fmt: skip
