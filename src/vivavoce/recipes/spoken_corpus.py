"""The corpus of a small speech-to-speech model: one teacher's answers, many voices' questions, real digits.

    python -m vivavoce.recipes.spoken_corpus FOLDER --data SPEECH_CORPUS --seed 0 --scale 1.0

Sets, each a folder with ``waves.i16`` (raw int16, little-endian, 16 kHz mono, one utterance behind the other),
``index.jsonl`` (one row an utterance) and ``done.json``; a finished set is left alone when the recipe runs again:

- teacher: one clean synthetic voice speaks every answer, domain sentences and book sentences;
- digits, digits_dev, digits_test_known, digits_test_unseen: strings of real recorded digits;
- real: real recordings with and without transcripts;
- questions: questions and sentences in many synthetic voices, in rooms, noise and telephone bands;
- heldout: test questions in a voice that no training set holds.

Everything follows from the seed and the programs' versions. The voices are the package ``hibari-tts`` (Apache-2.0)
and the programs ``flite`` and ``espeak-ng``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from rich.progress import Progress

from vivavoce.errors import ConfigError, MissingExtraError, require
from vivavoce.recipes.spoken_domain import (
    DIGITS,
    Question,
    Split,
    answer_to,
    questions,
    sentences,
    split_of,
    written,
)
from vivavoce.text.normalize import normalize_english

RATE = 16_000
HELD_OUT_VOICE = "vits-joe"
TEACHER = "hibari-heart"
TEACHER_GAIN = 1.2
LICENCES = {
    "hibari": "synthetic: hibari-tts, Apache-2.0",
    "flite": "synthetic: flite, permissive",
    "espeak": "synthetic: espeak-ng, GPL-3 program",
    "vits": "synthetic: Piper voice joe, CC0 data",
    "fsdd": "CC-BY-SA-4.0",
}
BOOKS = "text/en_ljspeech_sentences.txt"

QUESTION_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.90), ("dev", 0.04), ("test", 0.06))
TEACHER_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.92), ("dev", 0.04), ("test", 0.04))

Wave = np.ndarray
Row = dict[str, Any]
Made = list[tuple[Wave, Row]]


# Writing ------------------------------------------------------------------------------------------------------------


def write_set(folder: Path, plan: Callable[[], Sequence[Any]], make: Callable[[Any], Made], processes: int) -> Row:
    """Run ``make`` over the jobs of ``plan`` in order and write the waves with their rows; a finished set is only read.

    ``make`` gives float waves (S,) in [-1, 1] with rows that lack offset and samples. Files appear when all is done.
    """
    done = folder / "done.json"
    if done.exists():
        return json.loads(done.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    waves, index = folder / "waves.i16.part", folder / "index.jsonl.part"
    began, offset, count, jobs = time.time(), 0, 0, plan()
    pool = multiprocessing.get_context("fork").Pool(processes)
    with pool, waves.open("wb") as sound, index.open("w", encoding="utf-8") as rows, Progress() as progress:
        for made in progress.track(pool.imap(make, jobs, chunksize=4), len(jobs), description=folder.name):
            for wave, row in made:
                samples = np.round(np.clip(wave, -1, 1) * 32767).astype("<i2")
                sound.write(samples.tobytes())
                rows.write(json.dumps({"offset": offset, "samples": len(samples), **row}) + "\n")
                offset, count = offset + len(samples), count + 1
    os.replace(waves, folder / "waves.i16")
    os.replace(index, folder / "index.jsonl")
    summary = {"utterances": count, "hours": round(offset / RATE / 3600, 4), "seconds": round(time.time() - began, 1)}
    _write(done, summary)
    return summary


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(part, path)


def read_rows(folder: Path) -> list[Row]:
    """The rows of a finished set."""
    return [json.loads(line) for line in (folder / "index.jsonl").read_text("utf-8").splitlines()]


def plain(text: str) -> str:
    """Any English text as words of a-z and apostrophes with single spaces, numbers spelled out."""
    spelled = unicodedata.normalize("NFKD", normalize_english(text).replace("’", "'")).lower()
    letters = re.sub(r"[^a-z' ]+", " ", re.sub(r"[\u0300-\u036f]", "", spelled))
    return " ".join(re.sub(r"(?<![a-z])'|'(?![a-z])", " ", letters).split())


# Texts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One utterance to be made: its words, split and, for a question, the answer and skill."""

    text: str
    split: str
    question: Question | None = None

    def row(self, speaker: str, licence: str) -> Row:
        about = {"text": self.text, "split": self.split, "speaker": speaker, "licence": licence}
        if self.question is None:
            return {**about, "kind": "sentence"}
        return {**about, "kind": "question", "answer": self.question.answer, "skill": self.question.skill}


def question_texts(seed: int, scale: float) -> list[Asked]:
    """What the set "questions" says: 70 % questions, 30 % sentences; 90 % train, 4 % dev, 6 % test."""
    total = 24_000 * scale
    made: list[Asked] = []
    for split, share in QUESTION_SHARES:
        made += [Asked(q.text, split, q) for q in questions(seed, round(0.7 * share * total), split=split)]
        made += [Asked(text, split) for text in sentences(seed, round(0.3 * share * total), split)]
    random.Random(f"order {seed}").shuffle(made)
    return made


_NOT_A_DIGIT = str.split("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty")
CARRIERS = ("repeat", "backwards", "add", "subtract", "double", "next", "previous", "compare", "count")


def digit_texts(seed: int, scale: float) -> tuple[list[Asked], list[Asked]]:
    """Training questions of digits alone, and questions whose numbers are single digits inside a spoken phrase."""
    bare = [Asked(q.text, "train", q) for q in questions(seed, round(7_000 * scale), ["digits"])]
    fitting: list[Asked] = []
    want = round(3_000 * scale)
    for name in CARRIERS:
        drawn = questions(seed, 12 * want // len(CARRIERS) + 24, [name])
        single = [q for q in drawn if not any(word in _NOT_A_DIGIT for word in q.text.split())]
        fitting += [Asked(q.text, "train", q) for q in single[: -(-want // len(CARRIERS))]]
    random.Random(f"carriers {seed}").shuffle(fitting)
    return bare, fitting[:want]


def digit_strings(seed: int, each: int, split: Split, lengths: Iterable[int] = (1, 2, 3, 4)) -> list[Question]:
    """``each`` questions of bare digits of every length."""
    drawn = questions(seed, 16 * each * 4 + 64, ["digits"], split)
    return [q for n in lengths for q in [q for q in drawn if len(q.text.split()) == n][:each]]


def teacher_texts(seed: int, scale: float, data: Path) -> list[Row]:
    """What the teacher says: rows with text, written form, kind and split."""
    asked = [*question_texts(seed, scale), *(one for part in digit_texts(seed, scale) for one in part)]
    found: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        for one in asked:
            if one.split == split and one.question:
                found.setdefault(one.question.answer, split)
    rows: list[Row] = [{"text": t, "written": written(t), "kind": "answer", "split": s} for t, s in found.items()]
    for split, share in TEACHER_SHARES:
        texts = sentences(seed, round(2_500 * scale * share), split)
        rows += [{"text": t, "written": written(t), "kind": "sentence", "split": split} for t in texts]
    return rows + book_sentences(seed, round(2_500 * scale), data)


def book_sentences(seed: int, n: int, data: Path) -> list[Row]:
    """``n`` sentences of 3 to 14 words from the book file, 92 % train, 4 % dev, 4 % test by a hash."""
    lines = (data / BOOKS).read_text("utf-8").splitlines()
    random.Random(f"books {seed}").shuffle(lines)
    rows: dict[str, Row] = {}
    for line in lines:
        text = plain(line)
        if 3 <= len(text.split()) <= 14 and len(rows) < n:
            split = split_of(text, train=92, dev=4)
            rows[text] = {"text": text, "written": normalize_english(line), "kind": "book", "split": split}
    return list(rows.values())


# Voices -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _hibari() -> Any:
    return require("hibari", "teacher", "The teacher's voice").Hibari()


def hibari(text: str, speed: float = 1.0, pitch: float = 1.0) -> Wave:
    """The package's own voice: written text -> wave (S,) at 16 kHz; the same text gives the same samples.

    ``pitch`` plays the sound faster or slower, so it moves the formants and the tempo too: another speaker.
    """
    return soxr.resample(_hibari()(text, speed=speed, seed=0), 24_000 * pitch, RATE, quality="HQ")


def _program(name: str, *arguments: str) -> Wave:
    """The sound a speech program writes to its standard output (a WAV head of 44 bytes, then int16), at 16 kHz."""
    path = shutil.which(name)
    if path is None:
        raise MissingExtraError(f"The program {name} is not installed: install it with your system's package manager")
    sound = subprocess.run([path, *arguments], check=True, capture_output=True, timeout=60).stdout
    rate = int.from_bytes(sound[24:28], "little")
    wave = np.frombuffer(sound[44 : 44 + (len(sound) - 44) // 2 * 2], "<i2").astype(np.float32) / 32768
    return soxr.resample(wave, rate, RATE, quality="HQ")


PITCHES = (0.76, 0.81, 0.86, 0.91, 0.97, 1.03, 1.10, 1.18)
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
ESPEAK_ACCENTS = (*("en-us",) * 4, *("en-gb",) * 2, "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbclan")
ESPEAK_VARIANTS = str.split(
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 croak klatt klatt2 klatt4 adam Andrea Annie belinda caleb ed edward2 iven "
    "john linda max Michael michel Mike pablo quincy rob robert steph2 zac victor"
)


def draw_voice(rng: random.Random) -> str:
    """One of the training voices: 40 % hibari, 20 % flite, 40 % espeak-ng."""
    place = rng.random()
    if place < 0.4:
        return f"hibari-{rng.choice(PITCHES):.2f}"
    if place < 0.6:
        return f"flite-{rng.choice(FLITE_VOICES)}"
    return f"espeak-{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_VARIANTS)}"


@lru_cache(maxsize=500)
def spoken(voice: str, text: str, manner: int) -> Wave:
    """A voice of :func:`draw_voice` says written text; ``manner`` draws its tempo and pitch. No silence at the ends."""
    rng = random.Random(f"{voice} {manner}")
    program, _, name = voice.partition("-")
    if program == "hibari":
        pitch = float(name)
        wave = hibari(text, pitch**-0.6 * rng.uniform(0.9, 1.15), pitch)
    elif program == "flite":
        stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.2f}"
        wave = _program("flite", "-voice", name, "--setf", stretch, "-t", text, "-o", "/dev/stdout")
    else:
        tempo, pitch = str(rng.randint(130, 190)), str(rng.randint(25, 75))
        wave = _program("espeak-ng", "-v", name, "-s", tempo, "-p", pitch, "--stdout", text)
    return trimmed(wave, 0.02, 0.03, floor=-50.0)


def trimmed(wave: Wave, lead: float, tail: float, floor: float = -54.0) -> Wave:
    """The wave with ``lead`` and ``tail`` seconds of silence around what exceeds ``floor`` dBFS (5 ms frames)."""
    frame = RATE // 200
    frames = np.pad(wave, (0, -len(wave) % frame)).reshape(-1, frame)
    loud = np.flatnonzero(np.sqrt((frames**2).mean(1)) > 10 ** (floor / 20))
    if not len(loud):
        return wave
    first, last = int(loud[0]) * frame - round(lead * RATE), int(loud[-1] + 1) * frame + round(tail * RATE)
    inside = wave[max(0, first) : last]
    return np.pad(inside, (max(0, -first), max(0, last - len(wave))))


# Rooms, noise and lines ---------------------------------------------------------------------------------------------


def _silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), np.float32)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(wave**2)) + 1e-9)


def in_room(wave: Wave, rng: np.random.Generator) -> Wave:
    """The wave (S,) in a made-up room: a direct sound and noise that decays by 60 dB in 0.1 to 0.5 s."""
    t = np.arange(round(rng.uniform(0.1, 0.5) * RATE)) / RATE
    late = rng.standard_normal(len(t)) * 10 ** (-3 * t / t[-1])
    late[: round(rng.uniform(0.001, 0.006) * RATE)] = 0
    answer = late * 10 ** (rng.uniform(-16, -2) / 20) / np.sqrt(np.sum(late**2))
    answer[0] = 1
    size = 1 << (len(wave) + len(t)).bit_length()
    heard = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(answer, size), size)[: len(wave)]
    return heard.astype(np.float32)


def noise_like(kind: str, length: int, rng: np.random.Generator, recorded: Sequence[Wave]) -> Wave:
    """``length`` samples of white, pink, hum (mains and its harmonics) or recorded noise, of RMS 1."""
    if kind == "recorded" and recorded:
        source = recorded[int(rng.integers(len(recorded)))]
        wave = np.resize(np.roll(source, -int(rng.integers(len(source)))), length)
    elif kind == "hum":
        t, mains = np.arange(length) / RATE, rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
        parts = [
            np.sin(2 * np.pi * mains * h * t + rng.uniform(0, 6.28)) / h ** rng.uniform(0.3, 1.5) for h in range(1, 9)
        ]
        wave = np.sum(parts, axis=0) + 0.1 * rng.standard_normal(length)
    else:
        wave = rng.standard_normal(length)
    if kind == "pink":
        spectrum = np.fft.rfft(wave)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 20 * length / RATE))
        wave = np.fft.irfft(spectrum, length)
    return (wave / _rms(wave)).astype(np.float32)


def tilted(wave: Wave, per_octave: float) -> Wave:
    """The spectrum tilted by ``per_octave`` dB around 1 kHz, over two octaves to both sides."""
    spectrum = np.fft.rfft(wave)
    octaves = np.log2(np.clip(np.arange(len(spectrum)) * RATE / len(wave) / 1000, 0.25, 4))
    return np.fft.irfft(spectrum * 10 ** (per_octave * octaves / 20), len(wave)).astype(np.float32)


def distorted(
    wave: Wave, rng: np.random.Generator, recorded: Sequence[Wave], speed: tuple[float, float]
) -> tuple[Wave, str]:
    """A clean wave as a microphone far away would hear it, and a line that says what was done to it.

    In order: speed (with pitch), silence of 0 to 0.25 s at both ends, room (40 %), noise (60 % at 12 to 40 dB, 10 % a
    faint floor), telephone band (35 %), tilted spectrum (15 %), peak level of -24 to -3 dB.
    """
    done = []
    wave = soxr.resample(wave, RATE * rng.uniform(*speed), RATE, quality="HQ")
    loudness = _rms(wave)
    wave = np.concatenate([_silence(rng.uniform(0, 0.25)), wave, _silence(rng.uniform(0, 0.25))])
    if rng.random() < 0.4:
        wave = in_room(wave, rng)
        done.append("room")
    place = rng.random()
    if place < 0.7:
        snr = rng.uniform(12, 40) if place < 0.6 else rng.uniform(45, 60)
        kind = str(rng.choice(["white", "pink", "recorded", "recorded", "hum"])) if place < 0.6 else "pink"
        wave = wave + noise_like(kind, len(wave), rng, recorded) * np.float32(loudness * 10 ** (-snr / 20))
        done.append(f"{kind} {snr:.0f} dB")
    if rng.random() < 0.35:
        wave = soxr.resample(soxr.resample(wave, RATE, 8_000), 8_000, RATE)
        done.append("narrow")
    if rng.random() < 0.15:
        wave = tilted(wave, rng.choice([-1, 1]) * rng.uniform(2, 6))
        done.append("tilt")
    peak = 10 ** (rng.uniform(-24, -3) / 20)
    return (wave * (peak / (np.abs(wave).max() + 1e-9))).astype(np.float32), ", ".join(done)


# Real recordings ----------------------------------------------------------------------------------------------------


def manifest(data: Path, *shards: str) -> list[Row]:
    """The rows of some shards of the speech corpus."""
    lines = (data / "manifest.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["shard"].removesuffix(".tar") in shards]


def recording(data: Path, row: Row) -> Wave:
    """One clip of the speech corpus, mono at 16 kHz, at its own level."""
    with (data / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        wave, rate = soundfile.read(io.BytesIO(file.read(row["nbytes"])), dtype="float32")
    return soxr.resample(wave, rate, RATE, quality="HQ")


@lru_cache(maxsize=1)
def noises(data: Path) -> tuple[Wave, ...]:
    """The recorded noises of the training split."""
    rows = [row for row in manifest(data, "noise_rir") if row["kind"] == "noise" and row["split"] == "train"]
    return tuple(recording(data, row) for row in rows)


@lru_cache(maxsize=1)
def digit_takes(data: Path) -> dict[tuple[str, str], list[tuple[int, Wave]]]:
    """(speaker, digit word) -> takes with their numbers."""
    takes: dict[tuple[str, str], list[tuple[int, Wave]]] = {}
    for row in manifest(data, "en_fsdd"):
        number = int(Path(row["path"]).stem.rsplit("_", 1)[1])
        takes.setdefault((row["speaker"], row["text"]), []).append((number, recording(data, row)))
    return takes


# Sets ---------------------------------------------------------------------------------------------------------------


def teach(row: Row) -> Made:
    """One row of the teacher: clean, with 40 ms of silence before and 80 ms behind, all at the same gain."""
    wave = TEACHER_GAIN * trimmed(hibari(row["written"]), 0.04, 0.08)
    return [(wave, {**row, "speaker": TEACHER, "licence": LICENCES["hibari"]})]


@dataclass(frozen=True)
class Job:
    """One rendering: what is said in which voice, and how many differently distorted utterances are made of it."""

    number: int
    asked: Asked
    voice: str
    copies: int
    seed: int
    data: Path


def question_jobs(seed: int, scale: float, data: Path) -> list[Job]:
    """A voice for each text. flite is slow, so each of its renderings serves two utterances and spares a text."""
    rng = random.Random(f"voices {seed}")
    waiting: set[str] = set()
    jobs = []
    for number, asked in enumerate(question_texts(seed, scale)):
        voice = draw_voice(rng)
        if voice.startswith("flite"):
            waiting ^= {asked.split}
            if asked.split not in waiting:
                continue
        jobs.append(Job(number, asked, voice, 2 if voice.startswith("flite") else 1, seed, data))
    return jobs


def ask(job: Job) -> Made:
    """The utterances of a job of the set "questions"."""
    rng = np.random.default_rng([job.seed, 1, job.number])
    wave = spoken(job.voice, written(job.asked.text), int(rng.integers(1_000_000)))
    row = job.asked.row(job.voice, LICENCES[job.voice.partition("-")[0]])
    made = []
    for _ in range(job.copies):
        heard, done = distorted(wave, rng, noises(job.data), (0.92, 1.08))
        made.append((heard, {**row, "heard": done}))
    return made


@dataclass(frozen=True)
class DigitJob:
    """A question whose digits are real takes (numbered ``takes``) of ``speaker``; words between them in ``voice``.

    Without ``distort`` the takes are joined with gaps of 0.1 s and left as they are.
    """

    number: int
    asked: Asked
    speaker: str
    takes: tuple[int, ...]
    distort: bool
    seed: int
    data: Path
    voice: str | None = None


TRAIN_DIGITS = ("fsdd_jackson", "fsdd_nicolas", "fsdd_theo")
TEST_DIGITS = "fsdd_george"


def digit_jobs(seed: int, scale: float, data: Path) -> list[DigitJob]:
    """Splits: train; dev and test_known: unseen takes of known speakers; test_unseen: a speaker unheard in training.

    Takes 0 and 1 serve dev, 2 to 4 the strings of test_known, 0 to 4 its single digits (so 60 of 150 are in dev too).
    """
    rng = random.Random(f"digits {seed}")
    jobs: list[DigitJob] = []

    def add(asked: Asked, split: str, speaker: str, takes: Iterable[int], voice: str | None = None) -> None:
        placed = Asked(asked.text, split, asked.question)
        jobs.append(DigitJob(len(jobs), placed, speaker, tuple(takes), split == "train", seed, data, voice))

    bare, carried = digit_texts(seed, scale)
    for asked in bare:
        add(asked, "train", rng.choice(TRAIN_DIGITS), range(5, 50))
    for asked in carried:
        add(asked, "train", rng.choice(TRAIN_DIGITS), range(5, 50), draw_voice(rng))
    for question in digit_strings(seed, 50, "dev"):
        add(Asked(question.text, "dev", question), "dev", rng.choice(TRAIN_DIGITS), (0, 1))
    for speaker, take, word in itertools.product(TRAIN_DIGITS, range(5), DIGITS):
        add(Asked(word, "test", answer_to(word)), "test_known", speaker, (take,))
    for question in digit_strings(seed, 50, "test", (2, 3, 4)):
        add(Asked(question.text, "test", question), "test_known", rng.choice(TRAIN_DIGITS), (2, 3, 4))
    for question in digit_strings(seed + 1, 75, "test"):
        add(Asked(question.text, "test", question), "test_unseen", TEST_DIGITS, range(50))
    return jobs


def join_digits(job: DigitJob) -> Made:
    """One utterance of a digit job."""
    rng = np.random.default_rng([job.seed, 2, job.number])
    manner = int(rng.integers(3))
    takes = digit_takes(job.data)
    pieces: list[Wave] = []
    for real, run in itertools.groupby(job.asked.text.split(), key=DIGITS.__contains__):
        words = list(run)
        if real:
            chosen = [[w for n, w in takes[job.speaker, word] if n in job.takes] for word in words]
            pieces += [fitting[rng.integers(len(fitting))] for fitting in chosen]
        else:
            wave = spoken(str(job.voice), " ".join(words).capitalize(), manner)
            pieces.append(wave * np.float32(0.05 * 10 ** (rng.uniform(-4, 4) / 20) / _rms(wave)))
    if job.voice:
        pieces = [piece * np.float32(0.05 / _rms(piece)) if len(piece) else piece for piece in pieces]
    wave = pieces[0]
    for piece in pieces[1:]:
        gap = rng.uniform(0.02, 0.15) if job.voice else rng.uniform(0, 0.25) if job.distort else 0.1
        wave = np.concatenate([wave, _silence(gap), piece])
    licence = LICENCES["fsdd"]
    if job.voice:
        licence += "; " + LICENCES[job.voice.partition("-")[0]]
    row = job.asked.row(f"{job.speaker}+{job.voice}" if job.voice else job.speaker, licence)
    if not job.distort:
        return [(wave, row)]
    heard, done = distorted(wave, rng, noises(job.data), (0.85, 1.18))
    return [(heard, {**row, "heard": done})]


def real_rows(data: Path) -> list[Row]:
    """Clips of real people: read sentences, words, and recordings without transcripts; the manifest's own splits."""
    kinds = {"en_librispeech3": "read", "en_ljspeech32": "read", "precise_words": "word", "en_wake_words": "word"}
    kinds |= {"en_librispeech_many": "untranscribed", "en_coffee_commands": "untranscribed"}
    rows = [row for row in manifest(data, *kinds) if row["language"] == "en"]
    return [{**row, "kind": kinds[row["shard"].removesuffix(".tar")], "data": data} for row in rows]


def copy_real(row: Row) -> Made:
    """One real clip with its row."""
    about = {name: row[name] for name in ("split", "kind", "licence", "source", "shard")}
    text = plain(row["text"]) if row["text"] and row["kind"] != "untranscribed" else None
    return [(recording(row["data"], row), {"text": text, "speaker": row["speaker"], **about})]


def held_out_texts(seed: int, scale: float) -> list[Asked]:
    """600 test questions over all skills and 300 test sentences."""
    asked = [Asked(q.text, "test", q) for q in questions(seed + 2, round(600 * scale), split="test")]
    return asked + [Asked(text, "test") for text in sentences(seed + 2, round(300 * scale), "test")]


def hold_out(asked: Asked) -> Made:
    """One clean test utterance in the held-out voice, with 0.1 s of silence at both ends."""
    from vivavoce.api import speak

    speech = speak(written(asked.text), voice=HELD_OUT_VOICE, phonemes="espeak", seed=0, threads=1)
    wave = soxr.resample(np.asarray(speech.wave).reshape(-1), speech.sample_rate, RATE, quality="HQ")
    return [(trimmed(wave, 0.1, 0.1, floor=-46.0), asked.row(HELD_OUT_VOICE, LICENCES["vits"]))]


def build(folder: Path, data: Path, seed: int, scale: float, processes: int) -> dict[str, Row]:
    """All sets that are not finished yet, in the order in which trainings need them, and ``speakers.json``.

    Raises :class:`ConfigError` where the folder holds a corpus of another seed or scale.
    """
    settle(folder, {"seed": seed, "scale": scale})
    plans: dict[str, tuple[Callable[[], Sequence[Any]], Callable[[Any], Made]]] = {
        "teacher": (lambda: teacher_texts(seed, scale, data), teach),
        "digits": (lambda: digit_jobs(seed, scale, data), join_digits),
        "real": (lambda: real_rows(data), copy_real),
        "questions": (lambda: question_jobs(seed, scale, data), ask),
        "heldout": (lambda: held_out_texts(seed, scale), hold_out),
    }
    for load in (noises, digit_takes):  # once, before the processes part
        load(data)
    made = {}
    for name, (plan, make) in plans.items():
        made[name] = write_set(folder / name, plan, make, processes)
        if name != "heldout":
            write_speakers(folder, [other for other in made if other != "heldout"])
    return made


def settle(folder: Path, settings: Row) -> None:
    """Note the settings in ``corpus.json``, so that a later run cannot mix two corpora."""
    path = folder / "corpus.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and (before := json.loads(path.read_text("utf-8"))) != settings:
        raise ConfigError(f"{folder} holds a corpus made with {before}, not {settings}: choose another folder")
    _write(path, settings)


def write_speakers(folder: Path, sets: Iterable[str]) -> None:
    """``speakers.json``: who speaks in the training split of each set, and the voice that none may hold."""
    heard = {
        name: sorted({row["speaker"] or "unknown" for row in read_rows(folder / name) if row["split"] == "train"})
        for name in sets
    }
    _write(folder / "speakers.json", {"held_out": HELD_OUT_VOICE, "train": heard})


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the corpus of a small speech-to-speech model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl, shards and text/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of utterances")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    for name, summary in build(given.folder, given.data, given.seed, given.scale, given.processes).items():
        print(name, json.dumps(summary))


if __name__ == "__main__":
    main()
