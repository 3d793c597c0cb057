"""HiFi-GAN generators in their published layouts against recorded outputs of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from vivavoce.checkpoints.layouts.hifigan import LAYOUTS
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import detect, import_weights
from vivavoce.vocoders.hifigan import HiFiGAN, from_original, from_parallel_wavegan


def check(case_dir: Path) -> dict[str, float]:
    """The largest error of each output, over its largest expected value."""
    case = json.loads((case_dir / "case.json").read_text())
    tensors = load_file(case_dir / "io.safetensors")
    published = case["config"]
    parallel = "generator_params" in published
    config = from_parallel_wavegan(published["generator_params"]) if parallel else from_original(published)
    model = HiFiGAN(config).eval()
    weights = open_checkpoint(case_dir / case["files"]["checkpoint"]).tensors
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(import_weights(detect(weights, LAYOUTS), weights, shapes))
    found = _parallel_wavegan(model, tensors) if parallel else _original(model, tensors)
    return {
        name: float((value - tensors[name]).abs().max() / tensors[name].abs().max()) for name, value in found.items()
    }


def _original(model: HiFiGAN, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        pre = model.pre(tensors["out.mel_1"])
        raised = model.upsamples[0](torch.nn.functional.leaky_relu(pre, 0.1))
        return {
            "out.tap_conv_pre": pre,
            "out.tap_ups.0": raised,
            "out.tap_resblocks.0": model.stages[0].blocks[0](raised),
            "out.audio_1": model(tensors["out.mel_1"])[:, None],
            "out.audio_2": model(tensors["out.mel_2"])[:, None],
        }


def _parallel_wavegan(model: HiFiGAN, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {"out.audio_random_1": model(tensors["in.random_mel_1"].T[None])[0, :, None]}
