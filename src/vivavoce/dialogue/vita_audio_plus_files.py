"""VITA-Audio-Plus from its published folder."""

from __future__ import annotations

import torch
from torch import Tensor

from vivavoce.asr.sensevoice import SenseVoiceConfig
from vivavoce.checkpoints.layouts.sensevoice import with_statistics
from vivavoce.checkpoints.layouts.vita_audio import plus
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import import_weights
from vivavoce.dialogue.vita_audio_files import check_family, read_config
from vivavoce.dialogue.vita_audio_plus import VITAAudioPlus, VITAAudioPlusConfig
from vivavoce.errors import CheckpointError


def import_vita_audio_plus(checkpoint: Checkpoint) -> tuple[VITAAudioPlusConfig, dict[str, Tensor]]:
    """Configuration and our state dict of a published folder, beside whose weights lies SenseVoice's ``am.mvn``."""
    published = check_family(checkpoint)
    if published.get("model_type") != "qwen2_mtp_sensevoice":
        raise CheckpointError(
            f"model type {published.get('model_type')!r} is not VITA-Audio-Plus's qwen2_mtp_sensevoice; "
            "give a Plus checkpoint"
        )
    inside = "model.audio_model.model."
    hearing = {
        key.removeprefix(inside): tuple(checkpoint.tensors[key].shape)
        for key in checkpoint.tensors
        if key.startswith(inside)
    }
    config = VITAAudioPlusConfig(
        model=read_config({**published, "model_type": "qwen2_mtp"}), hearing=SenseVoiceConfig.of_shapes(hearing)
    )
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VITAAudioPlus(config).state_dict().items()}
    c = config.model.decoder
    layout = plus(c.n_heads, c.n_kv_heads, c.n_layers, config.model.modules)
    return config, import_weights(layout, with_statistics(checkpoint), shapes)
