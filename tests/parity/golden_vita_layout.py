"""Names and shapes of VITA-Audio and GLM-4-Voice at their published sizes, on the meta device: every name is accounted
for, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.parity import golden_glm4_decoder, golden_sensevoice
from vivavoce.checkpoints.layouts import glm4_tokenizer, hift
from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.rules import Layout, import_weights
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.vocoders.hift import HiFT, HiFTConfig


def check(folder: Path) -> dict[str, float]:
    errors = {"flow": golden_glm4_decoder.names(folder / "glm4_voice_flow.json")["flow names"]}
    for name, modules in (("boost", 10), ("stage2", 1), ("stage1", 0)):
        config = VITAAudioConfig.published(modules)
        c = config.decoder
        layout = transformers(c.n_heads, c.n_kv_heads, c.n_layers, modules)
        errors[name] = _fits(folder / f"vita_audio_{name}.json", layout, lambda config=config: VITAAudio(config))
    tokenizer = folder / "glm4_voice_tokenizer.json"
    errors["tokenizer"] = _fits(tokenizer, glm4_tokenizer.TRANSFORMERS, lambda: GLM4Tokenizer(GLM4TokenizerConfig()))
    errors["hift"] = _fits(folder / "glm4_voice_hift.json", hift.PUBLISHED, lambda: HiFT(HiFTConfig.published()))
    return errors | golden_sensevoice.plus_names(folder)


def _fits(path: Path, layout: Layout, make: Callable[[], nn.Module]) -> float:
    """0 where the table takes every name; it raises where it does not."""
    shapes = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in make().state_dict().items()}
        theirs = {key: torch.empty(shape) for key, shape in shapes.items()}
    import_weights(layout, theirs, ours)
    return 0.0
