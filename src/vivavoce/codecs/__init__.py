"""Codecs: waves to codes and back. The room's values are :class:`CodeFormat` and :class:`Codes`.

An encoder streams with a state of its own, a decoder with another; a system may be one half only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CodeFormat:
    """What codes mean; two parts fit when their formats are equal. ``rate``: code frames a second."""

    name: str
    rate: float
    codes: int
    levels: int = 1


@dataclass(frozen=True)
class Codes:
    """values (B, K, T) int64, of which ``lengths`` (B,) frames are real."""

    values: Tensor
    lengths: Tensor
