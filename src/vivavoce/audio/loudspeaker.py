"""A loudspeaker that plays in the background: sound is added as it is made, and can be stopped at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from torch import Tensor

from vivavoce.errors import AudioError, MissingExtraError, require


class Loudspeaker:
    """Plays added waves (S,) one after another at ``sample_rate``; needs the extra ``[mic]``."""

    def __init__(self, sample_rate: int):
        try:
            device = require("sounddevice", "mic", "the loudspeaker")
        except OSError as error:  # the package is there, the system library is not
            raise MissingExtraError("sounddevice finds no PortAudio library: run  apt install libportaudio2") from error
        self._waiting = np.zeros(0, dtype=np.float32)
        self._owed = 0  # samples that were played although they had been taken back by then
        self._lock = threading.Lock()
        try:
            self._stream = device.OutputStream(
                samplerate=sample_rate, channels=1, dtype="float32", callback=self._fill, latency="low"
            )
            self._stream.start()
        except device.PortAudioError as error:
            raise AudioError(f"the loudspeaker cannot be used ({error}); leave --play out and open the file") from error

    def _fill(self, out: np.ndarray, frames: int, moment: Any, status: Any) -> None:
        with self._lock:
            piece, self._waiting = self._waiting[:frames], self._waiting[frames:]
        out[: piece.size, 0] = piece
        out[piece.size :, 0] = 0.0

    def add(self, wave: Tensor) -> None:
        """Play a wave behind what is waiting."""
        with self._lock:
            late, self._owed = min(self._owed, wave.numel()), max(0, self._owed - wave.numel())
            self._waiting = np.concatenate([self._waiting, wave[late:].numpy().astype(np.float32)])

    def take_back(self, samples: int) -> None:
        """The last samples that were added are void: forget those that wait; what comes next belongs in their place, so
        as much of it is left out as was played of them."""
        with self._lock:
            kept = max(0, self._waiting.size - samples)
            self._owed += samples - (self._waiting.size - kept)
            self._waiting = self._waiting[:kept]

    def next_answer(self) -> None:
        """What is added from now on has its place behind all that waits."""
        with self._lock:
            self._owed = 0

    def stop(self) -> None:
        """Forget what is waiting."""
        with self._lock:
            self._waiting, self._owed = self._waiting[:0], 0

    def close(self, drain: bool = True) -> None:
        """Let the rest be heard, if wanted, and give the device back."""
        while drain and self._waiting.size:
            time.sleep(0.02)
        self._stream.stop()
        self._stream.close()
