"""Published Whisper files to a model: sizes from tensor shapes, side settings from whatever lies beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.asr.whisper import Whisper, WhisperConfig
from vivavoce.checkpoints.layouts.whisper import LAYOUTS
from vivavoce.checkpoints.native import build
from vivavoce.checkpoints.read import Checkpoint, read_json
from vivavoce.checkpoints.rules import Layout, detect, import_weights
from vivavoce.errors import CheckpointError

HEAD_WIDTH = 64  # every published size


def _json(files: dict[str, Path], name: str) -> dict[str, Any]:
    return read_json(files[name]) if name in files else {}


def read_config(checkpoint: Checkpoint) -> WhisperConfig:
    """Sizes from shapes; head counts and alignment heads from the configuration files where they exist."""
    layout = detect(checkpoint.tensors, LAYOUTS)
    try:
        config = _config(checkpoint, layout)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "holds an entry in an unknown form"
        raise CheckpointError(
            f"{checkpoint.path.name} or a configuration beside it {what}; give the files as they were published"
        ) from error
    heads = (config.audio_heads, config.audio_dim), (config.text_heads, config.text_dim)
    if any(number < 1 or dim % number for number, dim in heads):
        raise CheckpointError(
            f"the configuration beside {checkpoint.path.name} has a number of heads that its width cannot be cut into; "
            "give the files as they were published"
        )
    if any(not (0 <= at < config.text_layers and 0 <= head < config.text_heads) for at, head in config.alignment_heads):
        raise CheckpointError(
            f"the configuration beside {checkpoint.path.name} names alignment heads that the model does not have; "
            "give the files as they were published"
        )
    return config


def _config(checkpoint: Checkpoint, layout: Layout) -> WhisperConfig:
    kind = layout.name.split(", ")[1]
    names = {
        "openai": ("encoder.conv1.weight", "encoder.positional_embedding", "decoder.token_embedding.weight",
                   "decoder.positional_embedding", "encoder.blocks.", "decoder.blocks."),
        "transformers": ("model.encoder.conv1.weight", "model.encoder.embed_positions.weight",
                         "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight",
                         "model.encoder.layers.", "model.decoder.layers."),
        "CTranslate2": ("encoder/conv1/weight", "encoder/position_encodings/encodings", "decoder/embeddings/weight",
                        "decoder/position_encodings/encodings", "encoder/layer_", "decoder/layer_"),
    }[kind]  # fmt: skip
    conv, audio, text, positions = (tuple(checkpoint.tensors[name].shape) for name in names[:4])
    settings, heads = _json(checkpoint.files, "config.json"), _json(checkpoint.files, "generation_config.json")
    dims = checkpoint.metadata.get("dims", {})
    alignment = heads.get("alignment_heads") or settings.get("alignment_heads") or ()
    return WhisperConfig(
        n_mels=conv[1],
        audio_context=audio[0],
        audio_dim=audio[1],
        audio_heads=_heads(checkpoint, "encoder", settings, dims, audio[1]),
        audio_layers=_layers(checkpoint.tensors, names[4]),
        vocab_size=text[0],
        text_context=positions[0],
        text_dim=text[1],
        text_heads=_heads(checkpoint, "decoder", settings, dims, text[1]),
        text_layers=_layers(checkpoint.tensors, names[5]),
        alignment_heads=tuple((int(layer), int(head)) for layer, head in alignment),
    )


def _layers(tensors: Any, prefix: str) -> int:
    numbers = {key[len(prefix) :].split("/")[0].split(".")[0] for key in tensors if key.startswith(prefix)}
    return 1 + max(int(number) for number in numbers if number.isdigit())


def _heads(checkpoint: Checkpoint, side: str, settings: dict[str, Any], dims: dict[str, Any], dim: int) -> int:
    if f"{side}_attention_heads" in settings:
        return int(settings[f"{side}_attention_heads"])
    if dims:
        return int(dims["n_audio_head" if side == "encoder" else "n_text_head"])
    if f"{side}/num_heads" in checkpoint.tensors:
        return int(checkpoint.tensors[f"{side}/num_heads"])
    return max(1, dim // HEAD_WIDTH)


def import_whisper(checkpoint: Checkpoint) -> tuple[WhisperConfig, dict[str, Tensor]]:
    """The configuration and our state dict, in the file's own precision."""
    from torch import device

    config = read_config(checkpoint)
    with device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Whisper(config).state_dict().items()}
    return config, import_weights(detect(checkpoint.tensors, LAYOUTS), checkpoint.tensors, shapes)


def load_published(checkpoint: Checkpoint, int8: bool = False) -> Whisper:
    """A float32 (or int8) model straight from published files."""
    config, weights = import_whisper(checkpoint)
    return build(Whisper, config, weights, reads_the_window if int8 else None)


def reads_the_window(layer: str) -> bool:
    """Whether a layer is fed all 1500 positions of the sound at once: the encoder, and keys and values made from it."""
    return layer.startswith("encoder.") or layer.endswith("cross_kv")
