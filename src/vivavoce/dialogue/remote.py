"""A text model behind an OpenAI-compatible ``/chat/completions`` endpoint, streamed as server-sent events."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from http.client import HTTPException
from typing import Any

from vivavoce.errors import VivaError
from vivavoce.lm.chat import SYSTEM, Message
from vivavoce.text.chunking import sentences

MAX_LINE = 1 << 20
MAX_CHARS = 4000  # of an answer: minutes of speech
MAX_EVENTS = 20_000  # of a stream: one that says nothing ends too
NO_ANSWER = "the text model answered with something that is not a chat completion; check the address"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: neither the key nor what was said goes to an address that was not given."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


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
        self._opener = urllib.request.build_opener(_NoRedirect)

    def warm(self) -> None:
        """Nothing to do: the other side keeps its own cache."""

    def reply(self, messages: Sequence[Message]) -> Iterator[str]:
        """Pieces of the answer, cut after the allowed number of sentences; closing it hangs up."""
        told = ""
        with closing(self._pieces(messages)) as pieces:
            for piece in pieces:
                text = (told + piece)[:MAX_CHARS]
                found = sentences(text)
                end = len(text)
                if self._max_sentences and len(found) > self._max_sentences:
                    end = 0
                    for sentence in found[: self._max_sentences]:  # in turn, since sentences may be alike
                        end = text.index(sentence, end) + len(sentence)
                if end > len(told):
                    yield text[len(told) : end]
                if end < len(text) or len(text) == MAX_CHARS:
                    return
                told = text

    def _pieces(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        turns = [{"role": "system", "content": self._system}]
        turns += [{"role": message.role, "content": message.text} for message in messages]
        body = json.dumps({"model": self._model, "messages": turns, "stream": True, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                for event in _events(response):
                    yield from self._text_of(event)
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                raise VivaError(
                    f"the text model at {self._url} sends on to another address (HTTP {error.code}); give that one"
                ) from error
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
    for _ in range(MAX_EVENTS):
        line = response.readline(MAX_LINE)
        if not line:
            break
        data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if not data.startswith("{"):
            continue
        try:
            yield json.loads(data)
        except (ValueError, RecursionError) as error:
            raise VivaError(NO_ANSWER) from error
        found = True
    if not found:
        raise VivaError(NO_ANSWER)
