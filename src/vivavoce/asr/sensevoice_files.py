"""SenseVoice from its published folder."""

from __future__ import annotations

import torch
from torch import Tensor

from vivavoce.asr.sensevoice import SenseVoice, SenseVoiceConfig
from vivavoce.checkpoints.layouts.sensevoice import PUBLISHED, with_statistics
from vivavoce.checkpoints.read import Checkpoint
from vivavoce.checkpoints.rules import import_weights


def import_sensevoice(checkpoint: Checkpoint) -> tuple[SenseVoiceConfig, dict[str, Tensor]]:
    """Configuration and our state dict of a published folder: ``model.pt``, and the statistics in ``am.mvn``."""
    config = SenseVoiceConfig.of_shapes({key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()})
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in SenseVoice(config).state_dict().items()}
    return config, import_weights(PUBLISHED, with_statistics(checkpoint), shapes)
