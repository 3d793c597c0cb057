"""Silero against the TorchScript model of its package (real weights, taken from the cache)."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.parity.compare import Case
from vivavoce.checkpoints.layouts.silero import TORCHSCRIPT, TORCHSCRIPT_8K
from vivavoce.checkpoints.native import build
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import import_weights
from vivavoce.checkpoints.store import published_file
from vivavoce.detect.segments import SegmentOptions, find_segments
from vivavoce.detect.silero import Silero, SileroConfig


def check(folder: Path) -> dict[str, float] | None:
    archive = published_file("silero-vad", "silero_vad.jit")
    if archive is None:
        return None
    case = Case(folder)
    tensors = open_checkpoint(archive).tensors
    wide, narrow = (
        build(
            Silero,
            config,
            import_weights(layout, tensors, {k: tuple(v.shape) for k, v in Silero(config).state_dict().items()}),
        )
        for config, layout in ((SileroConfig(), TORCHSCRIPT), (SileroConfig.narrowband(), TORCHSCRIPT_8K))
    )
    with torch.inference_mode():
        for name, model in (("speech", wide), ("reader", wide), ("mix", wide), ("yesno_8k", narrow)):
            probabilities = model(case.wave(name)[None])[0]
            case.close(f"prob_{name}", probabilities)
            if name == "mix":
                mix = probabilities.tolist()
    length = case.given("mix").numel()
    for name, options in (
        ("segments_default", SegmentOptions()),
        ("segments_faster_whisper", SegmentOptions(min_speech=0, min_silence=2000, pad=400)),
        ("segments_max_2s", SegmentOptions(max_speech=2000)),
        ("segments_threshold_08", SegmentOptions(threshold=0.8)),
    ):
        case.equal(name, [list(found) for found in find_segments(mix, length, options)], case.expected[name])
    return case.errors
