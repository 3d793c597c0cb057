"""The spoken corpus: files add up, finished sets are kept, distortion is bounded, the held-out voice trains nothing."""

from __future__ import annotations

import json
import random
import wave as wav
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vivavoce.errors import ConfigError
from vivavoce.recipes import spoken_corpus as corpus
from vivavoce.recipes.spoken_domain import DIGITS, answer_to, split_of

RATE = corpus.RATE


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE)) * 0.3)).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A speech corpus in small: 50 takes of each digit by four speakers are tones of 0.1 s at 8 kHz, and one noise."""
    folder = tmp_path / "data"
    (folder / "text").mkdir(parents=True)
    (folder / corpus.BOOKS).write_text(
        "In being comparatively modern.\nHe had 3 ships, said Mr. Smith.\nNo.\n", "utf-8"
    )
    shard = (folder / "en_fsdd.tar").open("wb")
    rows = []
    for speaker in (*corpus.TRAIN_DIGITS, corpus.TEST_DIGITS):
        for n, word in enumerate(DIGITS):
            path = f"en_fsdd/{n}_{speaker.removeprefix('fsdd_')}"
            soundfile.write(folder / "one.flac", tone(0.05 + 0.005 * n), 8_000, format="FLAC")
            sound = (folder / "one.flac").read_bytes()
            for take in range(50):
                rows.append({"shard": "en_fsdd.tar", "path": f"{path}_{take}.flac", "offset": shard.tell(),
                             "nbytes": len(sound), "text": word, "speaker": speaker})  # fmt: skip
            shard.write(sound)
    shard.close()
    soundfile.write(folder / "noise_rir.tar", tone(0.3), RATE, format="FLAC")
    size = (folder / "noise_rir.tar").stat().st_size
    rows.append({"shard": "noise_rir.tar", "path": "n.flac", "offset": 0, "nbytes": size, "kind": "noise",
                 "split": "train"})  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    corpus.digit_takes.cache_clear()
    corpus.noises.cache_clear()
    return folder


def length(number: int) -> corpus.Made:
    """As many samples as the number says, all of its value in thousandths."""
    return [(np.full(number, number / 1000, np.float32), {"text": str(number)})]


def test_a_set_is_written_whole_and_kept(tmp_path: Path) -> None:
    summary = corpus.write_set(tmp_path / "set", lambda: [30, 5, 200], length, 2)
    assert summary["utterances"] == 3
    rows = corpus.read_rows(tmp_path / "set")
    assert [(row["offset"], row["samples"], row["text"]) for row in rows] == [
        (0, 30, "30"),
        (30, 5, "5"),
        (35, 200, "200"),
    ]
    waves = np.fromfile(tmp_path / "set" / "waves.i16", "<i2")
    assert len(waves) == 235
    assert waves[34] == round(0.005 * 32767)
    assert not list(tmp_path.rglob("*.part"))
    assert corpus.write_set(tmp_path / "set", lambda: pytest.fail("made again"), length, 2) == summary


def test_a_broken_off_set_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        corpus.write_set(tmp_path, lambda: [3, -1], length, 1)
    assert not (tmp_path / "waves.i16").exists()
    assert corpus.write_set(tmp_path, lambda: [3, 4], length, 1)["utterances"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [("He had 3 ships, said Mr. Smith.", "he had three ships said mister smith"),
     ("the 'well-known' café", "the well known cafe"), ("It's the boys' 21st", "it's the boys twenty first"),
     ("northanger abbey", "northanger abbey")],
)  # fmt: skip
def test_plain_text_is_words(text, words) -> None:
    assert corpus.plain(text) == words


def test_trimming_leaves_the_silence_asked_for() -> None:
    inside = tone(0.5)
    for lead, tail in ((0.0, 0.3), (0.2, 0.0), (0.5, 0.5)):
        wave = np.concatenate([np.zeros(round(lead * RATE)), inside, np.zeros(round(tail * RATE))])
        assert abs(len(corpus.trimmed(wave, 0.04, 0.08)) - round(0.62 * RATE)) <= RATE // 100
    assert len(corpus.trimmed(np.zeros(100), 0.04, 0.08)) == 100


def test_distortion_is_bounded_repeatable_and_keeps_the_length() -> None:
    clean, recorded = tone(1.0), [np.random.default_rng(0).standard_normal(3_000).astype(np.float32)]
    done = []
    for seed in range(60):
        heard, what = corpus.distorted(clean, np.random.default_rng(seed), recorded, (0.92, 1.08))
        again, _ = corpus.distorted(clean, np.random.default_rng(seed), recorded, (0.92, 1.08))
        assert np.array_equal(heard, again)
        peak = 20 * np.log10(np.abs(heard).max())
        assert -24.01 <= peak <= -2.99
        assert 0.9 * RATE < len(heard) < 1.6 * RATE
        assert heard.dtype == np.float32
        done.append(what)
    for part in ("room", "white", "pink", "recorded", "hum", "narrow", "tilt"):
        assert any(part in what for what in done), part
    quiet = sum("dB" not in what for what in done)
    assert 8 <= quiet <= 30


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "recorded"])
def test_noises_have_unit_level(kind) -> None:
    recorded = [np.random.default_rng(1).standard_normal(1_000).astype(np.float32)]
    noise = corpus.noise_like(kind, 8_000, np.random.default_rng(0), recorded)
    assert noise.shape == (8_000,)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=1e-3)


def test_voices_are_shared_out_and_none_is_held_out() -> None:
    rng = random.Random(0)
    drawn = [corpus.draw_voice(rng) for _ in range(5_000)]
    share = {name: sum(voice.startswith(name) for voice in drawn) / 5_000 for name in ("hibari", "flite", "espeak")}
    assert share == pytest.approx({"hibari": 0.4, "flite": 0.2, "espeak": 0.4}, abs=0.03)
    assert not any(corpus.HELD_OUT_VOICE in voice for voice in drawn)


def test_the_teacher_answers_every_training_question(data: Path) -> None:
    rows = corpus.teacher_texts(0, 0.02, data)
    answers = {row["text"]: row["split"] for row in rows if row["kind"] == "answer"}
    bare, carried = corpus.digit_texts(0, 0.02)
    asked = [*corpus.question_texts(0, 0.02), *bare, *carried]
    assert all(answers[one.question.answer] == "train" for one in asked if one.question and one.split == "train")
    assert "test" in answers.values()
    assert {row["text"] for row in rows if row["kind"] == "book"} == {
        "in being comparatively modern", "he had three ships said mister smith",
    }  # fmt: skip


def test_questions_keep_their_splits_when_renderings_are_shared(data: Path) -> None:
    jobs = corpus.question_jobs(0, 0.05, data)
    assert sum(job.copies for job in jobs) == pytest.approx(len(corpus.question_texts(0, 0.05)), abs=3)
    assert {job.copies for job in jobs if job.voice.startswith("flite")} == {2}
    for job in jobs:
        if job.asked.question is None:
            assert split_of(job.asked.text) == job.asked.split


def test_digit_jobs_use_takes_and_speakers_of_their_split(data: Path) -> None:
    jobs = corpus.digit_jobs(0, 0.01, data)
    by_split = {
        name: [job for job in jobs if job.asked.split == name] for name in ("train", "dev", "test_known", "test_unseen")
    }
    assert [len(by_split[name]) for name in by_split] == [100, 200, 300, 300]
    assert all(min(job.takes) >= 5 for job in by_split["train"])
    assert {take for job in by_split["dev"] for take in job.takes} == {0, 1}
    assert {job.speaker for job in by_split["test_unseen"]} == {corpus.TEST_DIGITS}
    assert corpus.TEST_DIGITS not in {job.speaker for name in list(by_split)[:3] for job in by_split[name]}
    for words in (1, 2, 3, 4):
        assert sum(len(job.asked.text.split()) == words for job in by_split["test_unseen"]) == 75
    assert all(job.asked.question == answer_to(job.asked.text) for job in jobs)


def test_test_digits_are_joined_unchanged(data: Path) -> None:
    job = next(
        j for j in corpus.digit_jobs(0, 0.01, data) if j.asked.split == "test_unseen" and len(j.asked.text.split()) == 3
    )
    [(wave, row)] = corpus.join_digits(job)
    takes = corpus.digit_takes(data)
    words = row["text"].split()
    pieces = [takes[corpus.TEST_DIGITS, word][0][1] for word in words]
    assert np.array_equal(wave[: len(pieces[0])], pieces[0])
    assert len(wave) == sum(map(len, pieces)) + 2 * round(0.1 * RATE)
    assert row["answer"] == f"you said {row['text']}"


def test_a_phrase_is_spoken_around_real_digits(data: Path, monkeypatch) -> None:
    said = []
    monkeypatch.setattr(corpus, "spoken", lambda voice, text, manner: said.append(text) or tone(0.4))
    job = next(
        j
        for j in corpus.digit_jobs(0, 0.05, data)
        if j.voice and j.asked.text.startswith("what is") and "plus" in j.asked.text
    )
    [(wave, row)] = corpus.join_digits(job)
    assert said == ["What is", "Plus"]
    assert row["speaker"] == f"{job.speaker}+{job.voice}"
    assert len(wave) > 0.9 * RATE


def test_a_program_is_asked_with_a_list_and_its_sound_read(monkeypatch, tmp_path: Path) -> None:
    with wav.open(str(tmp_path / "made.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes((tone(0.5)[:4_000] * 32767).astype("<i2").tobytes())
    program = tmp_path / "speaks"
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/made.wav\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert len(corpus._program("speaks", "x; false")) == RATE // 2
    with pytest.raises(corpus.MissingExtraError, match="not installed"):
        corpus._program("speaks-not")


def test_speakers_of_training_are_listed_without_the_held_out_voice(tmp_path: Path) -> None:
    rows = [
        {"speaker": "flite-slt", "split": "train"},
        {"speaker": None, "split": "train"},
        {"speaker": "x", "split": "test"},
    ]
    corpus.write_set(tmp_path / "questions", lambda: rows, make_row, 1)
    corpus.write_speakers(tmp_path, ["questions"])
    heard = json.loads((tmp_path / "speakers.json").read_text("utf-8"))
    assert heard == {"held_out": corpus.HELD_OUT_VOICE, "train": {"questions": ["flite-slt", "unknown"]}}


def make_row(row: corpus.Row) -> corpus.Made:
    return [(tone(0.01), row)]


def test_two_corpora_are_not_mixed(tmp_path: Path) -> None:
    corpus.settle(tmp_path, {"seed": 0, "scale": 1.0})
    corpus.settle(tmp_path, {"seed": 0, "scale": 1.0})
    with pytest.raises(ConfigError, match="choose another folder"):
        corpus.settle(tmp_path, {"seed": 1, "scale": 1.0})
