"""Fine-tune a VITA-Audio on a user's own records: spoken questions, transcripts, read text, plain text.

    viva finetune vita_audio data.jsonl --model nano-talk

As the fourth stage of the paper (arXiv 2505.03739, section 3.3), in which backbone and modules learn together; here the
backbone may learn through adapters alone (nn/lora.py), while the modules are trained in full. Records are read by
train/speech_records.py, their sound becomes codes once (train/code_cache.py), and several of them share a row
(train/packing.py). Models whose modules read only the end of a prompt (``module_reads``) take one record a row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vivavoce.catalogue import SHIPPED
from vivavoce.checkpoints.compact import shrink
from vivavoce.checkpoints.native import open_native, save_native
from vivavoce.config import from_dict
from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_cycles import write_by_grammar
from vivavoce.dialogue.vita_audio_files import VITAAudioBundle, open_bundle
from vivavoce.dialogue.vita_audio_grammar import Grammar
from vivavoce.dialogue.vita_audio_prompts import CLIP
from vivavoce.dialogue.vita_audio_session import VITAAudioParts
from vivavoce.dialogue.vita_audio_writing import MODES, Writer
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.nn.lora import attach, merge
from vivavoce.train.code_cache import CodeCache
from vivavoce.train.loop import Report, Schedule
from vivavoce.train.packing import PackedBatches, joined
from vivavoce.train.parallel import Pieces, Share, gathered, join
from vivavoce.train.speech_records import TASKS, SpeechRecord, read_records
from vivavoce.train.utterances import Batches
from vivavoce.vita_audio_verbs import is_speech_model

ADAPTERS = "adapters.safetensors"
RATES = {"adapters": 2e-4, "all": 5e-5}
MODULE_RATE = 5e-4  # ten times the backbone's, as in the paper


@dataclass(frozen=True)
class Document:
    """A record as token ids and labels (-100 where nothing is learned)."""

    ids: list[int]
    labels: list[int]
    record: SpeechRecord

    @property
    def last_answer(self) -> int:
        """Where the last answer begins."""
        return max(i for i, label in enumerate(self.labels) if label < 0) + 1


class Tuned(nn.Module):
    """What moves where the backbone has adapters, and no more, so that checkpoints stay small."""

    def __init__(self, net: VITAAudio, rank: int, alpha: float):
        super().__init__()
        net.requires_grad_(False)
        adapters = attach(net.decoder, rank, alpha)
        self.adapters = nn.ModuleDict({name.replace(".", "/"): layer.difference for name, layer in adapters.items()})
        self.mctp = nn.ModuleList(net.mctp).requires_grad_(True)


class FinetuneRecipe:
    """``base``: the folder of the model that is tuned; ``train``, ``held_out``: documents for it."""

    name = "vita_audio_finetune"

    def __init__(
        self, base: Path, parts: VITAAudioParts, train: list[Document], held_out: list[Document], options: Options, *,
        share: Share | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        self.base, self.parts, self.options = base, parts, options
        self.share, self.device = share or Share(), device or torch.device("cpu")
        self.seed, self.held_out, self.documents = options.seed, held_out, train
        self.remarks: list[str] = []  # for the person who trains
        self.net = parts.model
        torch.manual_seed(self.seed)
        self.model: nn.Module = Tuned(self.net, options.rank, options.alpha) if options.rank else self.net
        if not options.rank:
            self.net.requires_grad_(True)
        self.net.to(self.device)
        sizes = [len(document.ids) for document in train]
        steps = options.steps or max(1, round(options.passes * sum(sizes) / options.budget))
        every = options.evaluate_every or max(1, steps // 4)
        self.schedule = Schedule(steps=steps, log_every=10, evaluate_every=every, save_every=options.save_every)
        self.batches = self._batches(sizes)
        self.before = {"loss before": self._scores(held_out)["loss"]} if held_out and self.share.leads else {}
        layers = [*self.net.decoder.layers, *(module.layer for module in self.net.mctp)]
        self.pieces = Pieces(self.net, layers, ("teach", "together")) if options.processes == "pieces" else None

    def settings(self) -> Mapping[str, Any]:
        names = ("rank", "alpha", "rate", "module_rate", "budget", "held_out", "prompts")  # not how it is spread
        digest = hashlib.sha256(repr([(d.ids, d.labels) for d in [*self.documents, *self.held_out]]).encode())
        return {**{name: getattr(self.options, name) for name in names}, "steps": self.schedule.steps,
                "model": fingerprint(self.base), "records": digest.hexdigest()[:16]}  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        tuned = self.options.rank > 0
        own = [parameter for module in self.net.mctp for parameter in module.parameters()]
        chosen = {id(parameter) for parameter in own}
        groups = [
            {"params": [p for p in self.model.parameters() if id(p) not in chosen],
             "lr": self.options.rate or RATES["adapters" if tuned else "all"], "weight_decay": 0.0 if tuned else 0.1},
            {"params": own, "lr": self.options.module_rate or MODULE_RATE},
        ]  # fmt: skip
        return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), weight_decay=0.1)

    def loss(self, step: int) -> dict[str, Tensor]:
        """Backbone's and modules' mean over the learned tokens of all rows of the step, in whichever process they
        are."""
        rows = [[(d.ids, d.labels) for d in map(self.documents.__getitem__, row)] for row in self.batches(step)]
        own = self.share.take(rows) or [[(ids, [-100] * len(ids)) for ids, _ in rows[0]]]  # too few rows: learn nothing
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            pairs = self._predicted(own)
            sums = [F.cross_entropy(self.net.logits(hidden).float(), wanted, reduction="sum")
                    for hidden, wanted in pairs]  # fmt: skip
        counts = self.share.total(torch.tensor([len(wanted) for _, wanted in pairs], device=self.device))
        main, *modules = torch.stack(sums) * self.share.world / counts.clamp_min(1)
        drafts = torch.stack(modules).mean() if modules else main.new_zeros(())
        return {"loss": main + self.net.config.module_loss * drafts, "main": main, "modules": drafts}

    def evaluate(self) -> dict[str, float]:
        """The held-out loss, now and before; for each task how many tokens of text and speech the backbone foretells,
        and of speech the modules, in percent."""
        if not self.held_out:
            return {}
        figures = self.before | {"loss": self._scores(self.held_out)["loss"]}
        for task in TASKS:
            part = [document for document in self.held_out if document.record.task == task]
            found = self._scores(part) if part else {}
            figures |= {f"{task} {name}": value for name, value in found.items() if name != "loss"}
        return figures

    def sample(self, folder: Path, step: int) -> None:
        """A few held-out answers as they are written now."""
        chosen = self.held_out[: self.options.written]
        if not chosen:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            for document in chosen:
                said = document.record.messages[-1].content.replace(CLIP, "").strip()
                row = {"line": document.record.line, "task": document.record.task, "wanted": said}
                file.write(json.dumps({**row, "written": self.write(document)}, ensure_ascii=False) + "\n")

    @torch.inference_mode()
    def write(self, document: Document) -> str:
        """The text of the last answer as the model writes it, cut at twice the length of the one on record."""
        begins, tokens = document.last_answer, self.parts.tokens
        limit = min(2 * (len(document.ids) - begins) + 16, self.net.config.decoder.context - begins)
        writer = Writer.begin(self.net, begins + limit)
        writer.add(document.ids[:begins])
        writer.begin_answer()
        speaking = document.record.task in ("answer", "speak") and CLIP in document.record.messages[-1].content
        grammar = Grammar(tokens, self.net.config.vocab_size, speaking=speaking, interleave=self.parts.interleave)
        written = [made.token for made in write_by_grammar(writer, grammar, MODES["boost"], limit)]
        return tokens.tokenizer.decode([token for token in written if token in tokens.text_ids]).strip()

    def finish(self, folder: Path) -> None:
        """Write the tuned model as a folder that ``viva talk --model`` opens, and beside it what was learned alone.

        Tuned weights are kept in halves: in the 8 bits of a shipped model a small difference would be rounded away.
        Everything else is copied as it is. All processes of a run must call; the first one writes.
        """
        learned = {name: gathered(tensor).cpu() for name, tensor in self.model.state_dict().items()}
        if not self.share.leads:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.rank:
            save_adapters(learned, folder / ADAPTERS, self.options, fingerprint(self.base))
            base = open_bundle(self.base).model
            load_adapters(base, folder / ADAPTERS, fingerprint(self.base))
            learned = base.state_dict()
        about = open_native(self.base)
        stored = about.tensors()
        kept = {name: stored[name] for name in stored if not name.startswith("model.")}
        own = shrink({f"model.{name}": tensor for name, tensor in learned.items()}, lambda name, tensor: "half")
        made_of = {**about.settings, "tuned_from": fingerprint(self.base)}
        save_native(folder, "vita_audio", from_dict(VITAAudioBundle, about.config), {**kept, **own}, made_of)
        shutil.copyfile(self.base / "tokenizer.json", folder / "tokenizer.json")

    def _batches(self, sizes: list[int]):
        """The rows of a step: lists of document numbers."""
        longest, context, options = max(sizes), self.net.config.decoder.context, self.options
        if self.net.config.modules and self.net.config.module_reads is not None:
            alone = Batches(sizes, options.budget, self.seed)
            return lambda step: [[number] for number in alone[step]]
        length = max(longest, min(context, options.budget))
        packed = PackedBatches(sizes, length, max(1, options.budget // length), self.seed)
        return packed.__getitem__

    def _predicted(self, rows: Sequence[Sequence[tuple[list[int], list[int]]]]) -> list[tuple[Tensor, Tensor]]:
        return self.net.predict(*(part.to(self.device) for part in joined(rows)))

    @torch.inference_mode()
    def _scores(self, documents: list[Document]) -> dict[str, float]:
        """The backbone's mean loss, and shares of tokens foretold in percent."""
        tally: dict[str, list[float]] = {}

        def count(name: str, hits: float, of: int) -> None:
            if of:
                before = tally.get(name, [0.0, 0])
                tally[name] = [before[0] + hits, before[1] + of]

        for document in documents:
            for number, (hidden, wanted) in enumerate(self._predicted([[(document.ids, document.labels)]])):
                logits = self.net.logits(hidden).float()
                hit, speech = logits.argmax(-1) == wanted, wanted >= self.parts.tokens.first_code
                count("modules" if number else "speech", 100 * float(hit[speech].sum()), int(speech.sum()))
                if number == 0:
                    count("loss", float(F.cross_entropy(logits, wanted, reduction="sum")), len(wanted))
                    count("text", 100 * float(hit[~speech].sum()), int((~speech).sum()))
        return {name: hits / of for name, (hits, of) in tally.items()}


# -------------------------------------------------------------------------------------------------------- its own files
def fingerprint(base: Path) -> str:
    """A short sum over the weights of a model folder."""
    with (base / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def save_adapters(learned: Mapping[str, Tensor], file: Path, options: Options, base: str) -> None:
    """The state of :class:`Tuned`, named as it belongs into the model of ``base``: adapters ``decoder.NAME.down`` and
    ``.up``, and the modules ``mctp.NAME``."""
    named = {_public(name): tensor.contiguous() for name, tensor in learned.items()}
    save_file(named, file, {"rank": str(options.rank), "alpha": str(options.alpha), "base": base})


def _public(name: str) -> str:
    return name.replace("/", ".").replace("adapters.", "decoder.")


def load_adapters(net: VITAAudio, file: Path, base: str) -> None:
    """Put what :func:`save_adapters` wrote into the model whose folder has the fingerprint ``base``, merged."""
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        rank, alpha = int(about["rank"]), float(about["alpha"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file} holds no adapters; name the {ADAPTERS} of a tuned model") from error
    if about.get("base") != base:
        raise CheckpointError(f"{file} belongs to another model than this one; open the one that was tuned")
    tuned = Tuned(net, rank, alpha)
    names = {_public(name): name for name in tuned.state_dict()}
    try:
        tuned.load_state_dict({names.get(name) or name: tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit the model; open the one that was tuned") from error
    merge(net)
    net.requires_grad_(False)


# -------------------------------------------------------------------------------------------------------------- opening
@dataclass(frozen=True, kw_only=True)
class Options:
    """``data``: the JSONL file of records. ``model``: what is tuned, nano-talk or the folder of a VITA-Audio.
    ``held_out``: the share of records to judge by, or a JSONL file of them. ``rank``: of the backbone's adapters, 0
    trains all weights; ``alpha``: over rank the weight of what they learn. ``rate``, ``module_rate``: peak learning
    rates, 0 for 2e-4 (5e-5 without adapters) and 5e-4. ``steps``: 0 for about as many as ``passes`` over the records
    take. ``budget``: tokens to a step, of all processes together. ``prompts``: talk puts a bare spoken question as viva
    talk does, given leaves it. ``codes``: the folder that keeps the codes of sound (default: viva-codes beside data).
    ``processes``: under torchrun each holds a copy of the model, or a piece of every weight.
    ``written``: held-out answers to write at an evaluation, ``evaluate_every``: 0 for four evaluations.
    """

    data: str = ""
    model: str = "nano-talk"
    held_out: str = "0.1"
    rank: int = 16
    alpha: float = 32.0
    rate: float = 0.0
    module_rate: float = 0.0
    steps: int = 0
    passes: float = 3.0
    budget: int = 2048
    prompts: Literal["talk", "given"] = "talk"
    codes: str = ""
    processes: Literal["copies", "pieces"] = "copies"
    written: int = 4
    evaluate_every: int = 0
    save_every: int = 100
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{FinetuneRecipe.name}-{Path(self.data).stem}" if self.data else FinetuneRecipe.name


def open(
    corpus: Path, options: Options, report: Report | None = None, device: torch.device | None = None
) -> FinetuneRecipe:
    """Records to documents, and the recipe that learns from them; ``corpus`` plays no part.

    ConfigError names the line of a record that cannot be used; those too long for the model are left out, unless all
    are.
    """
    if not options.data:
        raise ConfigError("there are no records; name their file:  --set data=records.jsonl")
    if options.budget < 1:
        raise ConfigError(f"budget must be 1 or more, not {options.budget}")
    share, device = join(device or torch.device("cpu"))
    base = SHIPPED.get(options.model, Path(options.model).expanduser())
    if not is_speech_model(str(base)):
        raise ConfigError(f"{options.model} is no VITA-Audio; name a folder that holds one, such as viva-runs/talk")
    data = Path(options.data).expanduser()
    found, judged = split(read_records(data), options.held_out, options.seed)
    parts = open_bundle(base, options.model)
    parts.tokenizer.to(device)
    cache = CodeCache(
        Path(options.codes).expanduser() if options.codes else data.parent / "viva-codes", parts.tokenizer
    )
    other = Path(options.held_out).expanduser()
    judging = other if other.is_file() else data
    named = {
        path: f"{file}, line {record.line}, audios[{number}]"
        for file, records in ((judging, judged), (data, found)) for record in records
        for number, path in enumerate(record.audios)
    }  # fmt: skip
    cache.fill(share.take(list(named)), report, named)
    share.wait()
    train, held_out = (documents(part, parts, cache, options.prompts) for part in (found, judged))
    if not train:
        raise ConfigError(
            f"every record of {data} is longer than the {parts.model.config.decoder.context} tokens that the model "
            "reads; cut them"
        )
    recipe = FinetuneRecipe(base, parts, train, held_out, options, share=share, device=device)
    if not held_out and options.held_out.strip("0."):  # 0 asks for none
        recipe.remarks.append(
            "nothing is held out, so nothing says how well other records are answered; give a task two or more, "
            "or name a file with --held-out"
        )
    left_out = len(found) + len(judged) - len(train) - len(held_out)
    if left_out:
        longest = parts.model.config.decoder.context
        recipe.remarks.append(f"{left_out} records are longer than {longest} tokens and left out; cut them to use them")
    return recipe


def split(found: list[SpeechRecord], held_out: str, seed: int) -> tuple[list[SpeechRecord], list[SpeechRecord]]:
    """Records to learn from, and those to judge by: a share of each task, drawn by the seed, one at least where there
    are two; or those of a file."""
    try:
        part = float(held_out)
    except ValueError:
        return found, read_records(Path(held_out).expanduser())
    if not 0 <= part < 1:
        raise ConfigError(f"held_out must be a share from 0 to below 1 or a JSONL file, not {held_out}")
    random, judged = np.random.default_rng((seed, 11)), set[int]()
    for task in TASKS:
        numbers = random.permutation([i for i, record in enumerate(found) if record.task == task]).tolist()
        judged |= set(numbers[: min(len(numbers) - 1, max(1, round(part * len(numbers))))] if part and numbers else [])
    return ([r for i, r in enumerate(found) if i not in judged], [r for i, r in enumerate(found) if i in judged])


def documents(
    found: Sequence[SpeechRecord], parts: VITAAudioParts, cache: CodeCache, prompts: Literal["talk", "given"]
) -> list[Document]:
    """Records as tokens, without those that are too long for the model."""
    made = []
    for record in found:
        put = record.as_talked() if prompts == "talk" else record
        clips = [cache.of(path) for path in put.audios]
        # evenly, because answers are written by a grammar in which no turn of text grows
        ids, labels = parts.tokens.record(put.messages, clips, parts.interleave, even=True)
        if len(ids) <= parts.model.config.decoder.context:
            made.append(Document(ids, labels, put))
    return made
