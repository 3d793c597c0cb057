"""A loudspeaker without a device: what it plays, and what it forgets."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vivavoce.audio.loudspeaker import Loudspeaker


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Loudspeaker:
    stream = SimpleNamespace(start=lambda: None, stop=lambda: None, close=lambda: None)
    device = SimpleNamespace(OutputStream=lambda **_: stream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    return Loudspeaker(1000)


def heard(speaker: Loudspeaker, frames: int) -> list[float]:
    out = np.full((frames, 1), 9.0, np.float32)
    speaker._fill(out, frames, None, None)
    return out[:, 0].tolist()


def test_what_is_added_is_played_in_turn_and_then_silence(speaker: Loudspeaker):
    speaker.add(torch.tensor([1.0, 2.0]))
    speaker.add(torch.tensor([3.0]))
    assert heard(speaker, 2) == [1, 2] and heard(speaker, 3) == [3, 0, 0]
    speaker.add(torch.tensor([4.0]))
    speaker.stop()
    assert heard(speaker, 1) == [0]
    speaker.close()


def test_what_is_taken_back_before_it_was_played_is_not_heard(speaker: Loudspeaker):
    speaker.add(torch.arange(1.0, 9.0))
    assert heard(speaker, 2) == [1, 2]
    speaker.take_back(4)
    speaker.add(torch.tensor([-5.0, -6.0]))
    assert heard(speaker, 5) == [3, 4, -5, -6, 0]


def test_what_comes_too_late_keeps_its_place_in_time(speaker: Loudspeaker):
    speaker.add(torch.arange(1.0, 9.0))
    assert heard(speaker, 7) == [1, 2, 3, 4, 5, 6, 7]
    speaker.take_back(4)  # of which three have been played
    speaker.add(torch.tensor([-5.0, -6.0]))
    speaker.add(torch.tensor([-7.0, -8.0, -9.0]))
    assert heard(speaker, 3) == [-8, -9, 0]


def test_the_next_answer_owes_nothing(speaker: Loudspeaker):
    speaker.add(torch.arange(1.0, 4.0))
    heard(speaker, 3)
    speaker.take_back(2)
    speaker.next_answer()
    speaker.add(torch.tensor([5.0]))
    assert heard(speaker, 1) == [5]
