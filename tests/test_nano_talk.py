"""The speech model that ships: its size, what it was not trained on, and that it answers a question."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch

from vivavoce import vita_audio_verbs
from vivavoce.catalogue import SHIPPED
from vivavoce.recipes.spoken_corpus import HELD_OUT_VOICE
from vivavoce.recipes.spoken_domain import SKILLS, answer_to
from vivavoce.talking import question_file

FOLDER = SHIPPED["nano-talk"]
pytestmark = pytest.mark.skipif(not (FOLDER / "model.safetensors").exists(), reason="nano-talk is not in this checkout")


def test_it_is_small_and_has_a_card():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 20_000_000
    card = (FOLDER / "README.md").read_text("utf-8")
    for word in ("CC BY-SA 4.0", "viva train", "seed", HELD_OUT_VOICE, "95 %"):
        assert word in card, word


def test_the_held_out_voice_is_absent_from_training():
    speakers = json.loads((FOLDER / "speakers.json").read_text("utf-8"))
    every = {speaker for names in speakers["train"].values() for speaker in names}
    assert len(every) > 200 and speakers["held_out"] == HELD_OUT_VOICE
    assert not any(HELD_OUT_VOICE in speaker or "fsdd_george" in speaker for speaker in every)


@pytest.mark.parametrize("mode", ["vanilla", "boost"])
def test_it_answers_the_question_that_ships(mode):
    """Asked by the voice that was held out of its training."""
    wave, rate = soundfile.read(question_file(), dtype="float32")
    assert rate % 16_000 == 0 or rate == 22_050
    from vivavoce.audio.resample import resample

    heard = resample(torch.from_numpy(wave), rate, 16_000)
    made = vita_audio_verbs.converse(
        vita_audio_verbs.open_speech_model("nano-talk"), [heard], mode=mode, real_time=False
    )
    wanted = answer_to("what is the capital of italy")
    assert wanted is not None and made.answer == wanted.answer
    assert 0.8 < len(made.wave) / made.sample_rate < 5 and 0.05 < float(made.wave.abs().max()) < 1
    if mode == "boost":
        assert made.backbone_passes_before_sound == 1


def test_its_words_are_those_of_the_domain():
    parts = vita_audio_verbs.open_speech_model("nano-talk")
    assert len(SKILLS) >= 10 and parts.model.config.modules == 10
    said = vita_audio_verbs.SpeechModelVoice(parts).synthesize("the sky is blue")
    assert 0.5 < len(said.wave) / said.sample_rate < 4
