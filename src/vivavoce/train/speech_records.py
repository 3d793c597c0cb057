"""Records of speech and text that a user brings: JSON lines in the form that VITA-Audio publishes (its README, "Data
Format"), one object a line.

    {"messages": [{"role": "user", "content": "<|audio|>"},
                  {"role": "assistant", "content": "It is noon.\\n<|audio|>"}],
     "audios": ["question.wav", "answer.wav"]}

Each ``<|audio|>`` stands for the next file of ``audios``; relative names count from the folder of the JSONL file. The
four published tasks: spoken questions (as above), speech to text (``Convert the speech to text.\\n<|audio|>``), text to
speech (``Convert the text to speech.\\n...``, answered by ``<|audio|>`` alone) and plain text. ``conversations`` serves
for ``messages``, ``human`` for ``user``, ``gpt`` for ``assistant``.

A fault is one ConfigError that names file, line and field. Nothing of a record is executed, and no more than
:data:`MAX_LINE` bytes are read before a line is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vivavoce.dialogue.vita_audio_prompts import CLIP, SPEAK, Message, answer_prompt
from vivavoce.errors import ConfigError, nearest

MAX_LINE = 1 << 20  # bytes
MAX_RECORDS = 5_000_000
MAX_MESSAGES = 1_000  # in one record
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip
Task = Literal["answer", "transcribe", "speak", "text"]
TASKS: tuple[Task, ...] = ("answer", "transcribe", "speak", "text")


@dataclass(frozen=True)
class SpeechRecord:
    """One conversation; ``audios`` in the order of the places marked in ``messages``; ``line`` counts from 1."""

    messages: tuple[Message, ...]
    audios: tuple[Path, ...]
    line: int

    @property
    def task(self) -> Task:
        """What the last answer is: speech, speech of a given text, the text of speech, or text."""
        *before, said = self.messages
        asked = before[-1].content if before else ""
        if CLIP in said.content:
            return "speak" if asked.startswith(SPEAK) else "answer"
        return "transcribe" if CLIP in asked else "text"

    def as_talked(self) -> SpeechRecord:
        """A spoken question without a system message, put as ``viva talk`` puts it; any other record as it is."""
        if self.task == "answer" and len(self.messages) == 2 and self.messages[0].content.strip() == CLIP:
            return SpeechRecord((*answer_prompt(), self.messages[1]), self.audios, self.line)
        return self


def read_records(path: Path) -> list[SpeechRecord]:
    """All records of a JSONL file, in order; blank lines are passed over. ConfigError names file, line and field."""
    found = list(_records(path))
    if not found:
        raise ConfigError(f"{path} holds no records; write one JSON object a line, as docs/training.md shows")
    return found


def _records(path: Path) -> Iterator[SpeechRecord]:
    try:
        with path.open("rb") as file:
            number = count = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > MAX_LINE:
                    raise ConfigError(f"{where} is longer than {MAX_LINE} bytes; put one record a line, sound in files")
                if not line.strip():
                    continue
                count += 1
                if count > MAX_RECORDS:
                    raise ConfigError(f"{path} holds more than {MAX_RECORDS} records; cut it into several files")
                yield _record(_object(line, where), path.parent, where, number)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a JSONL file of records") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # broken UTF-8 is a ValueError too
        why = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else "not UTF-8, or nested too deep"
        raise ConfigError(f"{where} is not JSON ({why}); write one whole object a line") from error
    if not isinstance(value, dict):
        raise ConfigError(f'{where} is {_kind(value)}, not an object; write {{"messages": [...]}}')
    return value


def _record(value: dict[str, Any], folder: Path, where: str, line: int) -> SpeechRecord:
    key = "conversations" if value.get("conversations") else "messages"
    if key not in value:
        raise ConfigError(f"{where} has no field 'messages'{nearest('messages', value)}; give the list of turns")
    for name in ("images", "videos"):
        if value.get(name):
            raise ConfigError(f"{where}, {name}: pictures are not learned from; leave the field out")
    messages = _messages(value[key], f"{where}, {key}")
    places = sum(message.content.count(CLIP) for message in messages)
    names = value.get("audios")
    audios = _audios([] if names is None else names, folder, f"{where}, audios")
    if places != len(audios):
        files = f"{len(audios)} file{'s' * (len(audios) != 1)}"
        raise ConfigError(f"{where}, audios: {files} for {places} {CLIP} in the {key}; name one file for each")
    return SpeechRecord(messages, audios, line)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} must be a list of turns, not {_kind(value)}; give role and content of each")
    if len(value) > MAX_MESSAGES:
        raise ConfigError(f"{where} has {len(value)} turns, more than {MAX_MESSAGES}; cut the conversation")
    messages = tuple(_message(turn, f"{where}[{number}]") for number, turn in enumerate(value))
    for number, message in enumerate(messages):
        if message.role == "system" and number:
            raise ConfigError(f"{where}[{number}].role: a system message stands first; move it there")
        if message.role == "assistant" and message.content.count(CLIP) > 1:
            raise ConfigError(f"{where}[{number}].content has more than one {CLIP}; an answer is one clip")
    if messages[-1].role != "assistant":
        raise ConfigError(f"{where}[{len(messages) - 1}].role: the last turn must be the assistant's, to be learned")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object with role and content, not {_kind(value)}; mend that turn")
    for name in ("role", "content"):
        if name not in value:
            raise ConfigError(
                f"{where} has no field {name!r}{nearest(name, value)}; give role and content of each turn"
            )
        if not isinstance(value[name], str):
            raise ConfigError(f"{where}.{name} must be text, not {_kind(value[name])}; mend that turn")
    if value["role"] not in ROLES:
        near = nearest(value["role"], ROLES)
        raise ConfigError(f"{where}.role: there is no role {value['role'][:40]!r}{near}; use system, user or assistant")
    said = value["content"].removeprefix(SPEAK)
    if not said.strip():
        raise ConfigError(f"{where}.content is empty; write what is said, or {CLIP}")
    if not _is_text(said):
        raise ConfigError(f"{where}.content holds half a character (a lone surrogate); write the text anew")
    return Message(ROLES[value["role"]], value["content"])


def _audios(value: Any, folder: Path, where: str) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ConfigError(f'{where} must be a list of file names, not {_kind(value)}; write ["question.wav"]')
    found = []
    for number, name in enumerate(value):
        if not isinstance(name, str):
            raise ConfigError(f"{where}[{number}] must be the name of a file, not {_kind(name)}; mend that name")
        path = folder / name
        if not name or "\0" in name or not _is_text(name) or not _is_file(path):
            raise ConfigError(f"{where}[{number}]: there is no file {str(path)!r}; names count from the JSONL's folder")
        found.append(path)
    return tuple(found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _is_text(text: str) -> bool:
    """Whether every character is whole: JSON can name half of one, which no file or tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """What a JSON value is, in a word."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return "an empty list" if value == [] else names.get(type(value), "a number")
