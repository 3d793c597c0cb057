"""Recognition beside faster-whisper: word errors, digit strings, invented words, speed, memory.

    python -m benchmarks.recognition accuracy --model whisper-base --published base/
    python -m benchmarks.recognition digits | noise | speed | long

Both sides in one process with one thread; CPU time is the process's own. Needs the package faster-whisper, and
--published: a folder with the CTranslate2 files (model.bin, config.json, tokenizer.json, vocabulary).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import peak_mb
from benchmarks.sounds import DIGITS, RATE, digit_strings, recordings, without_speech
from vivavoce.text.whisper_normalizer import BasicNormalizer, EnglishNormalizer

Recognise = Callable[[np.ndarray, str], str]
ENGLISH, OTHER = EnglishNormalizer(), BasicNormalizer()


def ours(model: str, beams: int, dtype: str | None) -> Recognise:
    from vivavoce.api import recognizer

    heard = recognizer(model, dtype=dtype)
    return lambda wave, language: heard.transcribe(torch.from_numpy(wave), RATE, language=language, beams=beams).text


def theirs(folder: str, beams: int, compute: str, vad: bool = False) -> Recognise:
    from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]

    model = WhisperModel(folder, device="cpu", compute_type=compute, cpu_threads=1)

    def recognise(wave: np.ndarray, language: str) -> str:
        segments, _ = model.transcribe(wave, language=language, beam_size=beams, vad_filter=vad)
        return "".join(segment.text for segment in segments)

    return recognise


def normal(text: str, language: str) -> str:
    return ENGLISH(re.sub(r"[()\[\]]", "", text)) if language == "en" else OTHER(text).strip()


def digits_of(text: str) -> str:
    """Numerals and digit words alike: "one, 23" -> "123"."""
    words = re.findall(r"[a-z]+|\d", text.lower())
    return "".join(str(DIGITS.index(word)) if word in DIGITS else word if word.isdigit() else "" for word in words)


def accuracy(sides: dict[str, Recognise], shards: list[str]) -> None:
    import jiwer

    for shard in shards:
        clips = list(recordings(shard))
        seconds = sum(wave.size for _, wave in clips) / RATE
        for name, recognise in sides.items():
            began = time.process_time()
            pairs = [
                (normal(row["text"], row["language"]), normal(recognise(wave, row["language"]), row["language"]))
                for row, wave in clips
            ]
            spent = time.process_time() - began
            said, heard = [a for a, _ in pairs], [b for _, b in pairs]
            print(f"{shard:18s} {name:26s} WER {100 * jiwer.wer(said, heard):5.2f}  "
                  f"CER {100 * jiwer.cer(said, heard):5.2f}  "
                  f"CPU {spent / seconds:.3f} of real time", flush=True)  # fmt: skip


def digits(sides: dict[str, Recognise], count: int) -> None:
    for pad in (0.0, 0.5):
        strings = digit_strings(count, pad=pad)
        for name, recognise in sides.items():
            heard = [recognise(wave, "en") for _, wave in strings]
            right = sum(digits_of(text) == wanted for text, (wanted, _) in zip(heard, strings, strict=True))
            loops = sum(len(text) > 80 for text in heard)
            wrong = [
                (wanted, text) for text, (wanted, _) in zip(heard, strings, strict=True) if digits_of(text) != wanted
            ]
            print(
                f"digits, {pad:.1f} s of silence around: {name:26s} {right} of {count} right, {loops} loops  "
                f"{wrong[:6]}",
                flush=True,
            )


def noise(sides: dict[str, Recognise], count: int) -> None:
    clips = without_speech(count)
    for name, recognise in sides.items():
        invented = [(kind, text) for kind, wave in clips if (text := recognise(wave, "en").strip())]
        print(f"no speech: {name:26s} {len(invented)} of {count} clips got words {invented[:5]}", flush=True)


def minute() -> np.ndarray:
    """60 s of read speech."""
    waves, total = [], 0
    for _, wave in recordings("en_librispeech3"):
        waves.append(wave)
        total += wave.size
        if total >= 60 * RATE:
            break
    return np.concatenate(waves)[: 60 * RATE]


def speed(sides: dict[str, Recognise], repeats: int) -> None:
    wave = minute()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for recognise in sides.values():
        recognise(wave[: 10 * RATE], "en")
    for _ in range(repeats):  # in turns, so that both meet the same machine
        for name, recognise in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            recognise(wave, "en")
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for name, pairs in times.items():
        cpu, wall = (sorted(values) for values in zip(*pairs, strict=True))
        print(
            f"60 s of speech: {name:26s} CPU min {cpu[0]:.2f} median {cpu[len(cpu) // 2]:.2f} s, "
            f"wall median {wall[len(wall) // 2]:.2f} s"
        )


def memory(arguments: list[str]) -> None:
    """Peak memory of each side alone, in a process of its own."""
    for side in ("ours", "theirs"):
        made = subprocess.run([sys.executable, "-m", "benchmarks.recognition", "peak", *arguments, "--side", side],
                              capture_output=True, text=True, check=True)  # fmt: skip
        print(made.stdout.strip())


def long_file(sides: dict[str, Recognise], model: str) -> None:
    """Memory while an hour is written down, ten minutes at a time; the wave comes from a generator."""
    from vivavoce.api import recognizer

    piece = torch.from_numpy(minute())
    heard, marks = recognizer(model), []

    def blocks():
        for i in range(60):
            if i % 10 == 0:
                with open("/proc/self/statm", encoding="ascii") as file:
                    marks.append(int(file.read().split()[1]) * 4096 >> 20)
            yield piece

    words = sum(len(segment.text.split()) for segment in heard.segments(blocks(), language="en"))
    print(f"one hour: {words} words; resident MB every ten minutes: {marks}, peak {peak_mb()} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "digits", "noise", "speed", "long", "memory", "peak"))
    parser.add_argument("--model", default="whisper-base")
    parser.add_argument("--published", type=Path, help="CTranslate2 folder for faster-whisper")
    parser.add_argument("--compute", default="int8")
    parser.add_argument("--dtype")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--shards", nargs="*", default=["en_librispeech3", "en_ljspeech32"])
    parser.add_argument("--side", choices=("ours", "theirs", "both"), default="both")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides: dict[str, Recognise] = {}
    if given.what == "memory":
        memory(["--model", given.model, *(["--published", str(given.published)] if given.published else [])])
        return
    if given.side != "theirs":
        sides[f"vivavoce {given.dtype or 'int8'} beam {given.beams}"] = ours(given.model, given.beams, given.dtype)
    if given.published and given.side != "ours":
        sides[f"faster-whisper {given.compute} beam {given.beams}"] = theirs(
            str(given.published), given.beams, given.compute
        )
    if given.what == "accuracy":
        accuracy(sides, given.shards)
    elif given.what == "digits":
        digits(sides, given.count)
    elif given.what == "noise":
        noise(sides, given.count)
    elif given.what == "speed":
        speed(sides, 5)
    elif given.what == "long":
        long_file(sides, given.model)
    else:
        name, recognise = next(iter(sides.items()))
        recognise(minute(), "en")
        print(json.dumps({"side": name, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
