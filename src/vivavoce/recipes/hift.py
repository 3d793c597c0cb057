"""Train the small HiFT vocoder on one voice: mel of a recording in, the recording out.

    viva train hift      # about 40 minutes on one CPU thread

No adversary: spectral convergence and log magnitude at three resolutions (Yamamoto, Song, Kim 2020, "Parallel
WaveGAN", arXiv 1910.11480, section 2.2), the log mel, and the fundamental, told by WORLD's Dio and StoneMask. The sines
follow the measured fundamental, in half of the items the predicted one once it is learnt. Level varies in every item;
in some the mel is blurred and noised, as decoders give it, while the wave to reach stays clean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vivavoce.audio.io import save
from vivavoce.audio.mel import mel_spectrum
from vivavoce.checkpoints.native import save_native
from vivavoce.errors import ConfigError, require
from vivavoce.nn.streaming import bfloat16_pays
from vivavoce.train.loop import Report, Schedule
from vivavoce.train.utterances import SAMPLE_RATE, Utterances
from vivavoce.vocoders.hift import HiFT, HiFTConfig, source_noise

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # window and hop in samples
CONTEXT = 3  # frames of wave beside a window, so that its mel is that of the whole recording
QUIETEST_BIN, QUIETEST_MEL = 3e-3, -9.0  # below these a loss hears nothing: silence would outweigh speech
LOWEST, HIGHEST = 60.0, 500.0  # Hz


class Batch(NamedTuple):
    """mel (B, M, T) to read, wave (B, S) to reach, its log mel (B, M, T), and f0 (B, T) in Hz."""

    mel: Tensor
    wave: Tensor
    wanted: Tensor
    f0: Tensor


# ----------------------------------------------------------------------------------------------------------- losses
def spectral_loss(wave: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral convergence and log-magnitude distance of (B, S), means over the three resolutions."""
    convergence, distance = wave.new_zeros(()), wave.new_zeros(())
    for n_fft, hop in RESOLUTIONS:
        window = torch.hann_window(n_fft, device=wave.device)
        bins = torch.stft(torch.cat([wave, target]), n_fft, hop, n_fft, window, return_complex=True)
        power = bins.real.square() + bins.imag.square()
        got, wanted = power.clamp_min(QUIETEST_BIN**2).sqrt().chunk(2)
        convergence = convergence + (got - wanted).norm() / wanted.norm()
        distance = distance + (got.log() - wanted.log()).abs().mean()
    return convergence / len(RESOLUTIONS), distance / len(RESOLUTIONS)


def losses(model: HiFT, batch: Batch, predicted: Tensor | None = None) -> dict[str, Tensor]:
    """The terms of a batch; rows of ``predicted`` (B,) that are true take the model's own fundamental. Draws phase and
    noise of the source.
    """
    rows, frames = batch.f0.shape
    device = batch.mel.device
    phase = (torch.rand(rows, model.config.harmonics + 1, device=device) * 2 - 1) * math.pi
    phase[:, 0] = 0
    noise = torch.randn(rows, model.config.harmonics + 1, frames * model.hop_length, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device.type)):
        told = model.f0(batch.mel).float()
        f0 = batch.f0 if predicted is None else torch.where(predicted[:, None], told.detach(), batch.f0)
        wave = model(batch.mel, f0=f0, phase=phase, noise=noise)
    convergence, distance = spectral_loss(wave, batch.wave)
    mel = mel_spectrum(wave, model.config.mel).clamp_min(QUIETEST_MEL)
    mel = (mel - batch.wanted.clamp_min(QUIETEST_MEL)).abs().mean()
    pitch = (told - batch.f0).abs().mean() / 100
    loss = convergence + distance + 2 * mel + pitch
    return {"loss": loss, "convergence": convergence, "distance": distance, "mel": mel, "pitch": pitch}


# ------------------------------------------------------------------------------------------------------------- data
class Pitches:
    """f0 in Hz of every frame of a corpus, measured once and kept beside it as ``f0.npy``."""

    def __init__(self, corpus: Utterances, folder: Path, hop: int, report: Report | None = None):
        counts = [row["samples"] // hop for row in corpus.rows]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        path = folder / "f0.npy"
        if not path.exists():
            found = []
            for number in range(len(corpus.rows)):
                found.append(measured_f0(corpus.wave(number).numpy(), hop))
                if report is not None:
                    report("fundamental", number + 1, len(corpus.rows))
            part = folder / "f0.part.npy"
            np.save(part, np.concatenate(found).astype(np.float32))
            os.replace(part, path)
        self.values = np.load(path)
        if len(self.values) != self.starts[-1]:
            raise ConfigError(f"{path} was measured on another corpus or hop: delete it and start again")

    def __call__(self, number: int) -> np.ndarray:
        """(T,) of one utterance."""
        return self.values[self.starts[number] : self.starts[number + 1]]


def measured_f0(wave: np.ndarray, hop: int) -> np.ndarray:
    """wave (S,) at 16 kHz -> f0 (S // hop,) in Hz in the middle of each frame, 0 where unvoiced."""
    world = require("pyworld", "train", "measuring the fundamental")
    exact, half_hop = wave.astype(np.float64), hop / 2 / SAMPLE_RATE * 1000  # milliseconds
    rough, times = world.dio(exact, SAMPLE_RATE, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=half_hop)
    return world.stonemask(exact, rough, times, SAMPLE_RATE)[1::2][: len(wave) // hop]


def blurred(mel: Tensor, rows: Tensor) -> Tensor:
    """mel (B, M, T) with the faults of a decoder in the chosen ``rows`` (B,): smoothed both ways, and noise."""
    kernel = torch.tensor([0.25, 0.5, 0.25])[None, None]
    smooth = F.conv2d(mel[:, None], kernel[..., None], padding=(1, 0))
    smooth = F.conv2d(smooth, kernel[:, :, None], padding=(0, 1))[:, 0]
    share = torch.rand(len(mel), 1, 1)
    faulty = mel + share * (smooth - mel) + 0.25 * torch.rand(len(mel), 1, 1) * torch.randn_like(mel)
    return torch.where(rows[:, None, None], faulty, mel)


# ----------------------------------------------------------------------------------------------------------- recipe
class HiFTRecipe:
    """A run on a corpus folder (``waves.i16``, ``index.jsonl``); ``frames`` of mel to a window."""

    name = "hift"

    def __init__(
        self, corpus: Path, config: HiFTConfig, schedule: Schedule, *, frames: int = 40, rows: int = 8,
        rate: float = 8e-4, learnt: int = 2000, seed: int = 0, report: Report | None = None,
        device: torch.device | None = None,
    ):  # fmt: skip
        self.device = device or torch.device("cpu")
        if config.sample_rate != SAMPLE_RATE:
            raise ConfigError(f"the corpus has {SAMPLE_RATE} Hz and the vocoder {config.sample_rate}; they must agree")
        self.config, self.schedule, self.seed = config, schedule, seed
        self.frames, self.rows, self.rate, self.learnt = frames, rows, rate, learnt
        self.corpus = Utterances(corpus)
        self.pitches = Pitches(self.corpus, corpus, config.hop_length, report)
        self.train, self.dev = self.corpus.select("train"), self.corpus.select("dev")
        if not self.train or not self.dev:
            raise ConfigError(f"{corpus} needs utterances of the splits train and dev")
        torch.manual_seed(seed)
        self.model = HiFT(config)
        with torch.no_grad():
            assert self.model.post.bias is not None
            self.model.post.bias[: config.istft_n_fft // 2 + 1] = self._spectrum()
        self.model.to(self.device)

    def settings(self) -> Mapping[str, Any]:
        return {"config": vars(self.config), "frames": self.frames, "rows": self.rows, "rate": self.rate,
                "learnt": self.learnt, "steps": self.schedule.steps}  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        """The predictor, whose outputs are hundreds of Hz, learns at three times the rate."""
        quick = list(self.model.predictor.parameters())
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("predictor.")]
        groups = [{"params": rest, "lr": self.rate}, {"params": quick, "lr": 3 * self.rate}]
        return torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=0.01)

    def batch(self, step: int) -> Batch:
        """Windows of utterances drawn by their length, at random levels. Draws from torch's generator too."""
        random = np.random.default_rng((self.seed, step))
        sizes = np.array([self.corpus.rows[i]["samples"] for i in self.train], dtype=np.float64)
        numbers = random.choice(self.train, self.rows, p=sizes / sizes.sum())
        waves, pitches = zip(*(self._window(int(number), random) for number in numbers), strict=True)
        level = torch.from_numpy(10 ** (random.uniform(-14, 3, (self.rows, 1)) / 20)).float()
        wave = torch.stack(waves)
        wave = wave * torch.minimum(level, 0.95 / wave.abs().amax(1, keepdim=True).clamp_min(1e-3))
        beside = CONTEXT * self.config.hop_length
        mel = mel_spectrum(wave, self.config.mel)[..., CONTEXT:-CONTEXT]
        wave = wave[:, beside:-beside].contiguous()
        wanted = mel_spectrum(wave, self.config.mel)
        return Batch(blurred(mel, torch.rand(self.rows) < 0.3), wave, wanted, torch.from_numpy(np.stack(pitches)))

    def _window(self, number: int, random: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """A stretch of ``frames`` with context on both sides, and its f0; silence beyond the utterance."""
        hop, wave, f0 = self.config.hop_length, self.corpus.wave(number), self.pitches(number)
        first = int(random.integers(0, max(1, len(f0) - self.frames + 1)))
        start, end = (first - CONTEXT) * hop, (first + self.frames + CONTEXT) * hop
        piece = wave[max(0, start) : end]
        piece = F.pad(piece, (max(0, -start), end - max(0, start) - len(piece)))
        pitch = np.zeros(self.frames, np.float32)
        known = f0[first : first + self.frames]
        pitch[: len(known)] = known
        return piece, pitch

    def _spectrum(self) -> Tensor:
        """Log of the root mean square magnitude of each bin of the inverse transform: where its bias starts."""
        n_fft, wave = self.config.istft_n_fft, torch.cat([self.batch(step).wave for step in range(8)])
        bins = torch.stft(wave, n_fft, self.config.istft_hop, window=torch.hann_window(n_fft), return_complex=True)
        return bins.abs().square().mean((0, 2)).sqrt().clamp_min(1e-3).log()

    def loss(self, step: int) -> dict[str, Tensor]:
        own = (torch.rand(self.rows) < 0.5).to(self.device) if step >= self.learnt else None
        batch = Batch(*(part.to(self.device) for part in self.batch(step)))
        return losses(self.model, batch, own)

    def evaluate(self) -> dict[str, float]:
        """Log-mel distance of whole held-out utterances made from their own mel alone, and errors of the fundamental:
        ``cents`` where both are voiced, ``voicing`` as a share of frames.
        """
        mel_error, cents, voicing = [], [], []
        for number in self.dev[:: max(1, len(self.dev) // 24)]:
            _, mel = self._utterance(number)
            made = self.copy(mel)
            f0 = torch.from_numpy(self.pitches(number))
            told = self.model.f0(mel.to(self.device))[0].float().cpu()
            both = (f0 > 0) & (told > self.config.voiced_above)
            mel_error.append(float((mel_spectrum(made, self.config.mel) - mel).abs().mean()))
            voicing.append(float(((f0 > 0) != (told > self.config.voiced_above)).float().mean()))
            cents.append(float((1200 * (told[both] / f0[both]).log2().abs()).median()) if both.any() else 0.0)
        return {"mel": float(np.mean(mel_error)), "cents": float(np.mean(cents)), "voicing": float(np.mean(voicing))}

    def sample(self, folder: Path, step: int) -> None:
        """Three held-out utterances as made from their mel; once beside them the recordings."""
        folder.mkdir(parents=True, exist_ok=True)
        for place, number in enumerate(self.dev[:: max(1, len(self.dev) // 3)][:3]):
            wave, mel = self._utterance(number)
            save(folder / f"{place}_{step:06d}.wav", self.copy(mel)[0], SAMPLE_RATE)
            if not (folder / f"{place}_recording.wav").exists():
                save(folder / f"{place}_recording.wav", wave[0], SAMPLE_RATE)

    def copy(self, mel: Tensor, seed: int = 0) -> Tensor:
        """mel (1, M, T) -> wave (1, S) with everything predicted and noise of a fixed seed."""
        samples = mel.shape[-1] * self.config.hop_length
        noise = source_noise(0, samples, self.config.harmonics, seed)
        return self.model(mel.to(self.device), noise=noise.to(self.device)).cpu()

    def finish(self, folder: Path) -> None:
        """Write the vocoder as a model folder."""
        save_native(folder, "hift", self.config, self.model.state_dict())

    def _utterance(self, number: int) -> tuple[Tensor, Tensor]:
        wave = self.corpus.wave(number)[None]
        wave = wave[:, : wave.shape[1] // self.config.hop_length * self.config.hop_length]
        return wave, mel_spectrum(wave, self.config.mel)


@dataclass(frozen=True, kw_only=True)
class Options:
    """``voice``: the set of the corpus to learn from. ``frames``: length of a training window, ``rows``: how many to a
    step. ``learnt``: the step from which on the predicted fundamental is used too.
    """

    name: ClassVar[str] = "hift"
    size: Literal["nano", "tiny"] = "nano"
    voice: str = "teacher"
    steps: int = 9000
    frames: int = 40
    rows: int = 8
    rate: float = 8e-4
    learnt: int = 2000
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 0


def open(
    corpus: Path, options: Options, report: Report | None = None, device: torch.device | None = None
) -> HiFTRecipe:
    """The recipe on a corpus folder of sets."""
    config = HiFTConfig.nano() if options.size == "nano" else tiny_config()
    schedule = Schedule(
        steps=options.steps, clip=5.0, evaluate_every=options.evaluate_every, save_every=options.save_every
    )
    return HiFTRecipe(
        corpus / options.voice, config, schedule, frames=options.frames, rows=options.rows, rate=options.rate,
        learnt=options.learnt, seed=options.seed, report=report, device=device,
    )  # fmt: skip


def tiny_config() -> HiFTConfig:
    """A few channels: that it learns, not that it sounds."""
    return HiFTConfig(
        channels=32, block_kernels=(3,), block_dilations=((1, 3),), source_block_kernels=(3, 3),
        source_block_dilations=((1,), (1,)), predictor_channels=16, predictor_layers=2, sample_rate=SAMPLE_RATE,
    )  # fmt: skip


def tiny(corpus: Path) -> HiFTRecipe:
    """Forty short steps of the tiny vocoder on one set."""
    schedule = Schedule(steps=40, clip=5.0, evaluate_every=40)
    return HiFTRecipe(corpus, tiny_config(), schedule, frames=20, rows=4, rate=3e-3, learnt=30)
