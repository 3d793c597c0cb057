"""SenseVoice-Small against FunASR's front end and the authors' model: features, states, log probabilities, ids, text;
names and shapes of VITA-Audio-Plus at the published sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from tests.parity.compare import Case
from vivavoce.asr.sensevoice import SenseVoice, best_tokens, spell
from vivavoce.asr.sensevoice_files import import_sensevoice
from vivavoce.checkpoints.layouts.sensevoice import PUBLISHED, read_pieces
from vivavoce.checkpoints.layouts.vita_audio import plus
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.rules import export_weights, import_weights
from vivavoce.dialogue.vita_audio_plus import VITAAudioPlus, VITAAudioPlusConfig


@torch.inference_mode()
def check(folder: Path) -> dict[str, float]:
    case = Case(folder)
    # the folder also holds the recorded tensors, so the weight file is named
    checkpoint = replace(open_checkpoint(folder / "model.pt"), files={"am.mvn": folder / "am.mvn"})
    config, weights = import_sensevoice(checkpoint)
    model = SenseVoice(config).eval()
    model.load_state_dict(weights)
    pieces = read_pieces(next(folder.glob("*.bpe.model")))
    waves = [case.given(f"wave_{i}") for i in range(3)]
    for i, wave in enumerate(waves):
        features, count = model.features(wave[None])
        case.close(f"features_{i}", features[0])
        for name, call in case.about["calls"].items():
            form = "withitn" if call["use_itn"] else "woitn"
            states, _ = model.encode(features, count, call["language"], form)
            case.close(f"encoder_{i}_{name}", states[0])
            logits = model.head(states)
            case.close(f"ctc_logprobs_{i}_{name}", logits[0].log_softmax(-1))
            _check_text(case, f"{i}_{name}", best_tokens(logits, count + 4)[0], pieces)
    _check_batch(case, model, waves)
    theirs = export_weights(PUBLISHED, model.state_dict())
    written = {key: value for key, value in theirs.items() if not key.startswith("am.mvn/")}
    case.equal("written names", set(written), set(checkpoint.tensors))
    case.equal("written", all(torch.equal(value, checkpoint.tensors[key]) for key, value in written.items()), True)
    return case.errors


def _check_text(case: Case, name: str, ids: list[int], pieces) -> None:
    case.equal(f"ids_{name}", ids, case.wanted(f"ids_{name}").tolist())
    case.equal(f"text_{name}", spell(ids, pieces), case.about["outputs"]["texts"][name])


def _check_batch(case: Case, model: SenseVoice, waves: list[torch.Tensor]) -> None:
    """All clips in one padded batch, each row in a language of its own."""
    calls = list(case.about["calls"].items())[: len(waves)]
    lengths = torch.tensor([len(wave) for wave in waves])
    logits, count = model(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, [call["language"] for _, call in calls],
        ["withitn" if call["use_itn"] else "woitn" for _, call in calls],
    )  # fmt: skip
    for i, (name, _) in enumerate(calls):
        case.close(f"ctc_logprobs_{i}_{name}", logits[i, : count[i]].log_softmax(-1), f"batch_{i}_{name}")


def plus_names(folder: Path) -> dict[str, float]:
    """The Plus checkpoints on the meta device: every name is accounted for, no other, and the numbers of parameters are
    the published ones."""
    errors = {}
    for name, modules, size in (("vanilla", 0, 7_979_042_111), ("boost", 10, 10_566_592_831)):
        config = VITAAudioPlusConfig.published(modules)
        c, width = config.model.decoder, config.hearing.width
        shapes = json.loads((folder / f"vita_audio_plus_{name}.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = VITAAudioPlus(config)
            theirs = {key: torch.empty(shape) for key, shape in shapes.items()}
            theirs |= {f"am.mvn/{part}": torch.empty(width) for part in ("shift", "scale")}
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        import_weights(plus(c.n_heads, c.n_kv_heads, c.n_layers, modules), theirs, ours)
        errors[f"plus_{name}"] = 0.0
        errors[f"plus_{name} parameters"] = float(sum(p.numel() for p in model.parameters()) != size)
    return errors
