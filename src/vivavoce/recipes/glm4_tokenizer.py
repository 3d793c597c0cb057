"""Train the small speech tokenizer: the first four layers of Whisper base, made block-causal, with a codebook.

As GLM-4-Voice's paper does (arXiv 2412.02612, section 2.1): a quantised bottleneck of 12.5 codes a second inside a
recogniser, trained with the recogniser's loss and a codebook that follows running means. Here the recogniser's upper
half is small: the codes are spread to 50 frames a second and spelled with CTC.

    codes' rows (B, N, D) -> linear to 4 frames a code -> two convolutions -> letters (B, 4N, 29) -> CTC

A second loss asks that a linear reading of the codes' rows be what Whisper's whole encoder, which sees all of the clip,
makes of the sound: it needs no transcript, so speech of many people can be used, and keeps what Whisper knows of them.

The first codebook is k-means over the untrained network's pooled states. For the first ``frozen`` steps only the
speller learns: gradients from a speller that knows nothing would push the states onto a few codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.align.edit_distance import edits
from vivavoce.asr.whisper import Whisper, WhisperConfig
from vivavoce.audio.mel import mel_spectrum, whisper_scale
from vivavoce.checkpoints import store
from vivavoce.checkpoints.native import build, open_native, save_native
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.errors import ConfigError
from vivavoce.nn.vector_quantizer import CodebookUpkeep, k_means
from vivavoce.train.loop import Report, Schedule, restore
from vivavoce.train.utterances import Ahead, Batches, Utterances, pad, vary

LETTERS = " 'abcdefghijklmnopqrstuvwxyz"  # 0 is CTC's blank
COMMIT = 1.0  # the published scale of 10 on top lets the states of so small a corpus collapse onto few codes


class Speller(nn.Module):
    """Rows of codes (B, N, D) to letters (B, 4N, 29)."""

    def __init__(self, dim: int, width: int = 192, frames: int = 4):
        super().__init__()
        self.spread = nn.Linear(dim, frames * width)
        self.convs = nn.ModuleList([nn.Conv1d(width, width, 5, padding=2) for _ in range(2)])
        self.out = nn.Linear(width, 1 + len(LETTERS))
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.spread(x)).unflatten(-1, (self.frames, -1)).flatten(1, 2).transpose(1, 2)
        for conv in self.convs:
            y = y + F.gelu(conv(y))
        return self.out(y.transpose(1, 2))


class Recogniser(nn.Module):
    """All that a run trains and keeps."""

    def __init__(self, tokenizer: GLM4Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        # quicker than the published 0.99: with few codes a step the states run away from a slow codebook
        self.upkeep = CodebookUpkeep(tokenizer.codebook, decay=0.96, restart_below=0.05)
        self.speller = Speller(tokenizer.config.dim)
        self.listener = nn.Linear(tokenizer.config.dim, tokenizer.config.dim)


@dataclass
class Item:
    """One utterance of one set."""

    corpus: Utterances
    number: int

    @property
    def row(self) -> dict[str, Any]:
        return self.corpus.rows[self.number]


class TokenizerRecipe:
    """``corpus``: a folder of sets as the recipe spoken_corpus writes them. ``before``: go on from another run, say on
    more data."""

    name = "glm4_tokenizer"

    def __init__(
        self, corpus: Path, config: GLM4TokenizerConfig, whisper: Whisper | None, *, seed: int = 0,
        schedule: Schedule | None = None, budget_s: float = 40.0, rate: float = 5e-5, frozen: int = 200,
        before: Path | None = None, listen: float = 1.0, report: Report | None = None,
        device: torch.device | None = None,
    ):  # fmt: skip
        self.device = device or torch.device("cpu")
        self.whisper, self.listen = whisper, listen if whisper is not None else 0.0
        self.seed, self.rate, self.budget_s, self.frozen = seed, rate, budget_s, frozen
        self.schedule = schedule or Schedule(steps=1500, evaluate_every=250, save_every=100)
        self.config, self.pretrained = config, whisper is not None
        sets = {path.parent.name: Utterances(path.parent) for path in sorted(corpus.glob("*/index.jsonl"))
                if (path.parent / "done.json").exists() and path.parent.name != "heldout"}  # fmt: skip
        torch.manual_seed(seed)
        tokenizer = GLM4Tokenizer(config)
        if whisper is not None:
            start_from_whisper(tokenizer, whisper)
            whisper.to(self.device)
        tokenizer.to(self.device)
        self.train_items = items(sets, "train", spelled=not self.listen)
        self.dev_items = {name: items({name: part}, "dev")[:60] for name, part in sets.items()}
        self.batches = Batches([item.row["samples"] for item in self.train_items], round(budget_s * 16_000), seed)
        if before is None:
            tokenizer.codebook.weight.data = self._first_codebook(tokenizer, report)
        self.heard = Ahead(self._heard)
        self.model = Recogniser(tokenizer).to(self.device)
        if before is not None:
            restore(before, self.model)

    def settings(self) -> Mapping[str, Any]:
        return {"config": vars(self.config), "pretrained": self.pretrained, "rate": self.rate,
                "budget_s": self.budget_s, "frozen": self.frozen, "listen": self.listen,
                "steps": self.schedule.steps}  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        tokenizer = self.model.tokenizer
        fast = [*self.model.speller.parameters(), *(self.model.listener.parameters() if self.listen else ())]
        slow = [p for name, p in tokenizer.named_parameters() if not name.startswith("codebook")]
        tokenizer.get_parameter("codebook.weight").requires_grad_(False)
        groups = [{"params": slow, "lr": self.rate}, {"params": fast, "lr": 1e-3}]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)

    def _heard(self, step: int) -> tuple[list[str], Tensor, Tensor]:
        """Texts, padded waves and lengths of a step."""
        chosen = [self.train_items[i] for i in self.batches[step]]
        wave, lengths = pad([item.corpus.wave(item.number) for item in chosen])
        return [item.row.get("text") or "" for item in chosen], wave, lengths

    def loss(self, step: int) -> dict[str, Tensor]:
        texts, wave, lengths = self.heard[step]
        wave, lengths = vary(wave.to(self.device), lengths.to(self.device))
        wave = F.pad(wave, (0, -wave.shape[1] % 8_000))  # few shapes: a GPU plans its transforms for each
        tokenizer, upkeep = self.model.tokenizer, self.model.upkeep
        with torch.autocast(self.device.type, torch.bfloat16), torch.set_grad_enabled(step >= self.frozen):
            pooled, real = pooled_states(tokenizer, wave, lengths)
        pooled = pooled.float()
        rows, codes, commit = tokenizer.codebook.straight_through(pooled[real])
        restarted = torch.tensor(0)
        if step >= self.frozen:
            restarted = upkeep.update(tokenizer.codebook, pooled[real].detach(), codes)
        mixed = pooled.clone()
        mixed[real] = rows
        spoken = [row for row, text in enumerate(texts) if text]
        spelled = self._ctc(mixed[spoken], lengths[spoken], [texts[row] for row in spoken]) if spoken else commit * 0
        heard = self._hearing_error(wave, lengths, rows, real) if self.listen else commit * 0
        used = torch.bincount(codes, minlength=self.config.codes) > 0
        loss = spelled + COMMIT * commit + self.listen * heard
        return {"loss": loss, "ctc": spelled, "heard": heard, "commit": commit, "restarted": restarted,
                "used": used.float().mean()}  # fmt: skip

    def _hearing_error(self, wave: Tensor, lengths: Tensor, rows: Tensor, real: Tensor) -> Tensor:
        """How far a linear reading of the codes' rows (N, D) is from what the whole recogniser's encoder hears."""
        assert self.whisper is not None
        with torch.autocast(self.device.type, torch.bfloat16), torch.no_grad():
            wanted = whisper_states(self.whisper, wave, lengths, real.shape[1] * self.config.pooling)
        wanted = wanted.float().unflatten(1, (-1, self.config.pooling)).mean(2)[real]
        return F.mse_loss(self.model.listener(rows), F.layer_norm(wanted, wanted.shape[-1:]))

    def _ctc(self, rows: Tensor, lengths: Tensor, texts: list[str]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model.speller(rows)
        frames = 4 * -(-lengths // self.config.samples_per_code)
        targets = [torch.tensor([1 + LETTERS.index(letter) for letter in text if letter in LETTERS]) for text in texts]
        sizes = torch.tensor([len(target) for target in targets])
        losses = F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1), torch.cat(targets).to(self.device), frames, sizes,
            reduction="none", zero_infinity=True,
        )  # fmt: skip
        return losses.sum() / sizes.sum()

    def evaluate(self) -> dict[str, float]:
        figures, tokenizer = {}, self.model.tokenizer
        for name, chosen in self.dev_items.items():
            wrong = total = 0
            for item in chosen:
                wave = item.corpus.wave(item.number)[None].to(self.device)
                codes = tokenizer(wave).values[:, 0]
                letters = self.model.speller(tokenizer.codebook.embed(codes))[0].argmax(-1)
                wanted = item.row["text"].split()
                wrong += edits(read(letters), wanted)
                total += len(wanted)
            if total:
                figures[f"wer_{name}"] = 100 * wrong / total
        return figures

    def sample(self, folder: Path, step: int) -> None:
        """Nothing to hear: what it learns are numbers."""

    def finish(self, folder: Path) -> None:
        """Write the tokenizer as a model folder."""
        save_native(folder, "glm4_tokenizer", self.config, self.model.tokenizer.state_dict())

    @torch.inference_mode()
    def _first_codebook(
        self, tokenizer: GLM4Tokenizer, report: Report | None = None, seconds: float = 1500.0
    ) -> Tensor:
        found, total = [], 0.0
        for number in torch.randperm(len(self.train_items)).tolist():
            item = self.train_items[number]
            wave = item.corpus.wave(item.number)[None].to(self.device)
            pooled, real = pooled_states(tokenizer, wave, torch.tensor([wave.shape[1]], device=self.device))
            found.append(pooled[real])
            total += wave.shape[1] / 16_000
            if report is not None:
                report("first codebook", min(total, seconds), seconds)
            if total > seconds:
                break
        states = torch.cat(found)
        if len(states) < self.config.codes:
            raise ConfigError(f"the corpus gives {len(states)} states for {self.config.codes} codes; make a larger one")
        return k_means(states, self.config.codes).clone()


def start_from_whisper(tokenizer: GLM4Tokenizer, whisper: Whisper) -> None:
    """Copy convolutions, positions and the lower layers. Causal padding delays every frame by one, so positions move
    along."""
    encoder = whisper.encoder
    if whisper.config.audio_dim != tokenizer.config.dim:
        raise ConfigError(
            f"the recogniser is {whisper.config.audio_dim} wide and the tokenizer {tokenizer.config.dim}; begin with "
            "whisper-base, or from scratch with --set whisper=none"
        )
    with torch.no_grad():
        for ours, theirs in ((tokenizer.conv1, encoder.conv1), (tokenizer.conv2, encoder.conv2)):
            ours.weight.copy_(theirs.weight)
            if ours.bias is not None and theirs.bias is not None:
                ours.bias.copy_(theirs.bias)
        tokenizer.positions[1:].copy_(encoder.positions[:-1])
        tokenizer.positions[0].copy_(encoder.positions[0])
        for layer, source in zip(tokenizer.layers, encoder.stack.layers, strict=False):
            layer.load_state_dict(source.state_dict())


def whisper_states(whisper: Whisper, wave: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """What Whisper's whole encoder makes of padded waves (B, S): (B, frames, D), each row seeing its own sound only."""
    encoder = whisper.encoder
    wave = F.pad(wave, (0, 320 * frames - wave.shape[1]))
    with torch.autocast(wave.device.type, enabled=False):
        mel = whisper_scale(mel_spectrum(wave, whisper.config.mel))
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2) + encoder.positions[:frames]
    real = torch.arange(frames, device=wave.device) < -(-lengths // 320)[:, None]
    return encoder.stack(x, real[:, None, None])


def pooled_states(tokenizer: GLM4Tokenizer, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Padded waves (B, S) -> states before quantisation (B, N, D), and which are real (B, N)."""
    per = tokenizer.config.samples_per_code
    wave = F.pad(wave, (0, -wave.shape[1] % per))
    with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
        mel = tokenizer.mel(wave)
    pooled = tokenizer.features(mel, -(-lengths // 320))
    return pooled, torch.arange(pooled.shape[1], device=wave.device) < (-(-lengths // per))[:, None]


def items(sets: Mapping[str, Utterances], split: str, spelled: bool = True) -> list[Item]:
    """Utterances of one split, up to 15 s long; ``spelled``: those with a transcript only."""
    found = []
    for part in sets.values():
        fits = part.select(
            split, lambda row: bool(row.get("text") or not spelled) and 4_000 <= row["samples"] <= 240_000
        )
        found += [Item(part, number) for number in fits]
    return found


def read(letters: Tensor) -> list[str]:
    """CTC's best path to words."""
    merged = torch.unique_consecutive(letters).tolist()
    return [str(word) for word in "".join(LETTERS[letter - 1] for letter in merged if letter).split()]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``whisper``: the pulled recogniser whose lower layers it begins with, or none. ``before``: the run to go on from
    instead. ``budget_s``: seconds of speech to a step, padding counted. ``frozen``: steps in which only the speller
    learns. ``listen``: weight of hearing what the whole recogniser hears, which needs no transcript. ``block``: frames
    of 20 ms that see one another.
    """

    name: ClassVar[str] = "glm4_tokenizer"
    size: Literal["nano", "tiny"] = "nano"
    whisper: str = "whisper-base"
    before: str = ""
    steps: int = 1100
    budget_s: float = 40.0
    rate: float = 5e-5
    frozen: int = 200
    listen: float = 1.0
    block: int = 64
    evaluate_every: int = 200
    save_every: int = 100
    seed: int = 0


def open(
    corpus: Path, options: Options, report: Report | None = None, device: torch.device | None = None
) -> TokenizerRecipe:
    """The recipe on a corpus folder of sets."""
    config = replace(GLM4TokenizerConfig.nano(), block=options.block) if options.size == "nano" else tiny_config()
    schedule = Schedule(
        steps=options.steps, warmup=0.05, evaluate_every=options.evaluate_every, save_every=options.save_every
    )
    return TokenizerRecipe(
        corpus, config, None if options.whisper == "none" else pulled(options.whisper), seed=options.seed,
        schedule=schedule, budget_s=options.budget_s, rate=options.rate, frozen=options.frozen,
        before=Path(options.before).expanduser() if options.before else None, listen=options.listen, report=report,
        device=device,
    )  # fmt: skip


def pulled(name: str) -> Whisper:
    """A pulled Whisper in float32."""
    about = open_native(store.locate(name))
    if about.system != "whisper":
        raise ConfigError(f"{name} is no Whisper; begin with whisper-base, or from scratch with --set whisper=none")
    return build(Whisper, from_dict(WhisperConfig, about.config), about.tensors())


def tiny_config() -> GLM4TokenizerConfig:
    """Two layers of width 16: that it learns, not that it hears."""
    return replace(GLM4TokenizerConfig.tiny(), context=1500)
