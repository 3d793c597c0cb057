"""Train the small VITA-Audio by the paper's four stages (arXiv 2505.03739, section 3.3).

    1 align    the backbone alone learns text and speech tokens
    2 one      one module behind the frozen backbone
    3 ten      ten modules, each beginning as a copy of the one
    4 joint    everything, the modules' loss reaching the backbone

    viva train vita_audio --set stage=1      # then 2, 3, 4

Each stage begins with the weights of the one before. ``interleave`` is the checkpoint's kind (Boost).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer
from vivavoce.config import to_dict
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig, begin_module, copy_module, freeze_backbone
from vivavoce.dialogue.vita_audio_cycles import write_by_grammar
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_prompts import INTERLEAVES, VITATokens
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import ConfigError
from vivavoce.recipes.vita_audio_records import (
    Corpus,
    Disturbance,
    Record,
    batch,
    make_tokenizer,
    nearest_codes,
    records,
    vocabulary_size,
)
from vivavoce.train.codes import fingerprint, read_tokenizer
from vivavoce.train.loop import CHECKPOINT, Report, Schedule
from vivavoce.train.utterances import Ahead, Batches


@dataclass(frozen=True)
class Stage:
    """What a stage trains: number of modules, peak rates of backbone and modules, steps."""

    number: int
    modules: int
    rate: float
    module_rate: float
    steps: int


STAGES = {
    1: Stage(1, 0, 1.5e-3, 0.0, 9000),
    2: Stage(2, 1, 0.0, 1e-3, 1500),
    3: Stage(3, 10, 0.0, 1e-3, 2500),
    4: Stage(4, 10, 5e-4, 1e-3, 3000),
}
SHARES = {"answer": 0.55, "transcribe": 0.3, "speak": 0.15}


class VITAAudioRecipe:
    """One stage over a corpus. ``before``: folder of the run of the stage before."""

    def __init__(
        self, corpus: Path, tokenizer: GLM4Tokenizer, tokens: VITATokens, config: VITAAudioConfig, stage: Stage, *,
        before: Path | None = None, sets: tuple[str, ...] = ("teacher", "questions", "digits"),
        splits: tuple[str, ...] = ("train",), seed: int = 0,
        budget: int = 3000, noise: float = 0.04, blur: float = 0.0, views: int = 1, written: int = 40,
        schedule: Schedule | None = None, report: Report | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        self.device = device or torch.device("cpu")
        self.name, self.seed, self.stage = f"vita_audio-{stage.number}", seed, stage
        self.noise, self.blur, self.budget, self.views, self.written = noise, blur, budget, views, written
        self.disturbance = Disturbance(noise, blur, nearest_codes(tokenizer))
        self.schedule = schedule or Schedule(steps=stage.steps, evaluate_every=500, save_every=100, log_every=50)
        self.tokens, self.sets, self.splits, self.interleave = tokens, sets, splits, INTERLEAVES["boost"]
        self.config = config.with_modules(stage.modules)
        self.codes_of = fingerprint(tokenizer)
        torch.manual_seed(seed)
        self.model: nn.Module = VITAAudio(self.config)
        if before is not None:
            start_from(self.net, before)
        elif stage.number > 1:
            raise ConfigError(f"stage {stage.number} begins with the weights of stage {stage.number - 1}: name its run")
        if stage.number == 2:
            begin_module(self.net)
        if stage.number == 3:
            copy_module(self.net)
        freeze_backbone(self.net, stage.number in (2, 3))
        self.model.to(self.device)
        wanted = tuple(dict.fromkeys(("teacher", *sets)))
        known = Corpus(corpus, tokenizer.to(self.device), wanted, report, views)
        # the answering voice keeps its test sentences to itself, whatever the askers' splits are
        learned = {name: ("train",) if name == "teacher" else splits for name in sets}
        self.records = [r for name in sets for r in records(known, tokens, name, learned[name], self.interleave)]
        self.dev = {name: records(known, tokens, name, ("dev",), self.interleave)[:400] for name in sets}
        self.order = shares(self.records, seed)
        sizes = [len(self.records[i].ids) for i in self.order]
        self.batches = Batches(sizes, budget, seed)
        self.drawn = Ahead(self._drawn)

    @property
    def net(self) -> VITAAudio:
        assert isinstance(self.model, VITAAudio)
        return self.model

    def settings(self) -> Mapping[str, Any]:
        return {"config": to_dict(self.config), "stage": vars(self.stage), "sets": self.sets,
                "splits": self.splits, "noise": self.noise,
                "blur": self.blur, "budget": self.budget, "views": self.views, "steps": self.schedule.steps,
                "tokenizer": self.codes_of}  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        own = [p for module in self.net.mctp for p in module.parameters()]
        chosen = {id(p) for p in own}
        rest = [p for p in self.net.parameters() if id(p) not in chosen and p.requires_grad]
        groups = [{"params": rest, "lr": self.stage.rate}, {"params": own, "lr": self.stage.module_rate}]
        return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), weight_decay=0.05)

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids and labels of a step."""
        random = np.random.default_rng((self.seed, step))
        return batch([self.records[self.order[i]] for i in self.batches[step]], self.tokens, random, self.disturbance)

    def loss(self, step: int) -> dict[str, Tensor]:
        ids, labels = (part.to(self.device) for part in self.drawn[step])
        stage = self.stage.number
        with torch.autocast(self.device.type, torch.bfloat16):
            terms = self.net.loss_terms(ids, labels, detach=stage in (2, 3))
        modules = terms["modules"].mean() if self.config.modules else terms["main"].new_zeros(())
        total = {1: terms["main"], 2: modules, 3: modules}.get(stage, terms["main"] + self.config.module_loss * modules)
        return {"loss": total, "main": terms["main"], "modules": modules}

    def evaluate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, found in self.dev.items():
            for task in SHARES:
                part = [r for r in found if r.task == task][:80]
                if part:
                    figures |= {f"{name} {task} {k}": v for k, v in self._teacher_forced(part).items()}
                if part and task != "speak" and self.written:
                    exact = [self.write(r, "vanilla") == r.answer for r in part[: self.written]]
                    figures[f"{name} {task} exact"] = 100 * float(np.mean(exact))
                    if task == "answer" and self.config.modules == 10:
                        exact = [self.write(r, "boost") == r.answer for r in part[: self.written]]
                        figures[f"{name} {task} exact boost"] = 100 * float(np.mean(exact))
        return figures

    def _teacher_forced(self, part: list[Record]) -> dict[str, float]:
        """Accuracy of the backbone over text and speech, and of each module over speech."""
        ids, labels = (part.to(self.device) for part in batch(part, self.tokens, np.random.default_rng(0)))
        right: dict[str, float] = {}
        for number, (hidden, wanted) in enumerate(self.net.predict(ids, labels)):
            hit = self.net.logits(hidden).argmax(-1) == wanted
            speech = wanted >= self.tokens.first_code
            if number == 0:
                right["text"] = 100 * float(hit[~speech].float().mean())
            if speech.any():
                right["speech" if number == 0 else f"module {number - 1}"] = 100 * float(hit[speech].float().mean())
        return right

    def write(self, record: Record, mode: str) -> str:
        """The text that the model answers to a record's prompt, cut at twice the length of what was to be said."""
        limit = 2 * (len(record.ids) - len(record.prompt)) + 16
        speaking = record.task != "transcribe"
        text, _ = answer(self.net, self.tokens, record.prompt, mode, self.interleave, speaking, limit)
        return text

    def sample(self, folder: Path, step: int) -> None:
        """A few answers as text."""
        if not self.written:
            return
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [found[i] for found in self.dev.values() for i in range(0, min(len(found), 200), 20)]
        with (folder / f"{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            for record in chosen:
                row = {"task": record.task, "heard": record.heard, "wanted": record.answer}
                file.write(json.dumps({**row, "written": self.write(record, "vanilla")}) + "\n")


@torch.inference_mode()
def answer(
    net: VITAAudio, tokens: VITATokens, prompt: list[int], mode: str, interleave: tuple[int, ...], speaking: bool,
    limit: int = 512,
) -> tuple[str, list[int]]:  # fmt: skip
    """Text and codes of the greedy answer to a prompt, at most ``limit`` tokens and all within 512."""
    room = min(limit, 512 - len(prompt) - 2)
    writer = Writer.begin(net, 512)
    writer.add(prompt)
    writer.begin_answer()
    grammar = Grammar(tokens, net.config.vocab_size, speaking=speaking, interleave=interleave)
    written = [w.token for w in write_by_grammar(writer, grammar, MODES[mode], room)]
    codes = [code for token in written if (code := tokens.code(token)) is not None]
    return tokens.tokenizer.decode([t for t in written if t in tokens.text_ids]).strip(), codes


def shares(found: list[Record], seed: int) -> list[int]:
    """Numbers of records so that tasks stand in their shares: small tasks are repeated, nothing is left out."""
    by_task = {task: [i for i, r in enumerate(found) if r.task == task] for task in SHARES}
    total = max(len(rows) / SHARES[task] for task, rows in by_task.items() if rows)
    random, order = np.random.default_rng((seed, 7)), list[int]()
    for task, rows in by_task.items():
        wanted = round(total * SHARES[task]) if rows else 0
        whole, rest = divmod(wanted, len(rows)) if rows else (0, 0)
        order += rows * whole + random.permutation(rows)[:rest].tolist()
    return order


def start_from(model: VITAAudio, run: Path) -> None:
    """The weights of a finished run of the stage before; modules it does not have stay as they are."""
    if not (run / CHECKPOINT).exists():
        raise ConfigError(f"there is no run of the stage before in {run}; train that stage first, or name its run")
    with safe_open(run / CHECKPOINT, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 (not a mapping)
        stored = {name.removeprefix("model."): file.get_tensor(name) for name in names}
    own = model.state_dict()
    strange = [name for name, tensor in stored.items() if name not in own or own[name].shape != tensor.shape]
    if strange:
        raise ConfigError(f"the run in {run} does not fit at {strange[0]}; it belongs to another size")
    model.load_state_dict(stored, strict=False)


def nano_config(vocab_size: int) -> VITAAudioConfig:
    """The shipped size."""
    return VITAAudioConfig.nano(vocab_size)


@dataclass(frozen=True, kw_only=True)
class Options:
    """``stage``: 1 align, 2 one module, 3 ten modules, 4 joint; each goes on from the run ``before`` (default: the
    stage before, where the verb puts it). ``tokenizer``: the folder of the finished tokenizer. ``sets``: of the corpus,
    ``splits``: of those that ask.
    ``steps``: 0 for the stage's own number. ``rates``: factor on its learning rates. ``budget``: tokens to a step,
    padding counted. ``noise``: share of the heard speech tokens that are disturbed, ``blur``: share of them
    that become one of the four nearest. ``views``: how many times what is
    heard is encoded, at other speeds and levels each. ``written``: answers a set and task to write at an evaluation.
    """

    stage: Literal[1, 2, 3, 4] = 1
    size: Literal["nano", "tiny"] = "nano"
    before: str = ""
    tokenizer: str = "~/viva-runs/glm4_tokenizer/model"
    sets: tuple[str, ...] = ("teacher", "questions", "digits")
    splits: tuple[str, ...] = ("train",)
    steps: int = 0
    rates: float = 1.0
    budget: int = 3000
    noise: float = 0.04
    blur: float = 0.0
    views: int = 1
    written: int = 40
    evaluate_every: int = 500
    save_every: int = 100
    seed: int = 0

    @property
    def name(self) -> str:
        return f"vita_audio-{self.stage}"


def open(
    corpus: Path, options: Options, report: Report | None = None, device: torch.device | None = None
) -> VITAAudioRecipe:
    """One stage on a corpus folder of sets."""
    stage, before = STAGES[options.stage], options.before
    if not before and stage.number > 1:
        before = f"~/viva-runs/vita_audio-{stage.number - 1}"
    stage = replace(
        stage, rate=options.rates * stage.rate, module_rate=options.rates * stage.module_rate,
        steps=options.steps or stage.steps,
    )  # fmt: skip
    tokenizer = read_tokenizer(Path(options.tokenizer).expanduser())
    tokens = VITATokens(make_tokenizer(tokenizer.config.codes))
    size = nano_config if options.size == "nano" else tiny_config
    schedule = Schedule(
        steps=stage.steps, evaluate_every=options.evaluate_every, save_every=options.save_every, log_every=50
    )  # fmt: skip
    return VITAAudioRecipe(
        corpus, tokenizer, tokens, size(vocabulary_size(tokens)), stage,
        before=Path(before).expanduser() if before else None, sets=options.sets, splits=options.splits,
        seed=options.seed,
        budget=options.budget, noise=options.noise, blur=options.blur, views=options.views, written=options.written,
        schedule=schedule, report=report, device=device,
    )  # fmt: skip


def tiny_config(vocab_size: int) -> VITAAudioConfig:
    """Two layers of width 24: that it learns, not that it answers."""
    config = VITAAudioConfig.tiny()
    return replace(config, vocab_size=vocab_size, decoder=replace(config.decoder, context=512))
