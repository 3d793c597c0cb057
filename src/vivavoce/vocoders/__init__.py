"""Vocoders: features to waves. The room's contract is :class:`Vocoder`; each system is one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Vocoder(Protocol):
    """What every vocoder offers. A stream gives the same wave, ``delay`` samples late, whatever the cutting."""

    config: Any

    def __call__(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features (B, M, T), of which ``lengths`` (B,) frames are real -> wave (B, S)."""
        ...

    def init_state(self, batch: int) -> Any: ...

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Further features (B, M, T) -> the samples that are certain by now, and the state; that given is consumed."""
        ...

    def flush(self, state: Any) -> Tensor:
        """What is still withheld after the last frame."""
        ...
