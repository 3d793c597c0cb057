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
            self._waiting = np.concatenate([self._waiting, wave.numpy().astype(np.float32)])

    def stop(self) -> None:
        """Forget what is waiting."""
        with self._lock:
            self._waiting = self._waiting[:0]

    def close(self, drain: bool = True) -> None:
        """Let the rest be heard, if wanted, and give the device back."""
        while drain and self._waiting.size:
            time.sleep(0.02)
        self._stream.stop()
        self._stream.close()
