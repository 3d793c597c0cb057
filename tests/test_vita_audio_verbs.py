"""The verbs with one speech model: talk, transcribe and speak in the library and on the command line."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import vivavoce
from tests.dialogue.vita_parts import parts
from vivavoce import talking, vita_audio_verbs
from vivavoce.cli import make_app
from vivavoce.dialogue.vita_audio_files import save_bundle
from vivavoce.errors import AudioError, CheckpointError, ConfigError, UnknownNameError
from vivavoce.nn.quantized import Int8Linear


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "small"
    save_bundle(place, parts())
    about = json.loads((place / "config.json").read_text("utf-8"))
    about["config"]["model"]["decoder"]["context"] = 150  # random weights write until there is no room
    (place / "config.json").write_text(json.dumps(about), "utf-8")
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
def test_silence_is_not_answered(sound: torch.Tensor, folder: Path, tmp_path: Path):
    with pytest.raises(AudioError, match="no speech was found"):
        vita_audio_verbs.converse(parts(), [sound], real_time=False)
    with pytest.raises(AudioError, match="no speech was found"):
        vita_audio_verbs.transcribe(parts(), [sound])
    soundfile.write(tmp_path / "silence.wav", sound.numpy(), 16_000)
    made = CliRunner().invoke(make_app(), ["talk", str(tmp_path / "silence.wav"), "--model", str(folder), "--fast"])
    assert "no speech was found" in str(made.exception) and made.stdout == ""


@pytest.mark.parametrize("size", [16_000, 700, 100_000])
def test_silence_before_a_question_is_left_out(size: int, monkeypatch: pytest.MonkeyPatch):
    """What a session hears is the same however long it was silent before, up to a block."""
    heard = list[torch.Tensor]()
    monkeypatch.setattr(vita_audio_verbs.VITAAudioSession, "step", lambda self, wave: heard.append(wave))
    question, quiet = 0.1 * torch.randn(9_000), 1e-4 * torch.randn(50_000)
    wave = torch.cat([quiet, question, quiet[:4_000]])
    session, feed = vita_audio_verbs.VITAAudioSession(parts()), vita_audio_verbs.Question()
    for block in wave.split(size):
        feed.feed(block, session)
    feed.end(session)
    left = torch.cat(heard)
    assert torch.equal(left, wave[len(wave) - len(left) :]) and len(left) + feed.skipped == feed.samples == len(wave)
    assert 3_200 <= len(left) - 13_000 < 3_200 + 512
    heard.clear()
    feed = vita_audio_verbs.Question()
    feed.feed(question, session)
    feed.end(session)
    assert torch.equal(torch.cat(heard), question)


def test_pieces_fed_in_real_time_take_their_time():
    began = time.perf_counter()
    pieces = list(vita_audio_verbs.in_real_time([torch.ones(3_000), torch.ones(1_800)]))
    assert sum(map(len, pieces)) == 4_800 and 0.3 <= time.perf_counter() - began < 0.6


@pytest.mark.parametrize(
    ("verify", "temperature", "release"),
    [("exact", 0.0, "verified"), ("sampled", 0.8, "early"), ("0.3", 0.0, "early")],
)
def test_verified_drafts(folder: Path, question: Path, tmp_path: Path, verify: str, temperature: float, release: str):
    given = ["talk", str(question), "--model", str(folder), "--fast", "--verify", verify, "--release", release]
    given += ["--seed", "3", "-o", str(tmp_path / "answer.wav")]
    given += ["--temperature", str(temperature)] if temperature else []
    made = CliRunner().invoke(make_app(), [*given, "--json"])
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["verify"], told["release"]) == (verify, release)
    assert 0 <= told["drafts_accepted"] <= 1 and (release == "early" or told["regretted_ms"] == 0)
    same = vivavoce.talk(question, model=str(folder), verify=verify, release=release, temperature=temperature, seed=3,
                         real_time=False)  # fmt: skip
    assert same.answer == told["answer"] and same.to_dict()["drafts_accepted"] == told["drafts_accepted"]
    made = CliRunner().invoke(make_app(), given)
    first, second, *_ = made.stdout.splitlines()
    assert first == f"model    {folder}, mode boost, verified {verify}, released {release}"
    assert second == f"answer   {told['answer']}" and "drafts   " in made.stdout and "\n\n" not in made.stdout


def test_without_verifying_nothing_is_said_of_it(folder: Path, question: Path):
    made = vivavoce.talk(question, model=str(folder), real_time=False).to_dict()
    assert made["verify"] is made["release"] is made["drafts_accepted"] is None and made["regretted_ms"] == 0


def test_a_seed_repeats_what_a_temperature_draws(folder: Path, question: Path):
    texts = [
        vivavoce.talk(question, model=str(folder), temperature=2.0, seed=seed, real_time=False).answer
        for seed in (1, 1, 2, None)
    ]
    assert texts[0] == texts[1] and len(set(texts)) == 3


@pytest.mark.parametrize("option", ["recogniser", "text_model", "voice", "phonemes", "system", "llm_key"])
def test_the_library_refuses_parts_of_a_speech_model(folder: Path, question: Path, option: str):
    with pytest.raises(ConfigError, match=f"leave {option} out"):
        vivavoce.talk(question, model=str(folder), **{option: "x"})
    with pytest.raises(ConfigError, match="English only"):
        vivavoce.talk(question, model=str(folder), language="German")
    with pytest.raises(ConfigError, match="one speech model"):
        vivavoce.talk(question, verify="exact")


@pytest.mark.parametrize("damage", ["cut", "gone", "field", "size", "tokenizer"])
def test_a_damaged_folder_of_ones_own_is_not_pulled_again(folder: Path, tmp_path: Path, damage: str):
    place = tmp_path / "mine"
    shutil.copytree(folder, place)
    weights, about = place / "model.safetensors", place / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5_000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "tokenizer":
        (place / "tokenizer.json").write_text("{}", "utf-8")
    else:
        settings = json.loads(about.read_text("utf-8"))
        settings["config"] |= {"colour": 1} if damage == "field" else {}
        settings["config"]["model"]["vocab_size"] += damage == "size"
        about.write_text(json.dumps(settings), "utf-8")
    with pytest.raises(CheckpointError, match="copy the folder anew, or train the model again") as told:
        vita_audio_verbs.open_speech_model(str(place))
    assert "viva" not in str(told.value).replace(str(place), "") and len(str(told.value)) < 300 + 2 * len(str(place))


def test_the_environment_does_not_stand_in_the_way(
    folder: Path, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VIVA_TEXT_MODEL", "smollm2-135m-instruct")
    given = ["talk", str(question), "--model", str(folder), "--fast", "-o", str(tmp_path / "answer.wav")]
    made = CliRunner().invoke(make_app(), given)
    assert made.exit_code == 0, made.stderr
    made = CliRunner().invoke(make_app(), [*given, "--text-model", "smollm2-135m-instruct"])
    assert made.exit_code != 0 and "leave --text-model out" in str(made.exception)
    monkeypatch.setattr(talking, "nothing_pulled", lambda: False)
    for option, value in (("--mode", "turbo"), ("--verify", "exact"), ("--release", "early"), ("--temperature", "1")):
        made = CliRunner().invoke(make_app(), ["talk", str(question), option, value])
        assert f"{option} is for one speech model; name it too" in str(made.exception)


def test_the_command_prints_a_transcript(folder: Path, question: Path):
    made = CliRunner().invoke(make_app(), ["transcribe", str(question), "--model", str(folder)])
    assert made.exit_code == 0
    assert made.stdout.strip() == vivavoce.transcribe(question, model=str(folder)).text


def test_an_answer_never_takes_the_place_of_its_question(folder: Path, question: Path):
    before = question.read_bytes()
    given = ["talk", str(question), "--model", str(folder), "-o", str(question), "--fast"]
    made = CliRunner().invoke(make_app(), given)
    assert "would take the place of the question" in str(made.exception) and made.stdout == ""
    assert question.read_bytes() == before


def test_what_it_cannot_do_is_refused(folder: Path, question: Path):
    for wanted in ({"words": True}, {"language": "de"}, {"task": "translate"}, {"beams": 5}, {"dtype": "int2"}):
        with pytest.raises(ConfigError):
            vivavoce.transcribe(question, model=str(folder), **wanted)
    with pytest.raises(ConfigError, match="groups of 32"):
        vivavoce.load(str(folder), dtype="int4")


def test_load_gives_the_parts(folder: Path):
    assert isinstance(vivavoce.load(str(folder), dtype="int8").model.head, Int8Linear)
    assert vivavoce.load(str(folder)).tokens.codes == 32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode", "rocket"], "no mode is called 'rocket'"),
        (["--model", "no-such-model"], "no-such-model is no speech model"),
        (["--system", "be brief"], "leave --system out"),
        (["--voice", "vits-joe", "--phonemes", "lexicon"], "leave --voice, --phonemes out"),
        (["--llm-key", "a"], "leave --llm-key out"),
        (["-l", "de"], "knows English only"),
        (["--verify", "exakt"], "no way to verify is called 'exakt' (did you mean 'exact'?)"),
        (["--verify", "1.5"], "above 0 and up to 1"),
        (["--verify", "nan"], "above 0 and up to 1"),
        (["--verify", "sampled"], "give a --temperature too"),
        (["--verify", "exact", "--temperature", "0.7"], "take --verify sampled"),
        (["--release", "early"], "must be verified"),
        (["--verify", "exact", "--release", "erly"], "no release is called 'erly' (did you mean 'early'?)"),
        (["--temperature", "-1"], "between 0.05 and 5"),
    ],
)
def test_faults_are_one_sentence(folder: Path, question: Path, arguments: list[str], sentence: str):
    given = ["talk", str(question), *(["--model", str(folder)] if "--model" not in arguments else []), *arguments]
    made = CliRunner().invoke(make_app(), given)
    assert made.exit_code != 0 and made.stdout == "", "nothing is said before what can be told at once"
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
