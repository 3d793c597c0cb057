"""vivavoce: the voice-AI stack in one readable PyTorch code base.

    import vivavoce
    print(vivavoce.transcribe("talk.mp3").text)
    vivavoce.speak("Good morning.").save("morning.wav")
    print(vivavoce.talk("question.wav").answer)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vivavoce.errors import VivaError

if TYPE_CHECKING:
    from vivavoce.api import create, doctor, inspect, load, models, pull, speak, transcribe
    from vivavoce.asr import Segment, Transcript, Word
    from vivavoce.talking import TalkResult, talk
    from vivavoce.tts import Span, Speech

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("create", "doctor", "inspect", "load", "models", "pull", "speak", "transcribe"), "vivavoce.api"),
    **dict.fromkeys(("Segment", "Transcript", "Word"), "vivavoce.asr"),
    **dict.fromkeys(("Span", "Speech"), "vivavoce.tts"),
    **dict.fromkeys(("TalkResult", "talk"), "vivavoce.talking"),
}

__all__ = [
    "Segment", "Span", "Speech", "TalkResult", "Transcript", "VivaError", "Word",
    "create", "doctor", "inspect", "load", "models", "pull", "speak", "talk", "transcribe",
]  # fmt: skip


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vivavoce' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
