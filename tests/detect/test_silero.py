"""The detector streams exactly, and the segmenter keeps its promises."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.detect.segments import SegmentOptions, find_segments
from vivavoce.detect.silero import Silero, SileroConfig


def test_any_cutting_gives_the_same_and_rows_do_not_touch() -> None:
    torch.manual_seed(0)
    model = Silero(SileroConfig.tiny()).eval().requires_grad_(False)
    wave = torch.randn(2, 256 * 9)
    whole = model(wave)
    state, pieces, at = model.init_state(2), [], 0
    for chunks in (1, 3, 2, 3):
        odds, state = model.step(wave[:, at : at + 256 * chunks], state)
        pieces.append(odds)
        at += 256 * chunks
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(wave[1:]), whole[1:], rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=120), st.sampled_from([30.0, 200.0]), st.sampled_from([float("inf"), 900.0]))
def test_segments_are_ordered_and_inside(odds: list[float], pad: float, longest: float) -> None:
    length = 512 * len(odds)
    found = find_segments(odds, length, SegmentOptions(pad=pad, max_speech=longest, min_speech=60))
    assert all(0 <= start < end <= length for start, end in found)
    assert all(a[1] <= b[0] for a, b in pairwise(found))


def test_speech_between_silences_is_found_with_its_pad() -> None:
    odds = [0.0] * 20 + [0.9] * 20 + [0.0] * 20
    assert find_segments(odds, 512 * 60, SegmentOptions(pad=30)) == [(512 * 20 - 480, 512 * 40 + 480)]
    assert find_segments([0.1] * 50, 512 * 50, SegmentOptions()) == []
