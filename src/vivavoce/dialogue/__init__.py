"""Conversation: sessions that take waves and give waves and text.

``session()`` of a system starts a conversation, ``step(wave) -> Reply`` goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Event:
    """Something that happened, at a time in seconds on the session's audio clock (samples heard so far).

    speech_started, speech_ended; heard (what was understood, ``text``); reply_started; reply_ended (the answer is
    complete, not yet played); interrupted (``text``: what had been played of the answer); taken_back (the last
    ``samples`` of the sound that was given are void: what has not been played of them must not be, and the next sound
    belongs in their place).
    """

    kind: Literal[
        "speech_started", "speech_ended", "heard", "reply_started", "reply_ended", "interrupted", "taken_back"
    ]
    at: float
    text: str = ""
    samples: int = 0


@dataclass(frozen=True)
class Reply:
    """What a session gives back for a piece of sound: text and sound to add, and events. Waves are (S,) at the voice's
    rate.
    """

    text_piece: str = ""
    wave_piece: Tensor | None = None
    events: tuple[Event, ...] = ()


@dataclass
class Timing:
    """Where the time of one turn went, in milliseconds. ``first_sound`` counts from the last sample of speech."""

    first_sound: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


class Session(Protocol):
    """One conversation. Not thread-safe; sessions of one system may share its weights."""

    sample_rate: int  # of the waves it gives; it takes 16 kHz

    def step(self, wave: Tensor) -> Reply:
        """(S,) at 16 kHz, any length -> whatever there is to say by now."""
        ...

    def played(self, seconds: float) -> None:
        """How much of the answer the listener has heard."""
        ...

    def close(self) -> None:
        """End the conversation, and whatever is still being made for it."""
        ...
