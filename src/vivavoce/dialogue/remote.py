"""A text model behind an OpenAI-compatible ``/chat/completions`` endpoint, streamed as server-sent events."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException

from vivavoce.errors import VivaError
from vivavoce.lm.chat import SYSTEM, Message
from vivavoce.text.chunking import sentences

MAX_LINE = 1 << 20


class RemoteChat:
    """Speaks to ``url`` (such as ``http://localhost:11434/v1``); ``key`` goes into the Authorization header if given.
    """

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
            found = sentences(told + piece)
            if self._max_sentences and len(found) > self._max_sentences:
                last = found[self._max_sentences - 1]
                cut = (told + piece).rindex(last) + len(last) if last in told + piece else len(told + piece)
                yield (told + piece)[len(told) : cut]
                return
            told += piece
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
                yield from _events(response)
        except urllib.error.HTTPError as error:
            raise VivaError(
                f"the text model at {self._url} refused with HTTP {error.code}; check --llm-model and the key"
            ) from error
        except (OSError, HTTPException) as error:
            raise VivaError(f"the text model at {self._url} cannot be reached ({error}); is it running?") from error


def _events(response) -> Iterator[str]:
    """The text pieces of a stream of ``data: {...}`` lines."""
    while True:
        line = response.readline(MAX_LINE)
        if not line:
            return
        data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if not data.startswith("{"):
            continue
        try:
            choices = json.loads(data).get("choices") or [{}]
            piece = (choices[0].get("delta") or choices[0].get("message") or {}).get("content")
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise VivaError(
                "the text model answered with something that is not a chat completion; check the address"
            ) from error
        if piece:
            yield piece
