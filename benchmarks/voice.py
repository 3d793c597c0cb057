"""The VITS voice beside piper: CPU time, first sound, intelligibility (Whisper base), naturalness (DistillMOS).

    python -m benchmarks.voice speed   --piper en_US-joe-medium.onnx
    python -m benchmarks.voice quality --piper en_US-joe-medium.onnx --published base/ --sentences sentences.txt

One thread each, in turns. Quality: each sentence is spoken ``--runs`` times by every side; word errors against the text
as faster-whisper base (float32, greedy) hears it, both through Whisper's normaliser.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch

Say = Callable[[str, int], tuple[np.ndarray, int]]
SHORT = "The weather is fine today, and the birds are singing in the old trees."
LONG = (
    "When the rain had stopped at last, the children ran out into the garden, where the grass was still wet and "
    "shining, and they looked for the little frogs that always came out of the pond after a storm, and they counted "
    "eleven of them."
)


def ours(phonemes: str) -> tuple[Say, Callable[[str], float]]:
    from vivavoce.api import open_voice

    voice = open_voice("vits-joe", phonemes=phonemes)

    def say(text: str, seed: int) -> tuple[np.ndarray, int]:
        speech = voice.synthesize(text, generator=seed)
        return np.asarray(speech.wave), speech.sample_rate

    def first(text: str) -> float:
        began = time.process_time()
        next(voice.stream(text))
        return time.process_time() - began

    return say, first


def piper(path: Path) -> Say:
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from piper import PiperVoice  # pyright: ignore[reportMissingImports]

    voice = PiperVoice.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def say(text: str, seed: int) -> tuple[np.ndarray, int]:
        chunks = list(voice.synthesize(text))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    return say


def speed(path: Path) -> None:
    say, first = ours("espeak")
    theirs = piper(path)
    for text in (SHORT, LONG):
        rows: dict[str, list[float]] = {"vivavoce": [], "vivavoce, first sound": [], "piper": []}
        lengths: dict[str, float] = {}
        for turn in range(9):
            for name, run in (("vivavoce", say), ("piper", theirs)):
                began = time.process_time()
                wave, rate = run(text, turn)
                rows[name].append(time.process_time() - began)
                lengths[name] = wave.size / rate
            rows["vivavoce, first sound"].append(first(text))
        for name, values in rows.items():
            values.sort()
            length = f" for {lengths[name]:.1f} s" if name in lengths else ""
            print(f"{name:22s} CPU min {values[0]:.3f} median {values[len(values) // 2]:.3f} s{length}")


def naturalness() -> Callable[[np.ndarray, int], float]:
    """DistillMOS, whose package wants a file reader that it does not need here."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import distillmos  # pyright: ignore[reportMissingImports]

    model = distillmos.ConvTransformerSQAModel().eval()

    def rate(wave: np.ndarray, sample_rate: int) -> float:
        sound = torch.from_numpy(soxr.resample(wave, sample_rate, 16_000).astype(np.float32))[None]
        with torch.inference_mode():
            return float(model(sound))

    return rate


def quality(path: Path, published: Path, sentences: list[str], runs: int) -> None:
    import jiwer
    from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]

    from vivavoce.text.whisper_normalizer import EnglishNormalizer

    hears = WhisperModel(str(published), device="cpu", compute_type="float32", cpu_threads=1)
    normal, judge = EnglishNormalizer(), naturalness()
    sides = {"vivavoce, espeak": ours("espeak")[0], "vivavoce, lexicon": ours("lexicon")[0], "piper": piper(path)}
    for name, say in sides.items():
        errors, ratings = [], []
        for run in range(runs):
            said, heard = [], []
            for n, sentence in enumerate(sentences):
                wave, rate = say(sentence, 1000 * run + n)
                sound = soxr.resample(wave, rate, 16_000).astype(np.float32)
                segments, _ = hears.transcribe(sound, language="en", beam_size=1, temperature=0.0)
                said.append(normal(sentence))
                heard.append(normal("".join(segment.text for segment in segments)))
                if run == 0:
                    ratings.append(judge(wave, rate))
            errors.append(100 * jiwer.wer(said, heard))
        print(f"{name:20s} WER {statistics.mean(errors):5.2f} (runs {', '.join(f'{e:.2f}' for e in errors)})  "
              f"DistillMOS {statistics.mean(ratings):.3f}", flush=True)  # fmt: skip


def thirty(file: Path, seed: int = 0) -> list[str]:
    """Thirty sentences of 5 to 15 words, the same for a seed."""
    lines = [line.strip() for line in file.read_text("utf-8").splitlines() if 5 <= len(line.split()) <= 15]
    return random.Random(seed).sample(lines, 30) if len(lines) > 30 else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "quality"))
    parser.add_argument("--piper", type=Path, required=True)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "speed":
        speed(given.piper)
    else:
        quality(given.piper, given.published, thirty(given.sentences), given.runs)


if __name__ == "__main__":
    main()
