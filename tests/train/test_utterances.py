"""Sets of utterances, and the batches drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spoken import write_corpus
from vivavoce.errors import ConfigError
from vivavoce.train.utterances import Ahead, Batches, Utterances, pad, vary

sizes_of_items = st.lists(st.integers(1, 90), min_size=1, max_size=120)


def epoch(batches: Batches, items: int) -> list[list[int]]:
    """The first batches that together hold as many items as there are."""
    found: list[list[int]] = []
    while sum(map(len, found)) < items:
        found.append(batches[len(found)])
    return found


@settings(max_examples=40, deadline=None)
@given(sizes=sizes_of_items, budget=st.integers(1, 400), seed=st.integers(0, 9), pool=st.integers(1, 60))
def test_an_epoch_holds_every_item_once_within_the_budget(sizes: list[int], budget: int, seed: int, pool: int) -> None:
    batches = Batches(sizes, budget, seed, pool)
    first = epoch(batches, len(sizes))
    assert sorted(item for batch in first for item in batch) == list(range(len(sizes)))
    for batch in first:
        assert len(batch) == 1 or len(batch) * max(sizes[item] for item in batch) <= budget
    second = [batches[len(first) + number] for number in range(len(first))]
    assert sorted({item for batch in second for item in batch})[0] == 0


@settings(max_examples=30, deadline=None)
@given(sizes=sizes_of_items, steps=st.lists(st.integers(0, 200), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_any_step_can_be_asked_for_at_once(sizes: list[int], steps: list[int], seed: int) -> None:
    one, other = Batches(sizes, 100, seed), Batches(sizes, 100, seed)
    sequence = [one[step] for step in range(max(steps) + 1)]
    assert [other[step] for step in steps] == [sequence[step] for step in steps]


def test_seeds_and_epochs_differ() -> None:
    sizes = list(range(1, 61))
    one, other = (epoch(Batches(sizes, 100, seed), 60) for seed in (0, 1))
    assert one != other
    batches = Batches(sizes, 100, 0)
    assert [batches[len(one) + number] for number in range(len(one))] != one
    with pytest.raises(ConfigError, match="nothing to draw"):
        Batches([], 100, 0)


def test_similar_lengths_stand_together() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 400).tolist()
    found = epoch(Batches(sizes, 8000, 0), 400)
    padded = sum(len(batch) * max(sizes[item] for item in batch) for batch in found)
    assert padded < 1.1 * sum(sizes)


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = Utterances(write_corpus(tmp_path / "corpus") / "digits")
    raw = np.fromfile(tmp_path / "corpus" / "digits" / "waves.i16", "<i2")
    assert len(found.rows) == 10 and found.select("dev") == [7]
    assert found.select("train", lambda row: row["text"].startswith("t")) == [1, 2]
    wave = found.wave(1)
    first = found.rows[0]["samples"]
    assert wave.dtype == torch.float32 and len(wave) == 3 * 1280
    assert torch.equal((wave * 32768).short(), torch.from_numpy(raw[first : first + len(wave)]))
    padded, lengths = pad([found.wave(0), found.wave(2)])
    assert padded.shape == (2, 5 * 1280) and lengths.tolist() == [3 * 1280, 5 * 1280]
    assert torch.equal(padded[0, : 3 * 1280], found.wave(0)) and not padded[0, 3 * 1280 :].any()


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no set of utterances"):
        Utterances(tmp_path)
    digits = write_corpus(tmp_path / "corpus") / "digits"
    (digits / "waves.i16").write_bytes((digits / "waves.i16").read_bytes()[:-2])
    with pytest.raises(ConfigError, match="cut off"):
        Utterances(digits)
    (digits / "index.jsonl").write_text('{"offset": 0')
    with pytest.raises(ConfigError, match="damaged"):
        Utterances(digits)


def test_waves_are_varied_row_by_row() -> None:
    wave, lengths = 0.1 * torch.randn(6, 800), torch.tensor([800, 700, 400, 400, 100, 1])
    torch.manual_seed(0)
    heard, kept = vary(wave, lengths)
    level = 20 * (heard.square().mean(1) / wave.square().mean(1)).log10() / 2
    assert heard.abs().max() <= 1 and level.min() > -9 and level.max() < 10 and level.std() > 1
    speed = 800 / heard.shape[1]
    assert 0.9 <= speed <= 1.1 and speed != 1
    assert ((kept - lengths / speed).abs() <= 1).all() and kept.min() == 1


def test_the_next_step_is_made_ahead() -> None:
    asked: list[int] = []

    def make(step: int) -> int:
        asked.append(step)
        return 10 * step

    ahead = Ahead(make)
    assert [ahead[step] for step in (3, 4, 5, 9, 2)] == [30, 40, 50, 90, 20]
    assert all(asked.count(step) == 1 for step in (4, 5)), "what was made ahead is not made again"


def test_what_fails_ahead_fails_when_it_is_wanted() -> None:
    ahead = Ahead(lambda step: 1 // (2 - step))
    assert ahead[0] == 0 and ahead[1] == 1
    with pytest.raises(ZeroDivisionError):
        ahead[2]
