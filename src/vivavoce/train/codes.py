"""The codes of a set of utterances, made once by a tokenizer and kept beside the waves.

``codes-NAME.i16``: int16, one utterance after the other, ceil(samples / samples a code) codes each, so that offsets
follow from the set's index. ``codes-NAME.json`` holds the sum of the tokenizer's weights that made them; another
tokenizer makes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vivavoce.checkpoints.native import build, open_native
from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer, GLM4TokenizerConfig
from vivavoce.config import from_dict
from vivavoce.errors import ConfigError
from vivavoce.train.utterances import Utterances, pad

BATCH_S = 60
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
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class CodedUtterances:
    """A set with its codes. ``quick``: make them in bfloat16, where 2 to 3 % come out differently."""

    def __init__(self, folder: Path, tokenizer: GLM4Tokenizer, report: Report | None = None, *, quick: bool = False):
        self.corpus = Utterances(folder)
        per = tokenizer.config.samples_per_code
        counts = [-(-row["samples"] // per) for row in self.corpus.rows]
        self.ends = np.cumsum(counts) if counts else np.zeros(0, dtype=np.int64)
        path, about = folder / "codes-glm4.i16", folder / "codes-glm4.json"
        mark = {"tokenizer": fingerprint(tokenizer), "codes": int(sum(counts))}
        if not about.exists() or json.loads(about.read_text(encoding="utf-8")) != mark:
            about.unlink(missing_ok=True)  # the codes to come are not those it tells of
            _encode(self.corpus, tokenizer, counts, path, report, quick)
            about.write_text(json.dumps(mark) + "\n", encoding="utf-8")
        self.codes = np.fromfile(path, dtype="<i2")

    def of(self, number: int) -> list[int]:
        """The codes of one utterance."""
        first = int(self.ends[number - 1]) if number else 0
        return self.codes[first : int(self.ends[number])].tolist()


@torch.inference_mode()
def _encode(
    corpus: Utterances, tokenizer: GLM4Tokenizer, counts: list[int], path: Path, report: Report | None, quick: bool
) -> None:
    """All codes of a set, similar lengths together."""
    starts = np.cumsum([0, *counts])
    made = np.zeros(int(starts[-1]), dtype="<i2")
    order = sorted(range(len(counts)), key=lambda i: corpus.rows[i]["samples"])
    done, batch = 0, list[int]()
    limit = BATCH_S * 16_000
    for place, number in enumerate(order):
        batch.append(number)
        longest = corpus.rows[order[min(place + 1, len(order) - 1)]]["samples"]
        if place + 1 < len(order) and longest * (len(batch) + 1) <= limit:
            continue
        wave, lengths = pad([corpus.wave(i) for i in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=quick):
            codes = tokenizer(wave, lengths)
        for row, i in enumerate(batch):
            made[starts[i] : starts[i + 1]] = codes.values[row, 0, : counts[i]].numpy()
        done, batch = done + len(batch), []
        if report is not None:
            report("codes", done, len(order))
    part = path.with_suffix(".part")
    made.tofile(part)
    os.replace(part, path)
