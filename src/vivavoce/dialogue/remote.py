"""A text model behind an OpenAI-compatible ``/chat/completions`` endpoint, streamed as server-sent events."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any

from vivavoce.errors import VivaError
from vivavoce.lm.chat import SYSTEM, Message
from vivavoce.text.chunking import sentences

MAX_LINE = 1 << 20
NO_ANSWER = "the text model answered with something that is not a chat completion; check the address"


class RemoteChat:
    """Speaks to ``url`` (such as ``http://localhost:11434/v1``); ``key``, if given, goes into the header."""

    def __init__(self, url: str, model: str, *, key: str | None = None, system: str = SYSTEM, max_sentences: int = 2,
                 timeout: float = 30.0):  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise VivaError(
                f"{url!r} is not the address of a text model; give something like http://localhost:11434/v1"
            )
        self.name = f"{model} at {url}"
        self._url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/chat/completions") else "/chat/completions")
        self._model, self._key, self._system = model, key, system
        self._max_sentences, self._timeout = max_sentences, timeout

    def warm(self) -> None:
        """Nothing to do: the other side keeps its own cache."""

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the answer, cut after the allowed number of sentences."""
        told = ""
        for piece in self._pieces(messages):
            text = told + piece
            found = sentences(text)
            if self._max_sentences and len(found) > self._max_sentences:
                at = 0
                for sentence in found[: self._max_sentences]:  # in turn, since sentences may be alike
                    at = text.index(sentence, at) + len(sentence)
                if at > len(told):
                    yield text[len(told) : at]
                return
            told = text
            yield piece

    def _pieces(self, messages: Sequence[Message]) -> Iterator[str]:
        turns = [{"role": "system", "content": self._system}]
        turns += [{"role": message.role, "content": message.text} for message in messages]
        body = json.dumps({"model": self._model, "messages": turns, "stream": True, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                for event in _events(response):
                    yield from self._text_of(event)
        except urllib.error.HTTPError as error:
            raise VivaError(
                f"the text model at {self._url} refused with HTTP {error.code}; check --llm-model and the key"
            ) from error
        except (OSError, HTTPException) as error:
            raise VivaError(f"the text model at {self._url} cannot be reached ({error}); is it running?") from error

    def _text_of(self, event: dict[str, Any]) -> Iterator[str]:
        """The piece of text in one event, if it has one; VivaError where the event is a fault."""
        if event.get("error"):
            error = event["error"]
            said = str(error.get("message") or error if isinstance(error, dict) else error)
            said = " ".join(said.replace(self._key or "\0", "...").split())[:200]
            raise VivaError(f"the text model at {self._url} refused ({said}); check --llm-model and the key")
        try:
            choices = event.get("choices") or [{}]
            piece = (choices[0].get("delta") or choices[0].get("message") or {}).get("content")
        except (AttributeError, TypeError, KeyError) as error:
            raise VivaError(NO_ANSWER) from error
        if piece:
            yield str(piece)


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """The objects of a stream of ``data: {...}`` lines; VivaError where there is none."""
    found = False
    while line := response.readline(MAX_LINE):
        data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if not data.startswith("{"):
            continue
        try:
            yield json.loads(data)
        except ValueError as error:
            raise VivaError(NO_ANSWER) from error
        found = True
    if not found:
        raise VivaError(NO_ANSWER)
