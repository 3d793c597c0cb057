"""Choosing a token: greedy, the masks of top-k and top-p, the penalty, seeds, and the guard against repetition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vivavoce.search.sampling import SamplingOptions, period, sample

LOGITS = torch.tensor([1.0, 4.0, 3.0, 2.0, -1.0])


def drawn(options: SamplingOptions, times: int = 300, recent: tuple[int, ...] = ()) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [sample(LOGITS, recent, options, generator) for _ in range(times)]


def test_temperature_zero_is_greedy() -> None:
    assert set(drawn(SamplingOptions(), 5)) == {1}
    assert set(drawn(SamplingOptions(temperature=1e-4), 20)) == {1}


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(drawn(SamplingOptions(temperature=5.0, top_k=2))) == {1, 2}
    assert set(drawn(SamplingOptions(temperature=5.0, top_k=99))) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_least_set_that_reaches_p() -> None:
    odds = LOGITS.softmax(-1)
    assert odds[1] < 0.7 < odds[1] + odds[2]
    assert set(drawn(SamplingOptions(temperature=1.0, top_p=0.7))) == {1, 2}
    assert set(drawn(SamplingOptions(temperature=1.0, top_p=1e-6), 20)) == {1}


def test_a_higher_temperature_spreads() -> None:
    cold, hot = (drawn(SamplingOptions(temperature=t)).count(1) for t in (0.7, 3.0))
    assert cold > hot + 50


def test_the_penalty_turns_away_from_what_was_said() -> None:
    assert set(drawn(SamplingOptions(repetition_penalty=2.0), 3, recent=(1,))) == {2}
    assert set(drawn(SamplingOptions(repetition_penalty=2.0, window=1), 3, recent=(1, 2))) == {1}
    assert torch.equal(LOGITS, torch.tensor([1.0, 4.0, 3.0, 2.0, -1.0]))  # the logits given are not changed


def test_a_generator_repeats() -> None:
    assert drawn(SamplingOptions(temperature=2.0)) == drawn(SamplingOptions(temperature=2.0))


@pytest.mark.parametrize(
    ("tokens", "unit"),
    [([1, 2, 3], 0), ([5] * 4, 1), ([9, 1, 2, 1, 2, 1, 2, 1, 2], 2), ([1, 2, 1, 2, 1, 2], 0), ([], 0)],
)
def test_period(tokens: list[int], unit: int) -> None:
    assert period(tokens) == unit


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_four_times_the_same_is_always_seen(unit: list[int], before: list[int]) -> None:
    found = period([*before, *unit * 4])
    assert 0 < found <= len(unit)
