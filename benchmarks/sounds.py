"""Sounds for measuring: recordings, strings of real digits, and a hundred clips in which nobody speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

RATE = 16_000
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def recordings(shard: str, split: str = "test", **wanted: Any) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Rows of the manifest under $VIVA_DATA and their sound at 16 kHz."""
    folder = Path(os.environ.get("VIVA_DATA", ""))
    if not (folder / "read_clip.py").is_file():
        sys.exit("set VIVA_DATA to the folder of recordings (manifest.jsonl, read_clip.py and the shards)")
    sys.path.insert(0, str(folder))
    import read_clip  # pyright: ignore[reportMissingImports]

    for row in read_clip.manifest(shard=f"{shard}.tar", split=split, **wanted):
        wave, rate = read_clip.read(row)
        yield row, soxr.resample(wave, rate, RATE).astype(np.float32) if rate != RATE else wave


def digit_strings(count: int = 100, length: int = 3, seed: int = 0, pad: float = 0.0) -> list[tuple[str, np.ndarray]]:
    """Strings of real spoken digits by the unseen speaker, 0.1 s apart, ``pad`` seconds of silence around."""
    rows = list(recordings("en_fsdd"))
    rng = np.random.default_rng(seed)
    gap, edge = np.zeros(RATE // 10, np.float32), np.zeros(int(pad * RATE), np.float32)
    made = []
    for _ in range(count):
        chosen = [rows[i] for i in rng.integers(0, len(rows), length)]
        pieces = [part for _, wave in chosen for part in (wave, gap)]
        made.append(
            ("".join(str(DIGITS.index(row["text"])) for row, _ in chosen), np.concatenate([edge, *pieces, edge]))
        )
    return made


def without_speech(count: int = 100, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Noise of several colours, silence, hum, clicks, rustle, tones, played music, 2 to 12 s each, and real noises."""
    rng = np.random.default_rng(seed)
    real = [(str(row["path"]), wave) for row, wave in recordings("noise_rir", "train") if row.get("kind") == "noise"]
    real = [(name, np.tile(wave, 1 + 3 * RATE // max(1, wave.size))[: 12 * RATE]) for name, wave in real]
    kinds = [_white, _coloured, _silence, _hum, _clicks, _rustle, _tones, _chords, _drums]
    made = list(real)
    while len(made) < count:
        kind = kinds[len(made) % len(kinds)]
        length = int(rng.uniform(2, 12) * RATE)
        wave = kind(rng, length)
        level = 10 ** (rng.uniform(-40, -6) / 20)
        made.append((kind.__name__.strip("_"), (wave / max(np.abs(wave).max(), 1e-9) * level).astype(np.float32)))
    return made[:count]


def _white(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _coloured(rng: np.random.Generator, n: int) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(n))
    return np.fft.irfft(spectrum / np.maximum(np.arange(spectrum.size), 1) ** rng.choice([0.5, 1.0]), n)


def _silence(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n) * rng.choice([0.0, 1e-6])


def _hum(rng: np.random.Generator, n: int) -> np.ndarray:
    t = np.arange(n) / RATE
    return sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 9)) + 0.02 * rng.standard_normal(n)


def _clicks(rng: np.random.Generator, n: int) -> np.ndarray:
    wave = np.zeros(n)
    for at in rng.integers(0, n - 400, n // RATE * 3):
        wave[at : at + 400] += rng.standard_normal(400) * np.exp(-np.arange(400) / 40)
    return wave


def _rustle(rng: np.random.Generator, n: int) -> np.ndarray:
    envelope = np.repeat(rng.random(n // 800 + 1) ** 3, 800)[:n]
    return rng.standard_normal(n) * envelope


def _tones(rng: np.random.Generator, n: int) -> np.ndarray:
    t = np.arange(n) / RATE
    return np.sin(2 * np.pi * rng.uniform(200, 2000) * t) * (np.sin(2 * np.pi * rng.uniform(0.5, 4) * t) > 0)


def _note(pitch: float, n: int) -> np.ndarray:
    t = np.arange(n) / RATE
    return sum(np.sin(2 * np.pi * pitch * k * t) / k**1.5 for k in range(1, 8)) * np.exp(-3 * t)


def _chords(rng: np.random.Generator, n: int) -> np.ndarray:
    wave, step = np.zeros(n + RATE), RATE // 2
    for at in range(0, n, step):
        root = 110 * 2 ** (rng.integers(0, 24) / 12)
        for interval in (0, 4, 7, 12):
            note = _note(root * 2 ** (interval / 12), RATE)
            wave[at : at + RATE] += note[: wave.size - at]
    return wave[:n]


def _drums(rng: np.random.Generator, n: int) -> np.ndarray:
    wave, t = np.zeros(n + RATE), np.arange(RATE // 4) / RATE
    for beat, at in enumerate(range(0, n, RATE // 4)):
        kick = np.sin(2 * np.pi * 60 * np.exp(-8 * t) * t * 4) * np.exp(-12 * t)
        snare = rng.standard_normal(t.size) * np.exp(-25 * t)
        wave[at : at + t.size] += kick if beat % 2 == 0 else 0.6 * snare
    return wave[:n]
