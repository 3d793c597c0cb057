"""The cascade with stand-in parts: when it speaks, when it keeps silent, and what it remembers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from vivavoce.dialogue.cascade import Cascade, CascadeOptions, CascadeSession
from vivavoce.lm.chat import Message

RATE = 16_000


class LoudIsSpeech:
    """A detector that takes any sound for speech."""

    class config:
        chunk = 512

    def init_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 1)

    def step(self, wave: torch.Tensor, state: torch.Tensor):
        return (wave.unflatten(1, (-1, 512)).abs().amax(-1) > 0.1).float(), state


class Hears:
    name = "hears"

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def understand(self, wave, language, cancelled) -> str:
        self.lengths.append(wave.numel())
        return "tell me about cats"


class Thinks:
    name = "thinks"

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def warm(self) -> None: ...

    def reply(self, messages) -> Iterator[str]:
        self.asked.append(list(messages))
        yield from ("Cats are small animals, ", "and they sleep ", "for most of the day.")


class Speaks:
    name = "speaks"
    sample_rate = 1000

    def __init__(self) -> None:
        self.said: list[str] = []

    def stream(self, text: str) -> Iterator[torch.Tensor]:
        self.said.append(text)
        yield torch.ones(500)
        yield torch.ones(500)


def cascade() -> Cascade:
    options = CascadeOptions(first_clause=10, clause=10)
    return Cascade(Hears(), LoudIsSpeech(), Thinks(), Speaks(), options=options, clock=time.perf_counter)  # pyright: ignore


def feed(session: CascadeSession, seconds: float, loud: bool, block: int = 512) -> list:
    replies = []
    for _ in range(int(seconds * RATE / block)):
        replies.append(session.step(torch.full((block,), 0.5 if loud else 0.0)))
    return replies


def finish(session: CascadeSession, seconds: float = 0.0) -> list:
    """Silence for at least ``seconds`` and until the answer is complete."""
    replies = feed(session, seconds, loud=False)
    for _ in range(400):
        if "reply_ended" in kinds(replies):
            return replies
        replies += feed(session, 0.032, loud=False)
        time.sleep(0.002)
    raise AssertionError("no answer")


def kinds(replies: list) -> list[str]:
    return [event.kind for reply in replies for event in reply.events]


def test_a_question_is_answered_after_the_endpoint_and_not_before() -> None:
    whole = cascade()
    session = whole.session()
    feed(session, 0.3, loud=False)
    feed(session, 1.0, loud=True)
    early = feed(session, 0.45, loud=False)
    time.sleep(0.05)
    assert not session.answering and all(reply.wave_piece is None for reply in early)
    replies = finish(session, 0.1)
    assert kinds(replies)[0] == "speech_ended" and "heard" in kinds(replies) and kinds(replies)[-1] == "reply_ended"
    assert "".join(reply.text_piece for reply in replies).startswith("Cats are small animals,")
    assert session.history[-1].text.endswith("most of the day.")
    assert whole.speaks.said[0] == "Cats are small animals,"  # pyright: ignore: the first clause does not wait for the rest
    assert session.turns[0].timing.first_sound is not None


def test_a_short_pause_throws_the_speculation_away() -> None:
    whole = cascade()
    session = whole.session()
    feed(session, 0.6, loud=True)
    feed(session, 0.3, loud=False)  # long enough to begin, too short to end
    feed(session, 0.6, loud=True)
    finish(session, 0.6)
    assert len(session.turns) == 1 and len(session.history) == 2
    assert max(whole.hears.lengths) > 1.4 * RATE  # pyright: ignore: the whole utterance, with its pause


def test_clicks_are_not_questions() -> None:
    session = cascade().session()
    feed(session, 0.1, loud=True)
    replies = feed(session, 2.0, loud=False)
    assert not session.turns and "speech_ended" not in kinds(replies)


def test_any_block_size_gives_the_same_turns() -> None:
    for block in (160, 512, 4000):
        session = cascade().session()
        feed(session, 1.0, loud=True, block=block)
        finish(session, 1.0)
        assert len(session.turns) == 1 and abs(session.turns[0].ended_at - 1.0) < 0.3


def test_barge_in_cuts_the_answer_and_remembers_what_was_played() -> None:
    session = cascade().session()
    session.played(0.0)
    feed(session, 1.0, loud=True)
    finish(session, 0.6)  # made, but only its first clause of one second has been played
    session.played(1.0)
    assert session.audible and len(session.history[-1].text) > 40
    replies = feed(session, 0.4, loud=True)
    assert "interrupted" in kinds(replies) and session.turns[0].cancelled.is_set()
    assert [message.text for message in session.history] == ["tell me about cats", "Cats are small animals,"]
    finish(session, 0.6)
    assert len(session.turns) == 2


def test_a_cough_does_not_interrupt() -> None:
    session = cascade().session()
    session.played(0.0)
    feed(session, 1.0, loud=True)
    finish(session, 0.6)
    assert "interrupted" not in kinds(feed(session, 0.15, loud=True) + feed(session, 1.0, loud=False))
    session.played(100.0)  # played to the end: the next speech is a question, not an interruption
    assert not session.audible


def test_turns_are_remembered() -> None:
    whole = cascade()
    session = whole.session()
    for _ in range(2):
        feed(session, 0.6, loud=True)
        finish(session, 0.6)
    assert [message.role for message in whole.thinks.asked[-1]] == ["user", "assistant", "user"]  # pyright: ignore


def test_an_error_of_a_part_reaches_the_caller() -> None:
    whole = cascade()

    def broken(messages) -> Iterator[str]:
        raise RuntimeError("the model broke")
        yield ""

    whole.thinks.reply = broken  # pyright: ignore
    session = whole.session()
    feed(session, 0.6, loud=True)
    try:
        finish(session, 0.6)
    except RuntimeError as error:
        assert "broke" in str(error)
    else:
        raise AssertionError("the error was swallowed")


def test_a_question_without_end_is_answered_and_its_rest_let_pass() -> None:
    whole = cascade()
    session = whole.session()
    replies = feed(session, 29.0, loud=True)
    time.sleep(0.1)
    replies += feed(session, 3.0, loud=True) + feed(session, 1.0, loud=False)
    assert "interrupted" not in kinds(replies) and len(session.turns) == 1
    assert session.history[-1].text.endswith("most of the day.")
    feed(session, 0.6, loud=True)
    finish(session, 0.6)
    assert len(session.turns) == 2


def test_an_interruption_keeps_the_whole_answer_where_nobody_says_how_much_was_played() -> None:
    session = cascade().session()
    feed(session, 1.0, loud=True)
    finish(session, 0.6)
    session.interrupt()
    assert session.history[-1].text.endswith("most of the day.")


def test_asking_during_an_answer_interrupts_it() -> None:
    session = cascade().session()
    session.ask(torch.ones(16_000))
    first = session.turns[0]
    session.ask(torch.ones(16_000))
    assert first.cancelled.is_set() and len(session.turns) == 2
    finish(session)
