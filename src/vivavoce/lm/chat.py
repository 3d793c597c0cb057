"""A language model as a partner in conversation: ChatML turns in, text piece by piece out.

What was computed once is kept: a new prompt that begins like the last one (system prompt, earlier turns) costs only its
new tokens. Rolling back is setting positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch

from vivavoce.errors import ConfigError
from vivavoce.lm.llama import Llama
from vivavoce.search.sampling import SamplingOptions, period, sample
from vivavoce.text.chunking import sentences
from vivavoce.text.tokenizer import Tokenizer

SYSTEM = (
    "You are a friendly voice assistant. Answer truthfully in one short sentence that can be read aloud. "
    "No lists, no code, no symbols. If you do not know, say so."
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


class TextModel(Protocol):
    """What answers in a dialogue: our own chat model, or a remote one."""

    name: str

    def warm(self) -> None:
        """Do ahead of time whatever does not depend on the question."""
        ...

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the answer to the last message, as they are written."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """``max_sentences`` cuts the answer (0: no cut) once it has ``min_chars``; ``max_tokens`` bounds it."""

    system: str = SYSTEM
    max_tokens: int = 120
    max_sentences: int = 1
    min_chars: int = 24
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    capacity: int = 2048  # tokens of conversation kept


class ChatModel:
    """A ChatML-trained Llama or Qwen2. One conversation at a time; not thread-safe."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, *, name: str, options: ChatOptions | None = None,
                 generator: torch.Generator | None = None):  # fmt: skip
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.options = options or ChatOptions()
        self.generator = generator
        self._start, self._end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
        self._stops = {self._end, *(tokenizer.specials[n] for n in ("<|endoftext|>",) if n in tokenizer.specials)}
        self._capacity = min(self.options.capacity, model.config.decoder.context)
        self._state = model.init_state(1, self._capacity)
        self._known: list[int] = []  # the tokens whose keys and values the state holds

    def warm(self) -> None:
        """Read the system prompt."""
        self._advance(self._turn(Message("system", self.options.system)))

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """Stream the answer; what was written so far stays known if the caller stops early."""
        prompt = self._prompt(messages)
        logits = self._advance(prompt)
        written: list[int] = []
        told = ""
        while len(written) < self.options.max_tokens and len(self._known) < self._capacity:
            token = sample(logits, written, self.options.sampling, self.generator)
            if token in self._stops:
                break
            written.append(token)
            if period(written):
                break  # the model has begun to repeat itself
            text = self.tokenizer.decode(written)
            if not text.endswith("\ufffd"):  # else half a character: wait for the rest
                cut = self._cut(text)
                yield text[len(told) : cut]
                told = text[:cut]
                if cut < len(text):
                    break
            logits = self._advance([*prompt, *written])

    def _cut(self, text: str) -> int:
        """Where the allowed number of sentences ends, once more text than that is there."""
        if not self.options.max_sentences:
            return len(text)
        line = text.find("\n", len(text) - len(text.lstrip()))
        if line >= 0:
            return line
        found = sentences(text)
        at = 0
        for n, sentence in enumerate(found[:-1], start=1):
            at = text.index(sentence, at) + len(sentence)
            # a greeting or a question is not yet an answer: one more sentence
            if n >= self.options.max_sentences and at >= self.options.min_chars and not sentence.endswith("?"):
                return at
        return len(text)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """System prompt and turns; the oldest go when the conversation outgrows the room."""
        head = self._turn(Message("system", self.options.system))
        turns = [self._turn(message) for message in messages]
        opening = [self._start, *self.tokenizer.encode("assistant\n")]
        room = self._capacity - self.options.max_tokens - len(head) - len(opening)
        if room <= 0:
            raise ConfigError(
                f"{self.name} has room for {self._capacity} tokens, which {self.options.max_tokens} of answer and "
                f"{len(head) + len(opening)} of system prompt fill; lower max_tokens or shorten the system prompt"
            )
        turns = turns[_first_kept([message.role for message in messages], [len(turn) for turn in turns], room) :]
        if sum(map(len, turns)) > room:
            raise ConfigError(
                f"the question is longer than the {room} tokens this model has room for; ask a shorter one"
            )
        return [*head, *(token for turn in turns for token in turn), *opening]

    def _turn(self, message: Message) -> list[int]:
        encode = self.tokenizer.encode
        return [self._start, *encode(f"{message.role}\n{message.text}"), self._end, *encode("\n")]

    @torch.inference_mode()
    def _advance(self, tokens: list[int]) -> torch.Tensor:
        """Make the state hold exactly ``tokens``; returns the logits after the last one (V,)."""
        same = 0
        for ours, theirs in zip(self._known, tokens[:-1], strict=False):  # the last one is always read, for its logits
            if ours != theirs:
                break
            same += 1
        if same < len(self._known):
            position = torch.tensor([same])
            self._state = tuple(replace(cache, position=position) for cache in self._state)
            self._known = self._known[:same]  # at once: if the step fails, what is known is still what is held
        fresh = torch.tensor([tokens[same:]])
        logits, state = self.model.step(fresh, self._state, len(tokens))
        self._state, self._known = state, list(tokens)
        return logits[0]


def _first_kept(roles: Sequence[str], lengths: Sequence[int], room: int) -> int:
    """Which message is the oldest one kept, given the tokens of each and the ``room`` for all.

    Questions go together with their answers, and so many at once that about half of the room is free: the beginning
    then stays the same, and known, for some turns. It follows from the messages alone, however often it is asked.
    """
    first = total = 0
    for last, length in enumerate(lengths):
        total += length
        goal = room if total <= room else room // 2
        while total > goal and first < last:
            end = next((at for at in range(first + 1, last + 1) if roles[at] == "user"), None)
            if end is None and total <= room:
                break  # only a question and its answer are left
            end = last if end is None else end
            total -= sum(lengths[first:end])
            first = end
    return first
