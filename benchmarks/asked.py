"""The everyday questions, spoken by a voice that is not ours (the package hibari-tts), as 16 kHz waves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soxr

from benchmarks.sounds import RATE

FILE = Path(__file__).with_name("questions.json")


def groups() -> dict[str, list[list[str]]]:
    """Group -> dialogues, each a list of questions (most have one)."""
    table = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: [item if isinstance(item, list) else [item] for item in items] for name, items in table.items()}


def spoken(text: str, seed: int = 0) -> np.ndarray:
    """One question, with a third of a second of near silence around."""
    from hibari import SAMPLE_RATE, Hibari  # pyright: ignore[reportMissingImports]

    if not hasattr(spoken, "voice"):
        spoken.voice = Hibari()  # pyright: ignore[reportFunctionMemberAccess]
    wave = np.asarray(spoken.voice(text, seed=seed), dtype=np.float32).reshape(-1)  # pyright: ignore
    wave = soxr.resample(wave, SAMPLE_RATE, RATE).astype(np.float32)
    edge = np.random.default_rng(seed).standard_normal(RATE // 3).astype(np.float32) * 1e-4
    return np.concatenate([edge, wave * (0.5 / max(1e-6, float(np.abs(wave).max())))])


def twenty() -> list[str]:
    """The questions whose turn is timed: five facts, and some of every other kind."""
    chosen = groups()
    picked = [dialogue[0] for dialogue in chosen["facts"][:9] + chosen["definitions"][:4] + chosen["advice"][:4]]
    return picked + [dialogue[0] for dialogue in chosen["small talk"][:3]]
