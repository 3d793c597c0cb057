"""What VITA-Audio is asked and how it answers: chat template, tasks, special tokens, interleaving (arXiv 2505.03739,
section 3.2).

A prompt is ChatML; a clip of sound stands in it as <|begin_of_audio|>, its codes as <|audio_N|>, <|end_of_audio|>.
An answer with sound is text and speech in turns: some text tokens, then a block of speech tokens between the two marks,
and so on; ``interleave`` (1, 10, 4, 10) reads 1 text token, a block of 10 (8 codes and the marks), 4 text tokens, a
block of 10, and the last pair for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.text.tokenizer import Tokenizer

CLIP = "<|audio|>"  # where a clip stands in a message
INTERLEAVES = {"boost": (1, 10, 4, 10), "balance": (1, 4, 3, 8, 4, 10)}

LUKE = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
TRANSCRIBE = f"Convert the speech to text.\n{CLIP}"
SPEAK = "Convert the text to speech.\n"


@dataclass(frozen=True)
class Message:
    """One turn; every :data:`CLIP` in its content stands for a clip."""

    role: Literal["system", "user", "assistant"]
    content: str


def answer_prompt(system: str = LUKE) -> list[Message]:
    """Spoken question answering as in the authors' demonstration: the question is a clip behind an empty line."""
    return [Message("system", system), Message("user", f"\n{CLIP}")]


def transcribe_prompt() -> list[Message]:
    return [Message("user", TRANSCRIBE)]


def speak_prompt(text: str) -> list[Message]:
    return [Message("user", SPEAK + text)]


class VITATokens:
    """The tokenizer and the special tokens, looked up by name: their numbers differ between checkpoints."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        names = ("<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio_0|>")
        self.start, self.end, self.begin_audio, self.end_audio, self.first_code = (tokenizer.id(name) for name in names)
        codes = 0
        while f"<|audio_{codes}|>" in tokenizer.specials:
            codes += 1
        self.codes = codes
        last = tokenizer.id(f"<|audio_{codes - 1}|>")
        if last != self.first_code + codes - 1:
            raise CheckpointError("the speech tokens of this tokenizer are not numbered in order; fetch it again")
        self.text_ids = range(min(tokenizer.specials.values()))  # ordinary text comes before every added token

    def clip(self, codes: Sequence[int]) -> list[int]:
        """A clip of sound as tokens, marks included."""
        if any(not 0 <= code < self.codes for code in codes):
            raise ConfigError(f"a clip holds a code outside 0 to {self.codes - 1}; use the tokenizer of this model")
        return [self.begin_audio, *(self.first_code + code for code in codes), self.end_audio]

    def code(self, token: int) -> int | None:
        """The code of a speech token, None for any other token."""
        code = token - self.first_code
        return code if 0 <= code < self.codes else None

    def content(self, text: str, clips: list[Sequence[int]]) -> list[int]:
        """Text with the first of ``clips`` in each place marked so; those used are taken from the list."""
        ids: list[int] = []
        for number, piece in enumerate(text.split(CLIP)):
            if number:
                if not clips:
                    raise ConfigError("a message has more places for sound than clips; give a clip for each")
                ids += self.clip(clips.pop(0))
            ids += self.tokenizer.encode(piece)
        return ids

    def open(self, role: str) -> list[int]:
        """``<|im_start|>role`` and a line break."""
        return [self.start, *self.tokenizer.encode(f"{role}\n")]

    def close(self) -> list[int]:
        """``<|im_end|>`` and a line break."""
        return [self.end, *self.tokenizer.encode("\n")]

    def _turn(self, message: Message, clips: list[Sequence[int]]) -> list[int]:
        return [self.start, *self.content(f"{message.role}\n{message.content}", clips), *self.close()]

    def prompt(self, messages: Sequence[Message], clips: Sequence[Sequence[int]] = ()) -> list[int]:
        """Token ids up to where the assistant begins."""
        left, ids = list(clips), list[int]()
        for message in messages:
            ids += self._turn(message, left)
        if left:
            raise ConfigError(f"{len(left)} clips have no place in the messages; mark each place with {CLIP}")
        return ids + self.open("assistant")

    def record(
        self, messages: Sequence[Message], clips: Sequence[Sequence[int]], interleave: Sequence[int], *,
        even: bool = False,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """A training record: token ids, and labels that are -100 outside what the assistant says.

        A spoken answer to a request for speech is preceded by its text; an answer's clip is spread over it by
        :meth:`interleaved`.
        """
        left, ids, labels = list(clips), list[int](), list[int]()
        for number, message in enumerate(messages):
            if message.role != "assistant":
                part = self._turn(message, left)
                ids, labels = ids + part, labels + [-100] * len(part)
                continue
            head = self.open("assistant")
            said = message.content.replace(CLIP, "")
            asked = messages[number - 1].content if number else ""
            if asked.startswith(SPEAK):
                said = asked.removeprefix(SPEAK) + said
            answer = text = self.tokenizer.encode(said)
            if CLIP in message.content:
                answer = self.interleaved(text, left.pop(0), interleave, even=even)
            part = [*answer, *self.close()]
            ids, labels = ids + head + part, labels + [-100] * len(head) + part
        return ids, labels

    def interleaved(
        self, text: Sequence[int], codes: Sequence[int], interleave: Sequence[int], *, even: bool = False
    ) -> list[int]:
        """Text tokens and codes in turns. The shorter of the two decides how many turns there are; what is left of the
        other joins the last.

        ``even``: no turn of text grows, as answers that are written by a grammar need it. Where there is more text than
        speech, the codes behind the first block are spread over the turns.
        """
        texts = _cut(text, [interleave[i] for i in range(0, len(interleave), 2)])
        blocks = _cut(codes, [interleave[i] - 2 for i in range(1, len(interleave), 2)])
        if even and len(blocks) < len(texts) <= len(codes):
            first, rest = min(interleave[1] - 2, len(codes) - len(texts) + 1), len(texts) - 1
            ends = [first + (len(codes) - first) * turn // rest for turn in range(rest + 1)]
            blocks = [list(codes[:first]), *(list(codes[a:b]) for a, b in itertools.pairwise(ends))]
        turns = min(len(texts), len(blocks))
        if turns == 0:
            return list(text) or self.clip(codes)
        texts = [*texts[: turns - 1], [token for piece in texts[turns - 1 :] for token in piece]]
        blocks = [*blocks[: turns - 1], [code for piece in blocks[turns - 1 :] for code in piece]]
        ids: list[int] = []
        for piece, block in zip(texts, blocks, strict=True):
            ids += [*piece, *self.clip(block)]
        return ids


def _cut(items: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Pieces of the given sizes, the last size for ever."""
    pieces, at = list[list[int]](), 0
    while at < len(items):
        size = sizes[min(len(pieces), len(sizes) - 1)]
        pieces.append(list(items[at : at + size]))
        at += size
    return pieces
