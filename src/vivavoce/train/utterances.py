"""Recorded utterances on disk as recipes write them, batches of similar length drawn from a seed, and what makes one
utterance sound like several.

A set is a folder with ``waves.i16`` (16 kHz mono, int16 little-endian, one utterance after the other) and
``index.jsonl`` (one object an utterance: ``offset`` and ``samples`` in samples, ``text``, ``split``, ...).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import ConfigError

SAMPLE_RATE = 16_000
Made = TypeVar("Made")


class Utterances:
    """One set, mapped into memory."""

    def __init__(self, folder: Path):
        try:
            with (folder / "index.jsonl").open(encoding="utf-8") as file:
                self.rows: list[dict[str, Any]] = [json.loads(line) for line in file]
            self._waves = np.memmap(folder / "waves.i16", dtype="<i2", mode="r") if self.rows else np.zeros(0, "<i2")
            end = max((row["offset"] + row["samples"] for row in self.rows), default=0)
        except OSError as error:
            raise ConfigError(f"{folder} holds no set of utterances: make it with the recipe spoken_corpus") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} is damaged: make it anew with the recipe spoken_corpus") from error
        if end > len(self._waves):
            raise ConfigError(f"{folder / 'waves.i16'} is cut off: make it anew with the recipe spoken_corpus")

    def wave(self, number: int) -> Tensor:
        """(S,) float32 in [-1, 1]."""
        row = self.rows[number]
        piece = self._waves[row["offset"] : row["offset"] + row["samples"]]
        return torch.from_numpy(piece.astype(np.float32) / 32768)

    def select(self, split: str, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> list[int]:
        """Numbers of the utterances of a split that ``keep`` wants."""
        return [i for i, row in enumerate(self.rows) if row["split"] == split and keep(row)]


def pad(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves (S,) to (B, S) and their lengths (B,)."""
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths


def vary(wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Padded waves (B, S) and lengths (B,) at another speed (0.9 to 1.1, the pitch with it, one for all rows), and each
    row at a random level (8 dB either way) with a little noise."""
    speed = 0.9 + 0.2 * float(torch.rand(()))
    wave = F.interpolate(wave[:, None], size=max(1, round(wave.shape[1] / speed)), mode="linear")[:, 0]
    lengths = (lengths / speed).long().clamp(1, wave.shape[1])
    gain = 10 ** ((torch.rand(len(wave), 1, device=wave.device) * 16 - 8) / 20)
    noise = torch.randn_like(wave) * 10 ** (-2.2 - 2 * torch.rand(len(wave), 1, device=wave.device))
    return (wave * gain + noise).clamp(-1, 1), lengths


class Ahead(Generic[Made]):
    """What ``make`` gives for a step; that of the next step is made in a thread meanwhile."""

    def __init__(self, make: Callable[[int], Made]):
        self._make, self._pool = make, ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Made]] | None = None

    def __getitem__(self, step: int) -> Made:
        ready, self._next = self._next, None
        made = ready[1].result() if ready is not None and ready[0] == step else self._make(step)
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return made


class Batches:
    """Endless batches of item numbers whose padded size stays under a budget, the same for the same seed.

    ``sizes`` are the lengths of the items. An epoch visits every item once: shuffled, sorted by length within pools,
    cut where the padded size would pass the budget, shuffled again.
    """

    def __init__(self, sizes: Sequence[int], budget: int, seed: int, pool: int = 512):
        if not sizes:
            raise ConfigError("there is nothing to draw batches from; make the corpus first")
        self.sizes, self.budget, self.seed, self.pool = np.asarray(sizes), budget, seed, pool
        self._starts, self._epochs = [0], list[list[list[int]]]()

    def __getitem__(self, step: int) -> list[int]:
        while step >= self._starts[-1]:
            epoch = self._epoch(len(self._epochs))
            self._epochs.append(epoch)
            self._starts.append(self._starts[-1] + len(epoch))
        epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
        return self._epochs[epoch][step - self._starts[epoch]]

    def _epoch(self, number: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.sizes))
        batches: list[list[int]] = []
        for first in range(0, len(order), self.pool):
            part = order[first : first + self.pool]
            part = part[np.argsort(self.sizes[part], kind="stable")]
            batch: list[int] = []
            for item in part.tolist():
                if batch and int(self.sizes[item]) * (len(batch) + 1) > self.budget:
                    batches.append(batch)
                    batch = []
                batch.append(item)
            batches.append(batch)
        random.shuffle(batches)
        return batches
