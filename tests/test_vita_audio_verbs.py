"""The verbs with one speech model: talk, transcribe and speak in the library and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import vivavoce
from tests.dialogue.vita_parts import parts
from vivavoce import vita_audio_verbs
from vivavoce.cli import make_app
from vivavoce.dialogue.vita_audio_files import save_bundle
from vivavoce.errors import AudioError, ConfigError, UnknownNameError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "small"
    save_bundle(place, parts())
    return place


@pytest.fixture
def question(tmp_path: Path) -> Path:
    wave = 0.1 * np.random.default_rng(0).standard_normal(12_000)
    soundfile.write(tmp_path / "question.wav", wave, 16_000)
    return tmp_path / "question.wav"


def test_talk_from_the_command_line(folder: Path, question: Path, tmp_path: Path):
    out = tmp_path / "answer.wav"
    for mode in ("vanilla", "boost"):
        given = ["talk", str(question), "--model", str(folder), "--mode", mode, "--fast", "--json", "-o", str(out)]
        made = CliRunner().invoke(make_app(), given)
        assert made.exit_code == 0, made.output
        told = json.loads(made.stdout)
        assert told["mode"] == mode and told["models"] == {"speech model": str(folder)}
        assert {"heard", "answer", "first_sound_ms", "parts_ms", "underruns", "real_time_factor"} <= told.keys()
        if told["wave"]:
            assert soundfile.info(out).frames > 0
    assert told["backbone_passes_before_sound"] == 1
    assert set(told["parts_ms"]) == {"tokenise", "prefill", "drafts", "flow", "vocoder"}


def test_the_library_gives_what_the_command_gives(folder: Path):
    made = vita_audio_verbs.converse(parts(), [0.1 * torch.randn(9_000)], mode="turbo", real_time=False)
    assert made.mode == "turbo" and made.to_dict()["mode"] == "turbo"


def test_talk_in_the_library(folder: Path, question: Path):
    made = vivavoce.talk(question, model=str(folder), mode="balance", real_time=False)
    assert made.to_dict()["mode"] == "balance" and made.models == {"speech model": str(folder)}


def test_transcribe_and_speak(folder: Path, question: Path, tmp_path: Path):
    made = vivavoce.transcribe(question, model=str(folder))
    assert made.duration == pytest.approx(0.75) and made.language == "en" and made.models == (str(folder),)
    said = vivavoce.speak("the sky is blue", voice=str(folder))
    assert said.sample_rate == parts().sample_rate and len(said.wave)
    with pytest.raises(ConfigError, match="one English voice"):
        vivavoce.speak("the sky", voice=str(folder), speed=1.5)
    with pytest.raises(ConfigError, match="nothing that can be spoken"):
        vivavoce.speak("... !?", voice=str(folder))
    assert len(vivavoce.speak("7", voice=str(folder)).wave), "numerals are spelled out"


@pytest.mark.parametrize("sound", [torch.zeros(16_000), 0.1 * torch.randn(400), 1e-4 * torch.randn(30_000)])
def test_silence_is_not_answered(sound: torch.Tensor):
    with pytest.raises(AudioError, match="no speech was found"):
        vita_audio_verbs.converse(parts(), [sound], real_time=False)
    with pytest.raises(AudioError, match="no speech was found"):
        vita_audio_verbs.transcribe(parts(), [sound])


def test_the_environment_does_not_stand_in_the_way(
    folder: Path, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VIVA_TEXT_MODEL", "smollm2-135m-instruct")
    given = ["talk", str(question), "--model", str(folder), "--fast", "-o", str(tmp_path / "answer.wav")]
    made = CliRunner().invoke(make_app(), given)
    assert made.exit_code == 0, made.stderr
    made = CliRunner().invoke(make_app(), [*given, "--text-model", "smollm2-135m-instruct"])
    assert made.exit_code != 0 and "leave --asr" in str(made.exception)
    made = CliRunner().invoke(make_app(), ["talk", str(question), "--mode", "turbo"])
    assert "name it too" in str(made.exception)


def test_the_command_prints_a_transcript(folder: Path, question: Path):
    made = CliRunner().invoke(make_app(), ["transcribe", str(question), "--model", str(folder)])
    assert made.exit_code == 0
    assert made.stdout.strip() == vivavoce.transcribe(question, model=str(folder)).text


def test_what_it_cannot_do_is_refused(folder: Path, question: Path):
    for wanted in ({"words": True}, {"language": "de"}, {"task": "translate"}, {"beams": 5}, {"dtype": "int8"}):
        with pytest.raises(ConfigError):
            vivavoce.transcribe(question, model=str(folder), **wanted)
    with pytest.raises(ConfigError):
        vivavoce.load(str(folder), dtype="int8")


def test_load_gives_the_parts(folder: Path):
    assert vivavoce.load(str(folder)).tokens.codes == 32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode", "rocket"], "no mode is called 'rocket'"),
        (["--model", "no-such-model"], "no-such-model is no speech model"),
        (["--system", "be brief"], "leave --asr"),
    ],
)
def test_faults_are_one_sentence(folder: Path, question: Path, arguments: list[str], sentence: str):
    given = ["talk", str(question), *(["--model", str(folder)] if "--model" not in arguments else []), *arguments]
    made = CliRunner().invoke(make_app(), given)
    assert made.exit_code != 0
    assert sentence in str(made.exception or made.output)


def test_a_microphones_silence_is_left_out_and_ends_a_question():
    loud, quiet = 0.2 * torch.randn(16_000), 1e-4 * torch.randn(16_000)
    found = list(vita_audio_verbs.questions([quiet, loud, quiet, quiet], endpoint=0.4))
    assert found[-1] is None and sum(piece is None for piece in found) == 1
    heard = sum(len(piece) for piece in found if piece is not None)
    assert 16_000 < heard < 16_000 + 0.8 * 16_000


def test_names():
    assert vita_audio_verbs.is_speech_model("nano-talk") and not vita_audio_verbs.is_speech_model("whisper-base")
    with pytest.raises(UnknownNameError):
        vita_audio_verbs.open_speech_model("whisper-base")
