"""The text side of a VITS voice: symbols, times, streaming, errors."""

import json

import numpy as np
import pytest
import torch

from vivavoce.errors import CheckpointError, UnknownNameError
from vivavoce.tts import Speech
from vivavoce.tts.vits import VITS, VITSConfig
from vivavoce.tts.vits_voice import Symbols, VITSVoice, _shared_out, open_piper

LETTERS = "abcdefghijklmnopqrstuvwxyz .,"
IDS = {"_": [0], "^": [1], "$": [2], **{letter: [number + 3] for number, letter in enumerate(LETTERS)}}


def spell(sentence):
    """A phonemizer that says letters and runs "of the" together, as espeak does."""
    return list(sentence.lower().replace("of the", "ofthe"))


@pytest.fixture(scope="module")
def voice():
    torch.manual_seed(1)
    return VITSVoice(VITS(VITSConfig.tiny()).eval(), Symbols(IDS), spell, normalize=str)


def test_symbols_frame_a_sentence_with_pads():
    tokens, places = Symbols(IDS).encode(["a", "?", "b"])
    assert tokens == [1, 0, 3, 0, 4, 0, 2]
    assert places == [("a", 2, 4), ("b", 4, 6)]


def test_times_are_ordered_and_cover_the_words(voice):
    speech = voice.synthesize("one of the old men. two, three.", generator=3)
    assert [span.text for span in speech.alignment] == ["one", "of the", "old", "men", "two", "three"]
    edges = [edge for span in speech.alignment for edge in (span.start_s, span.end_s)]
    assert edges == sorted(edges) and edges[-1] <= speech.duration_s
    assert "".join(span.text for span in speech.phonemes) == "oneoftheoldmen.two,three."


def test_stream_joined_equals_synthesize(voice):
    text = "the first sentence is long enough to leave in pieces. the second follows."
    whole = voice.synthesize(text, generator=5, speed=0.3)
    pieces = list(voice.stream(text, generator=5, speed=0.3))
    assert len(pieces) > 4
    joined = np.concatenate(pieces)
    assert joined.shape == whole.wave.shape and joined.dtype == np.float32
    assert np.abs(joined - whole.wave).max() <= 1e-5 * np.abs(whole.wave).max() + 1e-7


def test_stream_speaks_before_the_text_is_written(voice):
    written = []

    def pieces():
        for piece in ("a first clause. ", "And a second one, ", "that goes on for ever."):
            written.append(piece)
            yield piece

    stream = voice.stream(pieces(), generator=1)
    assert len(next(stream)) > 0
    assert len(written) < 3
    assert sum(map(len, stream)) > 0


def test_seeds_repeat_and_differ(voice):
    first, same, other = (voice.synthesize("a test", generator=seed).wave for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert first.shape != other.shape or not np.allclose(first, other)


def test_nothing_to_say_is_silence(voice):
    assert voice.synthesize("").wave.shape == (0,)
    assert list(voice.stream("?!")) == []


def test_wrong_voice_and_language_are_refused(voice):
    with pytest.raises(UnknownNameError, match="one voice"):
        voice.synthesize("a", voice="bob")
    with pytest.raises(UnknownNameError, match="not de"):
        voice.synthesize("a", language="de")


def test_words_are_shared_out_by_length():
    assert _shared_out(["in", "the", "heart", "of", "the", "city"], [2, 2, 4, 2, 2, 4], [4, 5, 4, 4]) == [
        "in the",
        "heart",
        "of the",
        "city",
    ]
    assert _shared_out(["a"], [3], [2, 1]) in (["a", ""], ["", "a"])


def test_speech_saves(tmp_path):
    import soundfile

    path = Speech(np.zeros(800, np.float32), 8000).save(tmp_path / "a.wav")
    assert soundfile.info(path).frames == 800


def test_piper_needs_its_json(tmp_path):
    (tmp_path / "v.onnx").write_bytes(b"\x08\x01")
    with pytest.raises(CheckpointError, match=r"v\.onnx\.json"):
        open_piper(tmp_path / "v.onnx", spell)
    (tmp_path / "v.onnx.json").write_text(json.dumps({"audio": {}}))
    with pytest.raises(CheckpointError, match="not a Piper configuration"):
        open_piper(tmp_path / "v.onnx", spell)
