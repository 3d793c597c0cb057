"""GLM-4-Voice's speech tokenizer against the published encoder class: features, pooled states, codes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.parity.compare import Case
from vivavoce.checkpoints.layouts.glm4_tokenizer import TRANSFORMERS
from vivavoce.checkpoints.read import open_checkpoint, read_json
from vivavoce.checkpoints.rules import import_weights
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig


@torch.inference_mode()
def check(folder: Path) -> dict[str, float]:
    case = Case(folder)
    model = GLM4Tokenizer(GLM4TokenizerConfig.published(read_json(folder / "config.json"))).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(import_weights(TRANSFORMERS, open_checkpoint(folder / "model.safetensors").tensors, shapes))
    waves = {name.removeprefix("wave_"): case.given(name) for name in case.tensors if name.startswith("wave_")}
    waves["long"] = waves["odd"].repeat(500_800 // waves["odd"].numel() + 1)[:500_800]
    per = model.config.samples_per_code
    for name, wave in waves.items():
        codes = model(wave[None])
        case.errors[f"codes_{name}"] = float(codes.values[0, 0].tolist() != case.wanted(f"codes_{name}").tolist())
        if f"features_{name}" in case.tensors:
            padded = torch.nn.functional.pad(wave[None], (0, -wave.numel() % per))
            mel = model.mel(padded)
            case.close(f"features_{name}", mel[0])
            frames = torch.tensor([-(-wave.numel() // 320)])
            pooled, wanted = model.features(mel, frames)[0], case.wanted(f"pooled_{name}")
            case.errors[f"pooled_{name}"] = float(
                (pooled - wanted[: len(pooled)]).abs().max() / wanted[: len(pooled)].abs().max()
            )
    together = [waves[name] for name in ("odd", "exact_block", "tiny")]
    lengths = torch.tensor([wave.numel() for wave in together])
    batch = model(torch.nn.utils.rnn.pad_sequence(together, batch_first=True), lengths)
    for row in range(len(together)):
        wanted = case.wanted(f"batch_codes_{row}").tolist()
        got = batch.values[row, 0, : batch.lengths[row]].tolist()
        case.errors[f"batch_codes_{row}"] = float(got != wanted)
    return case.errors
