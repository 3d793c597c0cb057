"""Train the small flow decoder: codes of one voice to its mel, by conditional flow matching.

The mel is that of ``HiFTConfig.nano().mel``, moved and scaled to about unit variance by :func:`scaled`. Utterances come
from the corpus's set ``teacher`` with the codes of the finished tokenizer; long ones are cut at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import mel_spectrum
from vivavoce.checkpoints.native import open_native, save_native
from vivavoce.codecs.glm4_decoder import GLM4Decoder, GLM4DecoderConfig, time_noise
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer
from vivavoce.config import to_dict
from vivavoce.errors import ConfigError
from vivavoce.train.codes import CodedUtterances, fingerprint, read_tokenizer
from vivavoce.train.loop import Report, Schedule
from vivavoce.train.utterances import Ahead, Batches
from vivavoce.vocoders.hift import NANO_MEL

MEAN, SCALE = -5.0, 2.5  # of the log mel; the shipped settings name them too
LONGEST = 44  # codes of a training piece


def scaled(mel: Tensor) -> Tensor:
    """Log mel to what the decoder makes."""
    return (mel - MEAN) / SCALE


class DecoderRecipe:
    """``corpus``: the folder of sets."""

    name = "glm4_decoder"

    def __init__(
        self, corpus: Path, tokenizer: GLM4Tokenizer, config: GLM4DecoderConfig, *, seed: int = 0,
        schedule: Schedule | None = None, budget: int = 640, rate: float = 1.5e-3,
        before: Path | None = None, report: Report | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        self.device = device or torch.device("cpu")
        self.seed, self.rate, self.budget, self.config = seed, rate, budget, config
        self.schedule = schedule or Schedule(steps=6000, evaluate_every=500, save_every=100, log_every=50)
        self.data = CodedUtterances(corpus / "teacher", tokenizer.to(self.device), report)
        self.train_items = self.data.corpus.select("train")
        self.dev_items = self.data.corpus.select("dev")[:48]
        if not self.train_items or not self.dev_items:
            raise ConfigError(f"{corpus / 'teacher'} needs utterances of the splits train and dev")
        sizes = [min(LONGEST, -(-self.data.corpus.rows[i]["samples"] // 1280)) for i in self.train_items]
        self.batches = Batches(sizes, budget, seed)
        self.codes_of = fingerprint(tokenizer)
        torch.manual_seed(seed)
        self.pieces = Ahead(self._pieces)
        self.model: nn.Module = GLM4Decoder(config).to(self.device)
        if before is not None:
            self.model.load_state_dict(open_native(before).tensors())

    @property
    def net(self) -> GLM4Decoder:
        assert isinstance(self.model, GLM4Decoder)
        return self.model

    def settings(self) -> Mapping[str, Any]:
        return {"config": to_dict(self.config), "rate": self.rate, "budget": self.budget, "steps": self.schedule.steps,
                "tokenizer": self.codes_of}  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def piece(self, number: int, first: int, codes: int) -> tuple[Tensor, Tensor]:
        """Codes (L,) and scaled mel (M, frames(L)) of a part of an utterance."""
        found = self.data.of(number)
        frames = int(self.net.frames(1))
        wave = self.data.corpus.wave(number)
        wave = F.pad(wave, (0, 1280 * len(found) - len(wave)))
        mel = scaled(mel_spectrum(wave[None], NANO_MEL)[0])
        return torch.from_numpy(found[first : first + codes].astype(np.int64)), mel[
            :, frames * first : frames * (first + codes)
        ]

    def _pieces(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, mel and lengths of a step."""
        random = np.random.default_rng((self.seed, step))
        pieces = []
        for place in self.batches[step]:
            number = self.train_items[place]
            count = len(self.data.of(number))
            first = int(random.integers(max(1, count - LONGEST + 1)))
            pieces.append(self.piece(number, first, LONGEST))
        return padded(pieces)

    def loss(self, step: int) -> dict[str, Tensor]:
        tokens, mel, lengths = (part.to(self.device) for part in self.pieces[step])
        time = (torch.rand(len(tokens)) + torch.arange(len(tokens))).to(self.device) / len(tokens)
        with torch.autocast(self.device.type, torch.bfloat16):
            terms = self.net.loss_terms(tokens, mel, noise=torch.randn_like(mel), time=time, lengths=lengths)
        return {"loss": terms["flow"], **terms}

    def evaluate(self) -> dict[str, float]:
        """Mean distance of made mels to the real ones, in log units."""
        pieces = padded([self.piece(number, 0, LONGEST) for number in self.dev_items])
        tokens, mel, lengths = (part.to(self.device) for part in pieces)
        noise = time_noise(0, mel.shape[-1], self.config.n_mels).to(self.device).expand_as(mel)
        made = self.net(tokens, noise, lengths=lengths)
        real = torch.arange(mel.shape[-1], device=self.device) < self.net.frames(lengths)[:, None]
        return {"mel distance": SCALE * float((made - mel).abs().mean(1)[real].mean())}

    def sample(self, folder: Path, step: int) -> None:
        """A picture of three made mels above the real ones, where matplotlib is installed."""
        try:
            import matplotlib.pyplot as plot
        except ImportError:
            return
        folder.mkdir(parents=True, exist_ok=True)
        figure, axes = plot.subplots(3, 2, figsize=(12, 8))
        for row, number in zip(axes, self.dev_items[:3], strict=False):
            codes, mel = self.piece(number, 0, LONGEST)
            noise = time_noise(0, mel.shape[-1], self.config.n_mels)[None]
            made = self.net(codes[None].to(self.device), noise.to(self.device))[0].cpu()
            for axis, picture, title in zip(row, (made, mel), ("made", "real"), strict=True):
                axis.imshow(picture.numpy(), origin="lower", aspect="auto")
                axis.set_title(f"{title}: {self.data.corpus.rows[number]['text'][:50]}", fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"{step:06d}.png", dpi=70)
        plot.close(figure)

    def finish(self, folder: Path) -> None:
        """Write the decoder as a model folder."""
        save_native(
            folder,
            "glm4_decoder",
            self.config,
            self.net.state_dict(),
            {"mean": MEAN, "scale": SCALE, "tokenizer": self.codes_of},
        )


def padded(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (B, L), mel (B, M, T) and lengths (B,) of pieces."""
    tokens = torch.nn.utils.rnn.pad_sequence([codes for codes, _ in pieces], batch_first=True)
    mel = torch.nn.utils.rnn.pad_sequence([mel.T for _, mel in pieces], batch_first=True).transpose(1, 2)
    return tokens, mel, torch.tensor([len(codes) for codes, _ in pieces])


@dataclass(frozen=True, kw_only=True)
class Options:
    """``tokenizer``: the folder of the finished tokenizer. ``budget``: codes to a step, padding counted. ``before``: a
    decoder's model folder to go on from. ``lookahead``: codes heard before one is made.
    """

    name: ClassVar[str] = "glm4_decoder"
    size: Literal["nano", "tiny"] = "nano"
    tokenizer: str = "~/viva-runs/glm4_tokenizer/model"
    before: str = ""
    lookahead: int = 2
    steps: int = 6000
    budget: int = 640
    rate: float = 1.5e-3
    evaluate_every: int = 500
    save_every: int = 100
    seed: int = 0


def open(
    corpus: Path, options: Options, report: Report | None = None, device: torch.device | None = None
) -> DecoderRecipe:
    """The recipe on a corpus folder of sets."""
    tokenizer = read_tokenizer(Path(options.tokenizer).expanduser())
    config = GLM4DecoderConfig.nano() if options.size == "nano" else tiny_config()
    schedule = Schedule(
        steps=options.steps, evaluate_every=options.evaluate_every, save_every=options.save_every, log_every=50
    )
    return DecoderRecipe(
        corpus, tokenizer, replace(config, vocab_size=tokenizer.config.codes, lookahead=options.lookahead),
        seed=options.seed, schedule=schedule, budget=options.budget, rate=options.rate,
        before=Path(options.before).expanduser() if options.before else None, report=report, device=device,
    )  # fmt: skip


def tiny_config() -> GLM4DecoderConfig:
    """The nano form, narrow and shallow: that it learns, not that it sounds."""
    return replace(
        GLM4DecoderConfig.nano(), dim=16, n_heads=2, ffn_dim=24, n_layers=1, channels=(16,), n_blocks=1, n_mid_blocks=1,
        unet_heads=2, unet_head_dim=8, unet_ffn_dim=24, steps=2, window=10, token_window=4,
    )  # fmt: skip
