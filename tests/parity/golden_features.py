"""Mel filters and mel spectra against librosa (cepstra and f0 tables of the case belong to systems that are not here
yet).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.parity.compare import Case
from vivavoce.audio.mel import MelFormat, mel_filters, mel_spectrum


def _form(about: dict[str, Any], sample_rate: int) -> MelFormat:
    n_fft = about.get("n_fft", 2048)
    centre = about.get("center", True)
    return MelFormat(
        sample_rate=sample_rate, n_fft=n_fft, win_length=about.get("win_length", n_fft),
        hop_length=about.get("hop_length", 512), n_mels=about.get("n_mels", 128), f_min=about.get("fmin", 0.0),
        f_max=about.get("fmax"), scale="htk" if about.get("htk") else "slaney",
        norm="none" if about.get("norm", "slaney") is None else "slaney", power=about.get("power", 2.0), centre=centre,
        pad=about.get("pad_mode", "constant"), window=about.get("window", "hann"), log="none",
    )  # fmt: skip


def check(folder: Path) -> dict[str, float]:
    case = Case(folder)
    chirp = case.given("chirp")
    for name, about in case.about["config"]["mel"].items():
        form = _form(about, case.about["config"]["sample_rate"])
        if f"out.filters_{name}" in case.tensors:
            case.close(f"filters_{name}", mel_filters(form))
        if (
            f"out.mel_{name}" in case.tensors and form.centre
        ):  # uncentred formats pad as HiFi-GAN does, librosa not at all
            case.close(f"mel_{name}", mel_spectrum(chirp[None].float(), form)[0])
    assert isinstance(chirp, torch.Tensor)
    return case.errors
