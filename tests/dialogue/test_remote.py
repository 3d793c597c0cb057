"""The remote text model against a small local server: pieces as they come, and every fault as one sentence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vivavoce.dialogue.remote import MAX_CHARS, RemoteChat
from vivavoce.errors import VivaError
from vivavoce.lm.chat import Message

ASKED = [Message("user", "What is the capital of Italy?")]
Answer = Callable[[BaseHTTPRequestHandler], None]


class Stub(ThreadingHTTPServer):
    """Answers every request with ``answer`` and remembers what it was sent."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.asked = answer, []
        self.threads = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.threads.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        assert isinstance(server, Stub)
        server.asked.append((self.path, dict(self.headers), json.loads(body)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the other side has heard enough
            server.answer(self)

    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Stub]]:
    running: list[Stub] = []

    def start(answer: Answer) -> Stub:
        running.append(Stub(answer))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def streamed(*lines: str, wait: float = 0.0) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for line in lines:
            handler.wfile.write(f"{line}\n\n".encode())
            handler.wfile.flush()
            time.sleep(wait)

    return answer


def piece(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


def refused(code: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def one_sentence(error: pytest.ExceptionInfo[VivaError]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_pieces_arrive_and_the_request_is_right(serve) -> None:
    first = "data: " + json.dumps({"choices": [{"delta": {"role": "assistant"}}]})
    server = serve(streamed(": a comment", first, piece("It is "), piece("Rome."), "data: [DONE]", piece(" Never.")))
    chat = RemoteChat(server.url, "small", key="secret", system="Be brief.")
    chat.warm()
    assert list(chat.reply(ASKED)) == ["It is ", "Rome."]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "small" and body["stream"] is True
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of Italy?"},
    ]
    assert "small" in chat.name and "secret" not in chat.name


def test_pieces_are_not_waited_for(serve) -> None:
    heard = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        streamed(piece("It is "))(handler)
        assert heard.wait(5)  # the rest is written only once the first piece has arrived
        handler.wfile.write(f"{piece('Rome.')}\n\n".encode())

    reply = RemoteChat(serve(answer).url, "small").reply(ASKED)
    assert next(reply) == "It is "
    heard.set()
    assert list(reply) == ["Rome."]


def test_the_answer_is_cut_after_so_many_sentences(serve) -> None:
    server = serve(
        streamed(piece("It is Rome. It lies"), piece(" on the Tiber. It is"), piece(" old."), "data: [DONE]")
    )
    assert "".join(RemoteChat(server.url, "m", max_sentences=2).reply(ASKED)) == "It is Rome. It lies on the Tiber."
    assert "".join(RemoteChat(server.url, "m", max_sentences=1).reply(ASKED)) == "It is Rome."
    assert "".join(RemoteChat(server.url, "m", max_sentences=0).reply(ASKED)).endswith("It is old.")


def test_no_key_no_header_and_a_full_address_is_kept(serve) -> None:
    server = serve(streamed(piece("Rome."), "data: [DONE]"))
    assert list(RemoteChat(server.url + "/chat/completions/", "m").reply(ASKED)) == ["Rome."]
    path, headers, _ = server.asked[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers


def test_an_answer_in_one_piece_is_understood(serve) -> None:
    """Some servers ignore ``stream`` and answer at once."""
    server = serve(streamed(json.dumps({"choices": [{"message": {"role": "assistant", "content": "It is Rome."}}]})))
    assert list(RemoteChat(server.url, "m").reply(ASKED)) == ["It is Rome."]


@pytest.mark.parametrize("code", [401, 404, 500])
def test_a_refusal_names_the_code(serve, code: int) -> None:
    server = serve(refused(code))
    with pytest.raises(VivaError, match=f"HTTP {code}") as error:
        list(RemoteChat(server.url, "m", key="secret").reply(ASKED))
    assert "secret" not in one_sentence(error)


@pytest.mark.parametrize("line", ["data: {broken", 'data: {"choices": 3}', 'data: {"choices": [{"delta": "text"}]}'])
def test_garbage_is_one_sentence(serve, line: str) -> None:
    server = serve(streamed(piece("It "), line))
    with pytest.raises(VivaError, match="not a chat completion") as error:
        list(RemoteChat(server.url, "m").reply(ASKED))
    one_sentence(error)


def test_nobody_there_is_one_sentence(serve) -> None:
    server = serve(refused(500))
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(VivaError, match="cannot be reached") as error:
        list(RemoteChat(url, "m").reply(ASKED))
    one_sentence(error)


def test_too_slow_is_one_sentence(serve) -> None:
    server = serve(streamed(piece("It "), piece("is "), wait=2.0))
    began = time.perf_counter()
    with pytest.raises(VivaError, match="cannot be reached") as error:
        list(RemoteChat(server.url, "m", timeout=0.2).reply(ASKED))
    assert time.perf_counter() - began < 1.5
    one_sentence(error)


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://host/v1", ""])
def test_an_address_without_http_is_refused_at_once(url: str) -> None:
    with pytest.raises(VivaError, match="http://localhost"):
        RemoteChat(url, "m")


def test_sentences_that_repeat_are_counted(serve) -> None:
    server = serve(streamed(piece("Yes. Yes."), piece(" Yes. No."), "data: [DONE]"))
    assert "".join(RemoteChat(server.url, "m", max_sentences=2).reply(ASKED)) == "Yes. Yes."
    server = serve(streamed(piece("Yes. Yes. "), piece("Yes. No."), "data: [DONE]"))
    assert "".join(RemoteChat(server.url, "m", max_sentences=2).reply(ASKED)).strip() == "Yes. Yes."
    server = serve(streamed(piece("Yes. Yes. Yes. No. Ah"), "data: [DONE]"))
    assert "".join(RemoteChat(server.url, "m", max_sentences=3).reply(ASKED)) == "Yes. Yes. Yes."


@pytest.mark.parametrize("lines", [("<!doctype html>", "<title>Welcome</title>"), ("",), ("data: [1]",)])
def test_a_page_instead_of_an_answer_is_one_sentence(serve, lines: tuple[str, ...]) -> None:
    with pytest.raises(VivaError, match="not a chat completion") as error:
        list(RemoteChat(serve(streamed(*lines)).url, "m").reply(ASKED))
    one_sentence(error)


def test_an_answer_without_words_is_none(serve) -> None:
    only_role = "data: " + json.dumps({"choices": [{"delta": {"role": "assistant"}}]})
    assert list(RemoteChat(serve(streamed(only_role, "data: [DONE]")).url, "m").reply(ASKED)) == []


@pytest.mark.parametrize("error", [{"message": "no model\ncalled m, key secret " + "x" * 999}, "no model called m"])
def test_a_fault_inside_the_stream_is_one_sentence(serve, error: object) -> None:
    server = serve(streamed(piece("It "), "data: " + json.dumps({"error": error})))
    with pytest.raises(VivaError, match=r"refused \(no model called m") as raised:
        list(RemoteChat(server.url, "m", key="secret").reply(ASKED))
    text = str(raised.value)
    assert "\n" not in text and "secret" not in text and len(text) < 400


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_nothing_is_sent_on_to_another_address(serve, code: int) -> None:
    other = serve(streamed(piece("Rome."), "data: [DONE]"))
    other.answer = pytest.fail

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Location", other.url + "/chat/completions")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(VivaError, match=f"sends on to another address .HTTP {code}.") as error:
        list(RemoteChat(serve(answer).url, "m", key="secret").reply(ASKED))
    assert "secret" not in one_sentence(error) and not other.asked


def test_an_endless_answer_ends(serve) -> None:
    hung_up = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            while True:
                streamed(piece("word " * 100))(handler)
        except OSError:
            hung_up.set()

    said = "".join(RemoteChat(serve(answer).url, "m", max_sentences=0).reply(ASKED))
    assert len(said) == MAX_CHARS and said.startswith("word word")
    assert hung_up.wait(5)


def test_a_stream_that_says_nothing_ends(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivavoce.dialogue.remote.MAX_EVENTS", 10)
    with pytest.raises(VivaError, match="not a chat completion"):
        list(RemoteChat(serve(streamed(*[": wait"] * 40)).url, "m").reply(ASKED))


def test_closing_the_answer_hangs_up(serve) -> None:
    hung_up = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        streamed(piece("It "))(handler)
        try:
            for _ in range(500):
                handler.wfile.write(b": still here\n\n")
                handler.wfile.flush()
                time.sleep(0.01)
        except OSError:
            hung_up.set()

    reply = RemoteChat(serve(answer).url, "m").reply(ASKED)
    assert next(reply) == "It "
    assert isinstance(reply, Generator)
    reply.close()
    assert hung_up.wait(3)


def test_nesting_without_end_is_one_sentence(serve) -> None:
    with pytest.raises(VivaError, match="not a chat completion"):
        list(RemoteChat(serve(streamed('data: {"a":' + "[" * 100_000)).url, "m").reply(ASKED))
