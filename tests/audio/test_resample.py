"""The streaming resampler: any cutting gives the same, tones stay tones, lengths follow the rates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.audio.resample import Resampler, resample


def run(resampler: Resampler, wave: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state, pieces, at = resampler.init_state(wave.shape[0]), [], 0
    for cut in [*cuts, wave.shape[1]]:
        made, state = resampler.step(wave[:, at : max(at, cut)], state)
        pieces.append(made)
        at = max(at, cut)
    return torch.cat([*pieces, resampler.flush(state)], 1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 900), max_size=5),
    st.sampled_from([(8000, 16000), (44100, 16000), (22050, 16000), (16000, 24000)]),
)
def test_any_cutting_gives_the_same(cuts: list[int], rates: tuple[int, int]) -> None:
    wave = torch.randn(2, 900, generator=torch.Generator().manual_seed(0))
    resampler = Resampler(*rates)
    whole = run(resampler, wave, [])
    pieces = run(resampler, wave, sorted(cuts))
    assert pieces.shape == whole.shape
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)
    assert abs(whole.shape[1] - 900 * rates[1] / rates[0]) <= 2


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 16000)])
def test_a_tone_stays_where_it_is(rates: tuple[int, int]) -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(rates[0], dtype=torch.float64) / rates[0])[None].float()
    made = run(Resampler(*rates), tone, [])[0, 2000:-2000]
    wanted = torch.sin(2 * math.pi * 1000 * torch.arange(rates[1], dtype=torch.float64) / rates[1]).float()[
        2000 : 2000 + made.numel()
    ]
    assert (made - wanted).abs().max() < 1e-3
    by_soxr = resample(tone[0], *rates)[2000 : 2000 + made.numel()]
    assert (by_soxr - wanted).abs().max() < 1e-3


def test_what_cannot_be_represented_is_removed() -> None:
    high = torch.sin(2 * math.pi * 11_000 * torch.arange(44_100, dtype=torch.float64) / 44_100)[None].float()
    assert run(Resampler(44_100, 16_000), high, [])[0, 2000:-2000].abs().max() < 1e-3
