"""Records as a user might bring them: a JSONL file beside short sounds, every letter a tone of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.spoken import RATE, WORDS, spelled


def write_talk(folder: Path, modules: int = 10, reads: int | None = 4, *, able: bool = False) -> Path:
    """A model folder of tiny random parts; ``able``: the model's states reach far enough to choose a token."""
    import torch

    from tests.dialogue.vita_parts import parts
    from vivavoce.dialogue.vita_audio import VITAAudio
    from vivavoce.dialogue.vita_audio_files import save_bundle

    made = parts(modules, reads)
    if able:
        torch.manual_seed(0)
        model = VITAAudio(made.model.config)
        for layer in (model.embedding, model.head):
            torch.nn.init.normal_(layer.weight, std=0.5)
        made = replace(made, model=model.eval())
    save_bundle(folder, made)
    return folder


def rows(count: int = 6) -> list[dict[str, Any]]:
    """``count`` records of each task: spoken question, transcript, read text, text; file names as in
    :func:`write_sounds`."""
    made: list[dict[str, Any]] = []
    for word, answer in zip(WORDS[:count], WORDS[3 : 3 + count], strict=False):
        asked = "Convert the text to speech.\n"
        made += [
            _row("<|audio|>", f"{answer}\n<|audio|>", f"sounds/{word}.wav", f"sounds/{answer}.wav"),
            _row("Convert the speech to text.\n<|audio|>", word, f"sounds/{word}.wav"),
            _row(asked + word, "<|audio|>", f"sounds/{word}.wav"),
            _row(f"say {word}", word),
        ]
    return made


def _row(asked: str, said: str, *audios: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"messages": messages, **({"audios": list(audios)} if audios else {})}


def write_sounds(folder: Path) -> None:
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for word in WORDS:
        soundfile.write(folder / "sounds" / f"{word}.wav", spelled(word, random)[0].astype(np.float32), RATE)


def write_records(folder: Path, count: int = 6, name: str = "data.jsonl") -> Path:
    """The JSONL file, its sounds beside it."""
    write_sounds(folder)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows(count)), "utf-8")
    return folder / name
