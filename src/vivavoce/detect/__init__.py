"""Detectors: wave to events. The room's contract is :class:`Detector`; ``segments.py`` finds stretches of speech."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Detector(Protocol):
    """What every detector offers: one probability for each chunk of a wave, with a state that the caller holds."""

    config: Any  # has sample_rate, and chunk in samples

    def init_state(self, batch: int) -> Any: ...

    def step(self, wave: Tensor, state: Any) -> tuple[Tensor, Any]:
        """wave (B, n x chunk) -> probabilities (B, n) and the state; the state given is consumed."""
        ...
