"""The verb ``talk`` with stand-in parts and real sound files: who answers, how, and what the result says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from vivavoce import api, talking
from vivavoce.audio.io import read_blocks
from vivavoce.cli import main
from vivavoce.dialogue import Event, Reply
from vivavoce.dialogue.cascade import Cascade, CascadeOptions
from vivavoce.errors import AudioError, ConfigError, MissingWeightsError, UnknownNameError, VivaError
from vivavoce.lm.chat import Message

RATE = 16_000


class LoudIsSpeech:
    """A detector that takes any sound for speech."""

    class config:
        chunk = 512

    def init_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 1)

    def step(self, wave: torch.Tensor, state: torch.Tensor):
        return (wave.unflatten(1, (-1, 512)).abs().amax(-1) > 0.02).float(), state


class Hears:
    name = "ears"

    def __init__(self, *texts: str) -> None:
        self.texts, self.waves = list(texts or ("tell me about cats",)), []

    def understand(self, wave, language, cancelled) -> str:
        self.waves.append(wave)
        return self.texts[min(len(self.waves), len(self.texts)) - 1]


class Thinks:
    name = "brain"

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.warmed, self.error = [], 0, error

    def warm(self) -> None:
        self.warmed += 1

    def reply(self, messages: list[Message]) -> Iterator[str]:
        self.asked.append([message.text for message in messages])
        if self.error is not None:
            raise self.error
        yield from ("Cats are small animals, ", "and they sleep a lot.")


class Speaks:
    name, sample_rate = "mouth", 8000

    def stream(self, text: str) -> Iterator[torch.Tensor]:
        yield torch.full((1200,), 0.25)
        yield torch.full((400,), -0.25)


def cascade(hears: Hears | None = None, thinks: Thinks | None = None, **options) -> Cascade:
    chosen = CascadeOptions(**{"endpoint": 0.3, "first_clause": 10, "clause": 10, **options})
    return Cascade(hears or Hears(), LoudIsSpeech(), thinks or Thinks(), Speaks(), options=chosen,  # pyright: ignore
                   clock=time.perf_counter)  # fmt: skip


def sound(path: Path, *seconds: float, rate: int = RATE) -> Path:
    """A file of tones of these lengths (negative: silence)."""
    parts = [0.4 * (s > 0) * torch.sin(torch.arange(int(abs(s) * rate)) * 0.3) for s in seconds]
    soundfile.write(path, torch.cat(parts).numpy(), rate)
    return path


def test_a_file_is_answered(tmp_path: Path) -> None:
    ready = cascade()
    result = talking.talk(sound(tmp_path / "q.wav", -0.3, 0.8, -0.2), cascade=ready, real_time=False)
    assert result.heard == "tell me about cats"
    assert result.answer == "Cats are small animals, and they sleep a lot."
    assert result.sample_rate == 8000 and result.wave.numel() == 2 * 1600 and result.wave.abs().max() == 0.25
    assert result.models == {"hears": "ears", "thinks": "brain", "speaks": "mouth"}
    assert ready.thinks.warmed == 1
    heard = ready.hears.waves[-1]
    assert heard.dtype == torch.float32 and 0.6 * RATE < heard.numel() < 1.5 * RATE


def test_any_rate_and_a_wave_in_memory(tmp_path: Path) -> None:
    for rate in (8000, 44_100):
        ready = cascade()
        talking.talk(sound(tmp_path / f"{rate}.flac", 0.7, rate=rate), cascade=ready, real_time=False)
        assert 0.6 * RATE < ready.hears.waves[-1].numel() < 1.3 * RATE
    wave = 0.4 * torch.sin(torch.arange(8000) * 0.3)
    assert talking.talk(wave, 8000, cascade=cascade(), real_time=False).answer.startswith("Cats")
    with pytest.raises(ConfigError, match="sample_rate"):
        talking.talk(wave, cascade=cascade())


def test_real_time_means_real_time(tmp_path: Path) -> None:
    began = time.perf_counter()
    result = talking.talk(sound(tmp_path / "q.wav", 0.6), cascade=cascade())
    assert time.perf_counter() - began > 0.6 + 0.3
    assert result.first_sound_ms is not None and 290 < result.first_sound_ms < 2000  # the wait for the end is in it
    assert result.underruns == 0


def test_silence_and_bad_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no speech was found"):
        talking.talk(sound(tmp_path / "silent.wav", -1.0), cascade=cascade(), real_time=False)
    (tmp_path / "empty.wav").write_bytes(b"")
    for name in ("empty.wav", "none.wav"):
        with pytest.raises(AudioError):
            talking.talk(tmp_path / name, cascade=cascade(), real_time=False)


def test_a_whole_conversation_is_answered_turn_by_turn(tmp_path: Path) -> None:
    thinks = Thinks()
    ready = cascade(Hears("tell me about cats", "and about dogs"), thinks)
    blocks = read_blocks(sound(tmp_path / "two.wav", 0.6, -1.2, 0.6), RATE)
    replies: list[Reply] = []
    # real time, so that the second question does not fall into the first answer
    results = list(talking.converse(ready, blocks, on_reply=replies.append))
    assert [result.heard for result in results] == ["tell me about cats", "and about dogs"]
    assert thinks.asked[-1] == ["tell me about cats", results[0].answer, "and about dogs"]
    kinds = [event.kind for reply in replies for event in reply.events]
    assert kinds == ["speech_started", "speech_ended", "heard", "reply_started", "reply_ended"] * 2
    told = "".join(reply.text_piece for reply in replies)
    assert told == results[0].answer + results[1].answer
    waves = [reply.wave_piece for reply in replies if reply.wave_piece is not None]
    assert sum(wave.numel() for wave in waves) == sum(result.wave.numel() for result in results)


def test_a_fault_of_the_text_model_reaches_the_caller(tmp_path: Path) -> None:
    ready = cascade(thinks=Thinks(VivaError("the text model cannot be reached")))
    with pytest.raises(VivaError, match="cannot be reached"):
        talking.talk(sound(tmp_path / "q.wav", 0.6), cascade=ready, real_time=False)


def test_a_sum_needs_no_text_model(tmp_path: Path) -> None:
    thinks = Thinks()
    ready = cascade(Hears("What is 12 times 12?"), thinks)
    result = talking.talk(sound(tmp_path / "q.wav", 0.6), cascade=ready, real_time=False)
    assert "one hundred forty-four" in result.answer and not thinks.asked


def test_the_result_is_saved_and_told(tmp_path: Path) -> None:
    result = talking.talk(sound(tmp_path / "q.wav", 0.6), cascade=cascade(), real_time=False)
    assert result.to_dict()["wave"] is None
    path = result.save(tmp_path / "answer.wav")
    assert path.is_file() and soundfile.info(path).samplerate == 8000
    told = json.loads(json.dumps(result.to_dict()))
    assert set(told) == {
        "heard",
        "answer",
        "wave",
        "first_sound_ms",
        "parts_ms",
        "real_time_factor",
        "underruns",
        "models",
    }
    assert told["wave"] == str(path) and told["answer"] == result.answer
    assert {"recognise", "think", "speak", "answer"} <= set(told["parts_ms"])
    assert isinstance(told["first_sound_ms"], int) and told["real_time_factor"] >= 0


def test_a_loudspeaker_that_runs_dry_is_counted() -> None:
    listener = talking.Listener(1000)
    listener.take(Reply(events=(Event("heard", 0.0),)), now=9.0)
    assert listener.started is None and listener.played(9.0) == 0
    for now, underruns in ((10.0, 0), (10.4, 0), (12.0, 1), (12.1, 1)):  # half a second each
        listener.take(Reply(wave_piece=torch.zeros(500)), now)
        assert listener.underruns == underruns
    assert listener.produced == 2.0
    assert listener.played(12.2) == pytest.approx(1.2) and listener.played(99.0) == 2.0


def test_sound_that_is_taken_back_is_dropped_where_it_was_not_played() -> None:
    listener = talking.Listener(1000)
    listener.take(Reply(wave_piece=torch.arange(300.0)), now=0.0)
    listener.take(Reply(wave_piece=torch.arange(300.0, 500.0)), now=0.1)
    listener.take(Reply(events=(Event("taken_back", 0.0, samples=250),)), now=0.15)  # all of it still waits
    assert listener.produced == 0.25 and listener.played(0.2) == pytest.approx(0.2) and not listener.owed
    listener.take(Reply(wave_piece=-torch.arange(250.0, 400.0)), now=0.2)
    listener.take(Reply(events=(Event("taken_back", 0.0, samples=150),)), now=0.35)  # 100 of them have been played
    assert listener.produced == pytest.approx(0.35) and listener.owed == 100
    listener.take(Reply(wave_piece=torch.arange(250.0, 310.0)), now=0.35)
    listener.take(Reply(wave_piece=torch.arange(310.0, 400.0)), now=0.35)
    wanted = torch.cat([torch.arange(250.0), -torch.arange(250.0, 350.0), torch.arange(350.0, 400.0)])
    assert torch.equal(torch.cat(listener.waves), wanted) and not listener.owed and not listener.underruns


# ---------------------------------------------------------------------------------------------------- choosing parts


def _pulled(monkeypatch: pytest.MonkeyPatch, root: Path, sizes: dict[str, int]) -> None:
    """A store that holds models of so many bytes."""
    folders = {}
    for name, size in sizes.items():
        folders[name] = root / name
        folders[name].mkdir()
        with (folders[name] / "model.safetensors").open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr(talking.store, "installed", lambda: folders)
    monkeypatch.setattr(talking.store, "locate", folders.__getitem__)


def test_the_largest_text_model_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    big, small = "qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct"
    _pulled(monkeypatch, tmp_path, {big: 10_000, small: 1000})
    assert talking.choose_text_model(100_000) == big
    assert talking.choose_text_model(13_001) == big
    assert talking.choose_text_model(12_999) == small
    assert talking.choose_text_model(10) == small  # better a slow answer than none
    monkeypatch.setattr(talking, "available_memory", lambda: 5000)
    assert talking.choose_text_model() == small
    assert talking.available_memory() == 5000


def test_what_is_missing_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pulled(monkeypatch, tmp_path, {})
    with pytest.raises(MissingWeightsError, match="viva pull starter"):
        talking.choose_text_model()
    with pytest.raises(MissingWeightsError, match="viva pull starter"):
        api.default_recognizer()
    with pytest.raises(UnknownNameError, match="--llm-model"):
        talking.assemble(llm="http://localhost:1/v1")


def test_the_better_recogniser_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pulled(monkeypatch, tmp_path, {"whisper-tiny.en": 10, "whisper-base": 10})
    assert api.default_recognizer() == "whisper-base"


def test_memory_is_read() -> None:
    assert 1 << 26 < talking.available_memory() < 1 << 50


def test_the_question_ships_with_the_package() -> None:
    path = talking.question_file()
    about = soundfile.info(path)
    assert about.samplerate == RATE and about.channels == 1 and 1 < about.duration < 10
    assert path.stat().st_size < 200_000
    wave = torch.cat(list(read_blocks(path, RATE)))
    assert wave.numel() == about.frames and 0.05 < wave.abs().max() <= 1


def test_parts_by_name_answer(desk: Path) -> None:
    """Everything real but the weights, which are random: the parts fit together."""
    ready = talking.assemble(text_model="smollm2-135m-instruct", recogniser="whisper-tiny.en", phonemes="lexicon")
    assert ready.models == {"hears": "whisper-tiny.en", "thinks": "smollm2-135m-instruct", "speaks": "vits-joe"}
    ready.warm()
    ready.voice_activity = LoudIsSpeech()  # pyright: ignore[reportAttributeAccessIssue]  (the random one never hears an end)
    result = talking.talk(sound(desk / "q.wav", 0.7), cascade=ready, real_time=False)
    assert result.sample_rate == 8000 and isinstance(result.heard, str)


class HoldsOn(LoudIsSpeech):
    """A detector that takes what follows a sound for speech too, for so many chunks."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks

    def step(self, wave: torch.Tensor, state: torch.Tensor):
        odds, _ = super().step(wave, state)
        for i, value in enumerate(odds[0]):
            state = torch.full_like(state, self.chunks) if value else state - 1
            odds[0, i] = float(value > 0 or state > 0)
        return odds, state


@pytest.mark.parametrize("chunks", [0, 6, 30])
def test_a_file_that_ends_in_speech_is_answered(tmp_path: Path, chunks: int) -> None:
    ready = cascade()
    ready.voice_activity = HoldsOn(chunks)  # pyright: ignore[reportAttributeAccessIssue]
    result = talking.talk(sound(tmp_path / "q.wav", 0.7), cascade=ready, real_time=False)
    assert result.heard == "tell me about cats" and result.wave.numel() > 0


def test_a_detector_that_never_lets_go_does_not_hang(tmp_path: Path) -> None:
    ready = cascade(longest=2.0)
    ready.voice_activity = HoldsOn(1 << 20)  # pyright: ignore[reportAttributeAccessIssue]
    blocks = read_blocks(sound(tmp_path / "q.wav", 0.7), RATE)
    assert next(iter(list(talking.converse(ready, blocks, real_time=False)))).heard == "tell me about cats"


def test_nothing_understood_is_an_empty_answer(tmp_path: Path) -> None:
    result = talking.talk(sound(tmp_path / "q.wav", 0.6), cascade=cascade(Hears(" ")), real_time=False)
    assert result.heard == result.answer == "" and result.wave.numel() == 0
    assert result.to_dict()["real_time_factor"] is None


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nothing_understood_is_one_sentence_and_no_file(desk: Path, monkeypatch, capsys, options) -> None:
    monkeypatch.setattr(talking, "assemble", lambda **chosen: cascade(Hears("")))
    sound(desk / "q.wav", 0.6)
    with pytest.raises(SystemExit) as left:
        main(["talk", "q.wav", "--fast", *options])
    assert left.value.code == 2 and not (desk / "answer.wav").exists()
    assert capsys.readouterr().err == (
        "viva: speech was noticed, but no words were understood in q.wav; "
        "record it louder, or nearer to the microphone\n"
    )


def test_a_turn_without_words_takes_no_number(desk: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(talking, "assemble", lambda **chosen: cascade(Hears("warm", "", "tell me about cats")))
    sound(desk / "q.wav", 0.6, -1.0, 0.6)
    with pytest.raises(SystemExit) as left:
        main(["talk", "q.wav"])
    assert not left.value.code and (desk / "answer.wav").exists() and not (desk / "answer-2.wav").exists()


def test_the_command_and_the_function_choose_the_same(desk: Path, monkeypatch) -> None:
    asked: list[dict] = []

    def assemble(**chosen) -> Cascade:
        asked.append(chosen)
        return cascade()

    monkeypatch.setattr(talking, "assemble", assemble)
    path = str(sound(desk / "q.wav", 0.6))
    with pytest.raises(SystemExit):
        main(["talk", path, "--fast", "--asr", "a", "--text-model", "b", "--voice", "c", "--phonemes", "lexicon",
              "--llm", "http://d", "--llm-model", "e", "--llm-key", "f", "--system", "g", "--language", "German",
              "--endpoint", "400", "--seed", "3"])  # fmt: skip
    drawn = torch.rand(1)
    talking.talk(path, recogniser="a", text_model="b", voice="c", phonemes="lexicon", llm="http://d", llm_model="e",
                 llm_key="f", system="g", language="German", endpoint_ms=400.0, seed=3, real_time=False)  # fmt: skip
    assert asked[0] == asked[1] and asked[0]["language"] == "de" and asked[0]["endpoint_ms"] == 400
    assert torch.equal(drawn, torch.rand(1))
    with pytest.raises(ConfigError, match="endpoint"):
        talking.talk(path, endpoint_ms=20.0)
