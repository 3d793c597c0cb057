"""A corpus of a few short made-up utterances: every letter is a tone of its own, 80 ms long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero")
RATE = 16_000
HOP = 256  # of the vocoder


def spelled(text: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The wave (S,) of a text, and the fundamental (S // HOP,) in Hz of its frames; spaces are silent."""
    tones = np.array([0.0 if letter == " " else 110.0 * 1.06 ** (ord(letter) - 97) for letter in text])
    f0 = tones.repeat(1280)
    angle = 2 * np.pi * np.cumsum(f0) / RATE
    wave = (f0 > 0) * sum(0.2 / k * np.sin(k * angle) for k in range(1, 4))
    frames = len(wave) // HOP
    return wave + 0.002 * random.standard_normal(len(wave)), f0[HOP // 2 :: HOP][:frames].astype(np.float32)


def write_set(folder: Path, rows: list[dict[str, Any]], seed: int) -> None:
    """One finished set."""
    random, waves, pitches, index, offset = np.random.default_rng(seed), [], [], [], 0
    for row in rows:
        wave, f0 = spelled(row["text"], random)
        waves.append((wave * 32767).round().astype("<i2"))
        pitches.append(f0)
        index.append({"offset": offset, "samples": len(wave), "licence": "none", **row})
        offset += len(wave)
    folder.mkdir(parents=True)
    np.concatenate(waves).tofile(folder / "waves.i16")
    np.save(folder / "f0.npy", np.concatenate(pitches))
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in index), "utf-8")
    (folder / "done.json").write_text(json.dumps({"utterances": len(rows)}) + "\n", "utf-8")


def write_corpus(folder: Path) -> Path:
    """The sets teacher (answers and sentences), questions and digits: 40 utterances, a few of them held out."""
    split = ["dev" if number % 8 == 7 else "train" for number in range(10)]
    about = {"speaker": "tones", "kind": "question", "skill": "digits"}
    pairs = [
        (word, WORDS[(number + 3) % 10], part) for number, (word, part) in enumerate(zip(WORDS, split, strict=True))
    ]
    digits = [{"text": a, "answer": f"you said {a}", "split": part, **about} for a, _, part in pairs]
    questions = [{"text": f"{a} {b}", "answer": f"you said {a}", "split": part, **about} for a, b, part in pairs]
    answers = [{"text": f"you said {a}", "split": part, "kind": "answer", "speaker": "tones"} for a, _, part in pairs]
    sentences = [
        {"text": f"{b} and {a}", "split": part, "kind": "sentence", "speaker": "tones"} for a, b, part in pairs
    ]
    write_set(folder / "teacher", answers + sentences, 0)
    write_set(folder / "questions", questions, 1)
    write_set(folder / "digits", digits, 2)
    return folder


def write_tokenizer(corpus: Path, folder: Path) -> Path:
    """A tokenizer of random weights with the corpus's own codebook, as a model folder."""
    from vivavoce.recipes import glm4_tokenizer

    recipe = glm4_tokenizer.open(corpus, glm4_tokenizer.Options(size="tiny", whisper="none"))
    recipe.finish(folder)
    return folder
