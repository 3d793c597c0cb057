"""HiFT in its published layout against recorded outputs of the reference, every random draw given."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from vivavoce.checkpoints.layouts.hift import LAYOUTS
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import detect, import_weights
from vivavoce.vocoders.hift import HiFT, from_shapes


def load(path: Path) -> HiFT:
    """The model of a ``hift.pt``."""
    weights = open_checkpoint(path).tensors
    model = HiFT(from_shapes({key: tuple(value.shape) for key, value in weights.items()})).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(import_weights(detect(weights, LAYOUTS), weights, shapes))
    return model


@torch.inference_mode()
def check(case_dir: Path) -> dict[str, float]:
    """The largest error of each output, over its largest expected value."""
    tensors = load_file(case_dir / "io.safetensors")
    model = load(case_dir / "hift.pt")
    mel, phase, noise = (tensors[f"hift_{name}"][None] for name in ("mel", "phase", "noise"))
    phase[:, 0] = 0  # recorded as drawn; the reference starts the fundamental at 0
    found = {
        "hift_f0": model.f0(mel),
        "hift_source": model.source(model.f0(mel), phase, noise),
        "hift_wave": model(mel, phase=phase, noise=noise),
        "hift_cached_wave": model(mel, source=tensors["hift_cached_source"][None, None]),
        "offline_wave": model(tensors["offline_mel_steps10"][None], source=tensors["offline_source"][None, None]),
    }
    return {name: float((y.flatten() - tensors[name]).abs().max() / tensors[name].abs().max()) for name, y in found.items()}
