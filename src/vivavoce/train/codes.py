"""The codes of a set of utterances, made once by a tokenizer and kept beside the waves.

``codes-glm4.npz`` holds the codes of all utterances one behind the other (``codes``) and where each ends (``ends``),
several times over where there are several ``views``: the first is the sound as recorded, in the others it is varied as
in training. ``codes-glm4.json`` holds the sum of the tokenizer's weights that made them; another tokenizer makes them
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.checkpoints.native import build, open_native
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.errors import ConfigError
from vivavoce.train.utterances import Utterances, pad, vary

BATCH_S = {"cpu": 60, "cuda": 600}
Report = Callable[[str, float, float], None]


def read_tokenizer(folder: Path) -> GLM4Tokenizer:
    """The tokenizer of a model folder; ConfigError where there is none."""
    if not (folder / "config.json").exists():
        raise ConfigError(f"there is no tokenizer in {folder}; train one first:  viva train glm4_tokenizer")
    about = open_native(folder)
    if about.system != "glm4_tokenizer":
        raise ConfigError(f"{folder} holds a model of {about.system}, not a tokenizer; name the folder of one")
    return build(GLM4Tokenizer, from_dict(GLM4TokenizerConfig, about.config), about.tensors())


def fingerprint(tokenizer: GLM4Tokenizer) -> str:
    """A short sum over configuration and weights."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class CodedUtterances:
    """A set with its codes, made where the tokenizer lies. ``quick``: make them in bfloat16 on a processor, where 2 to
    3 % come out differently. ``views``: how many times, the first as recorded."""

    def __init__(
        self, folder: Path, tokenizer: GLM4Tokenizer, report: Report | None = None, *, quick: bool = False,
        views: int = 1,
    ):  # fmt: skip
        self.corpus = Utterances(folder)
        path, about = folder / "codes-glm4.npz", folder / "codes-glm4.json"
        mark = {"tokenizer": fingerprint(tokenizer), "utterances": len(self.corpus.rows), "views": views}
        if not path.exists() or not _serves(about, mark):
            about.unlink(missing_ok=True)  # the codes to come are not those it tells of
            made = [_encode(self.corpus, tokenizer, view, report, quick) for view in range(views)]
            _write(path, made)
            about.write_text(json.dumps(mark) + "\n", encoding="utf-8")
        with np.load(path) as stored:
            self.codes, self.ends = stored["codes"], stored["ends"]
        self.views = min(views, len(self.ends))

    def of(self, number: int, view: int = 0) -> np.ndarray:
        """The codes (N,) of one utterance."""
        ends = self.ends[view]
        first = ends[number - 1] if number else (self.ends[view - 1, -1] if view else 0)
        return self.codes[first : ends[number]]


def _serves(about: Path, mark: dict[str, Any]) -> bool:
    """Whether the codes that are there are those wanted, or more views of them."""
    if not about.exists():
        return False
    found = json.loads(about.read_text(encoding="utf-8"))
    return {**found, "views": 0} == {**mark, "views": 0} and found["views"] >= mark["views"]


@torch.inference_mode()
def _encode(
    corpus: Utterances, tokenizer: GLM4Tokenizer, view: int, report: Report | None, quick: bool
) -> list[np.ndarray]:
    """The codes of each utterance, similar lengths together."""
    device = tokenizer.positions.device
    made = [np.zeros(0, dtype="<i2")] * len(corpus.rows)
    order = sorted(range(len(made)), key=lambda i: corpus.rows[i]["samples"])
    done, batch = 0, list[int]()
    limit = BATCH_S[device.type] * 16_000
    for place, number in enumerate(order):
        batch.append(number)
        longest = corpus.rows[order[min(place + 1, len(order) - 1)]]["samples"]
        if place + 1 < len(order) and longest * (len(batch) + 1) <= limit:
            continue
        wave, lengths = (tensor.to(device) for tensor in pad([corpus.wave(i) for i in batch]))
        if view:
            torch.manual_seed(1_000_003 * view + place)
            wave, lengths = vary(wave, lengths)
        with torch.autocast(device.type, torch.bfloat16, enabled=quick and device.type == "cpu"):
            codes = tokenizer(wave, lengths)
        values = codes.values[:, 0].cpu().numpy().astype("<i2")
        for row, (i, count) in enumerate(zip(batch, codes.lengths.tolist(), strict=True)):
            made[i] = values[row, :count]
        done, batch = done + len(batch), []
        if report is not None:
            report(f"codes, view {view + 1}" if view else "codes", done, len(order))
    return made


def _write(path: Path, made: list[list[np.ndarray]]) -> None:
    """All views in one file, in one move."""
    every = [codes for view in made for codes in view]
    ends = np.cumsum([len(codes) for codes in every], dtype=np.int64).reshape(len(made), -1)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, codes=np.concatenate(every) if every else np.zeros(0, "<i2"), ends=ends)
    os.replace(part, path)
