"""Silero against the TorchScript model of its package (real weights, taken from the cache)."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.parity.compare import Case
from vivavoce.checkpoints.native import build, open_native
from vivavoce.checkpoints.store import locate
from vivavoce.detect.segments import SegmentOptions, find_segments
from vivavoce.detect.silero import Silero, SileroConfig
from vivavoce.errors import MissingWeightsError


def check(folder: Path) -> dict[str, float] | None:
    try:
        tensors = open_native(locate("silero-vad")).tensors()
    except MissingWeightsError:
        return None
    case = Case(folder)
    wide, narrow = (
        build(Silero, config, {key.removeprefix(part): tensors[key] for key in tensors if key.startswith(part)})
        for config, part in ((SileroConfig(), "wide."), (SileroConfig.narrowband(), "narrow."))
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
