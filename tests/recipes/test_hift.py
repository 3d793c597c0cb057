"""The vocoder recipe: batches fit together and repeat, and a few steps bring the copies nearer to the recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vivavoce.errors import ConfigError
from vivavoce.recipes.hift import CONTEXT, Batch, HiFTRecipe, Pitches, blurred, losses, spectral_loss, tiny
from vivavoce.train.loop import train
from vivavoce.train.utterances import Utterances

HOP = 256


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tones of five harmonics with pauses, and their fundamental as if measured."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    waves, rows, pitches, offset = [], [], [], 0
    for number in range(12):
        frames = int(random.integers(30, 60))
        f0 = np.where(np.arange(frames) % 20 < 15, random.uniform(100, 300), 0.0)
        angle = 2 * np.pi * np.cumsum(f0.repeat(HOP)) / 16_000
        wave = sum(0.1 / k * np.sin(k * angle) for k in range(1, 6)) + 0.003 * random.standard_normal(frames * HOP)
        waves.append((wave * 32767).astype("<i2"))
        split = "dev" if number % 4 == 3 else "train"
        rows.append({"offset": offset, "samples": len(wave), "text": "", "split": split})
        pitches.append(f0.astype(np.float32))
        offset += len(wave)
    np.concatenate(waves).tofile(folder / "waves.i16")
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(folder / "f0.npy", np.concatenate(pitches))
    return folder


def test_a_batch_is_what_the_recordings_hold(corpus: Path) -> None:
    recipe = tiny(corpus)
    torch.manual_seed(1)
    batch = recipe.batch(5)
    torch.manual_seed(1)
    again = recipe.batch(5)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert batch.wave.shape == (4, 20 * HOP) and batch.mel.shape == batch.wanted.shape == (4, 80, 20)
    assert batch.f0.shape == (4, 20) and (batch.f0 > 0).any() and (batch.f0 == 0).any()
    loud = batch.wave.unflatten(1, (20, HOP)).square().mean(-1)
    for row, voiced in zip(loud, batch.f0 > 0, strict=True):
        assert row[voiced].min() > row[~voiced].max(), "f0 and wave are out of step"
    inner = slice(CONTEXT, -CONTEXT)
    same = (batch.mel[..., inner] - batch.wanted[..., inner]).abs().amax((1, 2)) < 1e-2
    assert same.any(), "a mel that is not blurred is that of the wave"


def test_blurring_touches_the_chosen_rows_only() -> None:
    mel = torch.randn(3, 80, 9)
    faulty = blurred(mel, torch.tensor([True, False, True]))
    assert torch.equal(faulty[1], mel[1]) and not torch.equal(faulty[0], mel[0])
    assert (faulty - mel).abs().max() < 6


def test_spectral_loss_is_zero_for_equals_and_blind_to_sign() -> None:
    wave, other = torch.randn(2, 4096), torch.randn(2, 4096)
    assert all(float(term) < 1e-4 for term in spectral_loss(-wave, wave))
    assert all(float(term) > 0.1 for term in spectral_loss(other, wave))


def test_it_learns(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny(corpus)
    unseen = recipe.batch(1_000)
    before = _distance(recipe, unseen)
    figures = train(recipe, tmp_path / "run")
    assert set(figures) == {"mel", "cents", "voicing"}
    assert _distance(recipe, unseen) < 0.75 * before
    assert len(list((tmp_path / "run" / "samples").glob("*.wav"))) == 6
    recipe.finish(tmp_path / "model")
    assert (tmp_path / "model").is_dir()


def _distance(recipe: HiFTRecipe, batch: Batch) -> float:
    """What training descends but for the pitch, with the same draws each time."""
    torch.manual_seed(9)
    with torch.no_grad():
        terms = losses(recipe.model.train(), batch)
    return float(terms["convergence"] + terms["distance"] + 2 * terms["mel"])


def test_foreign_pitches_are_refused(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "f0.npy", np.zeros(5, np.float32))
    with pytest.raises(ConfigError, match="delete it"):
        Pitches(Utterances(corpus), tmp_path, HOP)
