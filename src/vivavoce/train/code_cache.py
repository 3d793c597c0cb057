"""The codes of sound files, made once by a tokenizer and kept in a folder of their own.

    FOLDER/<fingerprint of the tokenizer>/<SHA-256 of the file>.npy      int32 (N,)

A file that moves keeps its codes; one that changes, or another tokenizer, makes new ones. Each file of codes appears in
one move, so what was interrupted goes on where it was, and several processes may fill the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from vivavoce.audio import io as audio
from vivavoce.codecs.glm4_tokenizer import SAMPLE_RATE, GLM4Tokenizer
from vivavoce.errors import AudioError, ConfigError
from vivavoce.train.codes import Report, fingerprint

LONGEST = 600.0  # seconds of one file


class CodeCache:
    """``folder`` is made when the first codes are; codes are made where the tokenizer lies."""

    def __init__(self, folder: Path, tokenizer: GLM4Tokenizer):
        self.folder, self.tokenizer = folder / fingerprint(tokenizer), tokenizer
        self.made = 0  # files encoded by this object, not found
        self._known: dict[Path, list[int]] = {}

    def of(self, path: Path) -> list[int]:
        """The codes of a sound file; AudioError where it is none, ConfigError where it is too long."""
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def fill(
        self, paths: Iterable[Path], report: Report | None = None, named: Mapping[Path, str] | None = None
    ) -> None:
        """Make what is not there yet. ``named``: where each file is named, for what is said of one that is no sound."""
        wanted, known = list(dict.fromkeys(paths)), named or {}
        for number, path in enumerate(wanted):
            try:
                self.of(path)
            except (AudioError, ConfigError) as error:
                place = f"{known[path]}: " if path in known else ""
                raise type(error)(f"{place}{error}") from error
            if report is not None:
                report("codes", number + 1, len(wanted))

    def _find(self, path: Path) -> list[int]:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); check the file") from error
        place = self.folder / f"{digest}.npy"
        codes = _stored(place, self.tokenizer.config.codes)
        if codes is None:
            codes = self._encode(path)
            _write(place, codes)
            self.made += 1
        return codes.tolist()

    @torch.inference_mode()
    def _encode(self, path: Path) -> np.ndarray:
        if audio.info(path).duration > LONGEST:
            raise ConfigError(f"{path} is longer than {LONGEST / 60:.0f} minutes; cut it")
        blocks, samples = [], 0
        for block in audio.read_blocks(path, SAMPLE_RATE):
            blocks.append(block)
            samples += len(block)
            if samples > LONGEST * SAMPLE_RATE:  # some files do not tell their length, or tell a wrong one
                raise ConfigError(f"{path} is longer than {LONGEST / 60:.0f} minutes; cut it")
        wave = torch.cat(blocks)[None].to(self.tokenizer.positions.device)
        return self.tokenizer(wave).values[0, 0].cpu().numpy().astype("<i4")


def _stored(place: Path, limit: int) -> np.ndarray | None:
    """The codes in a file; None where it is not there, or not what this class writes."""
    try:
        codes = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = isinstance(codes, np.ndarray) and codes.ndim == 1 and codes.dtype == np.dtype("<i4") and codes.size
    return codes if good and codes.min() >= 0 and codes.max() < limit else None


def _write(place: Path, codes: np.ndarray) -> None:
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, codes, allow_pickle=False)
        os.replace(part, place)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(
            f"codes cannot be kept in {place.parent} ({error.strerror}); free some space there"
        ) from error
