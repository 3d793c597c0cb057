"""Many VITA-Audio texts written by one model at once: a tick is one whole cycle of each.

In a tick the modules first draft for all texts that want drafts, module after module; then the backbone reads, in one
pass, what every text has unread: eleven drafts here, one token there, part of a prompt of a text that has just come in.
Weights are read once for all. A text's tokens do not depend on its neighbours.

Each text keeps its own state (vita_audio_writing.py: Writer), so it may be forked, cut or written to a file between two
ticks, and taken into another engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from vivavoce.dialogue.vita_audio import VITAAudio
from vivavoce.dialogue.vita_audio_cycles import Ask, Drafting, Reading, TakenBack, Text, Written, carry_out
from vivavoce.errors import ConfigError

# tokens of a prompt that the backbone reads in a tick, so that a long one does not keep the others waiting; modules
# that read whole prompts do so when they first draft, each in one piece
PROMPT_PIECE = 64
KNOWN_WAITS = 1024


@dataclass
class _Session:
    text: Text
    admitted: float
    served: bool = False


class Engine:
    """Texts of one model. ``most``: how many at once; more than that wait in their order.

    ``waits``: seconds from admission to the tick that first served a text, of the last 1,024. Not thread-safe."""

    def __init__(self, model: VITAAudio, *, most: int = 64, clock: Callable[[], float] = perf_counter):
        if most < 1:
            raise ConfigError(f"an engine serves 1 text or more at once, not {most}")
        self.model, self.most, self.clock = model, most, clock
        self.waits: deque[float] = deque(maxlen=KNOWN_WAITS)
        self._sessions: dict[int, _Session] = {}  # in the order of their admission
        self._next = 0

    def __len__(self) -> int:
        """How many texts are being written or wait."""
        return len(self._sessions)

    def admit(self, text: Text) -> int:
        """Take a text in from the next tick on -> its key. ConfigError where it is another model's, or may grow beyond
        its caches, which would stop all others in a tick."""
        if text.writer.model is not self.model:
            raise ConfigError("the text is written by another model; give it to an engine of that model")
        length, room = len(text.writer.tokens) + text.left, text.writer.room
        if length > room:
            raise ConfigError(f"the text may grow to {length} tokens and its caches hold {room}; give a lower limit")
        self._next += 1
        self._sessions[self._next] = _Session(text, self.clock())
        return self._next

    def cancel(self, key: int) -> Text:
        """Let a text go, as it stands after the last tick; KeyError where it has ended."""
        return self._sessions.pop(key).text

    @torch.inference_mode()
    def tick(self) -> dict[int, list[Written | TakenBack]]:
        """One cycle of every text -> what came of each that has got further. A text that is complete leaves."""
        now, told = self.clock(), dict[int, list[Written | TakenBack]]()
        running = dict(list(self._sessions.items())[: self.most])
        for session in running.values():
            if not session.served:
                session.served = True
                self.waits.append(now - session.admitted)
        for kind in (Drafting, Reading):
            asked = {key: ask for key, session in running.items() if isinstance(ask := session.text.ask(), kind)}
            self._serve(running, asked, told)
        for key, session in running.items():
            if session.text.ask() is None:
                del self._sessions[key]
        return told

    def _serve(
        self, running: dict[int, _Session], asked: dict[int, Ask], told: dict[int, list[Written | TakenBack]]
    ) -> None:
        if not asked:
            return
        found = carry_out([(running[key].text.writer, ask) for key, ask in asked.items()], PROMPT_PIECE)
        for key, part in zip(asked, found, strict=True):
            if part is not None:
                told.setdefault(key, []).extend(running[key].text.take(part))
