"""VITA-Audio against its own code: teacher-forced states, scheduled generation, losses and gradients, prompts and
training records, and names and shapes at the published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.parity.compare import Case, relative
from vivavoce.checkpoints.layouts.vita_audio import transformers
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.dialogue.vita_audio import VITAAudio, freeze_backbone
from vivavoce.dialogue.vita_audio_cycles import write_scheduled
from vivavoce.dialogue.vita_audio_files import import_vita_audio
from vivavoce.dialogue.vita_audio_prompts import Message, VITATokens
from vivavoce.dialogue.vita_audio_writing import Writer
from vivavoce.search.sampling import SamplingOptions, probabilities
from vivavoce.text.tokenizer import Tokenizer


def check(folder: Path) -> dict[str, float]:
    case = Case(folder)
    if folder.name.startswith("vita_tokenizer"):
        return _check_prompts(case)
    config, weights = import_vita_audio(open_checkpoint(folder))
    model = VITAAudio(config)
    model.load_state_dict(weights)
    with torch.inference_mode():
        _check_states(case, model)
        _check_generation(case, model)
    _check_losses(case, model)
    return case.errors


def _check_states(case: Case, model: VITAAudio) -> None:
    ids = case.given("tf_ids")[None]
    for number, hidden in enumerate(model(ids)):
        name = "main" if number == 0 else f"mtp{number - 1}"
        case.close(f"tf_hidden_{name}", hidden[0, number:])
        case.close(f"tf_logits_{name}", model.logits(hidden[0, number:]))
    options = SamplingOptions(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05, window=1 << 20)
    odds = probabilities(case.wanted("tf_logits_main")[-1], ids[0].tolist(), options)
    case.close("sampling_probs", odds)


def _check_generation(case: Case, model: VITAAudio) -> None:
    schedules = case.about["schedules"]
    for name in [name for name in case.tensors if name.startswith("gen_")]:
        if name == "gen_stopped":
            mode, prompt, penalty, stop = schedules["over"], "asr", 1.0, case.about["stop_ids"]
        else:
            schedule, rest = name.removeprefix("gen_").split("_", 1)
            prompt, penalty = rest.rsplit("_rep", 1)
            mode, stop = schedules[schedule], ()
        writer = Writer.begin(model)
        writer.add(case.given(f"prompt_{prompt}").tolist())
        options = SamplingOptions(repetition_penalty=float(penalty), window=1 << 20)
        got = [written.token for written in write_scheduled(writer, mode, 40, stop=stop, options=options)]
        case.equal(name, got, case.wanted(name).tolist())


def _check_losses(case: Case, model: VITAAudio) -> None:
    tokens, labels, positions = (case.given(f"train_{name}")[None] for name in ("input_ids", "labels", "position_ids"))
    for stage in ("stage2", "stage4"):
        freeze_backbone(model, stage == "stage2")
        model.zero_grad()
        terms = model.loss_terms(tokens, labels, positions, detach=stage == "stage2")
        total = model.config.module_loss * terms["modules"].mean()
        if stage == "stage4":
            total = total + terms["main"]
        total.backward()
        for name, value in (("total", total[None]), ("main", terms["main"][None]), ("heads", terms["modules"])):
            case.errors[f"loss_{stage}_{name}"] = relative(value.detach(), case.wanted(f"loss_{stage}_{name}").view(-1))
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        c = model.config.decoder
        theirs = _exported(gradients, c.n_layers, model.config.modules, c.n_heads, c.n_kv_heads)
        for name, norm in case.about["gradient_norms"][stage].items():
            case.errors[f"norm {stage} {name}"] = abs(float(theirs[name].norm()) - norm) / max(norm, 1e-12)
        for name in [name for name in case.tensors if name.startswith(f"grad_{stage}.")]:
            case.close(name, theirs[name.split(".", 1)[1]])
        known = set(case.about["gradient_norms"][stage])
        case.equal(f"trained in {stage}", set(theirs), known)


def _exported(ours: dict[str, torch.Tensor], layers: int, modules: int, heads: int, groups: int) -> dict[str, Any]:
    """Gradients under the published names."""
    from vivavoce.checkpoints.rules import Layout, export_weights

    table = transformers(heads, groups, layers, modules)
    have = tuple(row for row in table.rows if all(_known(name, ours) for name in row.own))
    return export_weights(Layout(table.name, table.signature, have), ours)


def _known(template: str, ours: dict[str, torch.Tensor]) -> bool:
    return any(template.replace("{w}", w) in ours for w in ("weight", "bias"))


def _check_prompts(case: Case) -> dict[str, float]:
    tokens = VITATokens(Tokenizer.from_file(case.folder / "tokenizer.json"))
    out = case.about["outputs"]
    for name, number in out["token_ids"].items():
        case.equal(f"id {name}", tokens.tokenizer.id(name), number)
    for number, probe in enumerate(out["probes"]):
        if not any(name in probe["text"] for name in tokens.tokenizer.specials):  # ours takes names as plain text
            case.equal(f"probe {number}", tokens.tokenizer.encode(probe["text"]), probe["ids"])
    for name, prompt in out["prompts"].items():
        messages, clips = [], []
        for message in prompt["messages"]:
            text, found = _clips_in(message["content"])
            messages.append(Message(message["role"], text))
            clips += found
        case.equal(f"prompt {name}", tokens.prompt(messages, clips), prompt["ids"])
    for record in out["records"]:
        about = record["record"]
        messages = [Message(m["role"], m["content"]) for m in about["messages"]]
        clips = [out["clips"][name] for name in about.get("audios", [])]
        ids, labels = tokens.record(messages, clips, record["ratio"])
        case.equal(f"record {about['name']} {record['ratio']}", [ids, labels], [record["input_ids"], record["labels"]])
    return case.errors


def _clips_in(content: str) -> tuple[str, list[list[int]]]:
    """Written-out clips back to places and codes."""
    import re

    clips: list[list[int]] = []

    def take(found: re.Match[str]) -> str:
        clips.append([int(code) for code in re.findall(r"\|audio_(\d+)\|", found[0])])
        return "<|audio|>"

    pattern = r"<\|begin_of_audio\|>(?:<\|audio_\d+\|>)*<\|end_of_audio\|>"
    return re.sub(pattern, take, content), clips
