"""The spoken turn: time from the last sample of a question to the first sound of its answer, beside separate programs.

    python -m benchmarks.turn --text-model smollm2-135m-instruct --published base/ --gguf model.gguf --piper joe.onnx

Ours hears each question in real time. The others run one after another on the same question, with the same models, the
same 500 ms wait and two threads: faster-whisper (int8, greedy) -> llama.cpp -> piper. Their system prompt is evaluated
anew, as a program that glues them together does, unless --cached lets llama.cpp keep it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.asked import spoken, twenty
from benchmarks.sounds import RATE
from vivavoce.lm.chat import SYSTEM

ENDPOINT = 0.5


class Ours:
    """Our assistant; every question is a conversation of its own, heard in real time."""

    def __init__(self, text_model: str, recogniser: str | None):
        from vivavoce.talking import assemble

        self.cascade = assemble(text_model=text_model, recogniser=recogniser)
        self.cascade.warm()

    def answer(self, wave: np.ndarray) -> dict:
        from vivavoce.talking import converse

        for result in converse(self.cascade, [torch.from_numpy(wave)]):
            return result.to_dict()
        return {"heard": "", "answer": "", "first_sound_ms": None}


class Glue:
    """faster-whisper, llama.cpp and piper, one after another."""

    def __init__(self, published: str, gguf: str, piper: str, cached: bool, threads: int):
        from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]
        from llama_cpp import Llama  # pyright: ignore[reportMissingImports]
        from piper import PiperVoice  # pyright: ignore[reportMissingImports]

        self.hears = WhisperModel(published, device="cpu", compute_type="int8", cpu_threads=threads)
        self.thinks = Llama(gguf, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
        self.speaks = PiperVoice.load(piper)
        self.cached = cached

    def answer(self, wave: np.ndarray) -> dict:
        began = time.perf_counter()
        heard = "".join(s.text for s in self.hears.transcribe(wave, language="en", beam_size=1)[0]).strip()
        recognised = time.perf_counter()
        if not self.cached:
            self.thinks.reset()
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": heard}]
        text = self.thinks.create_chat_completion(turns, temperature=0, max_tokens=120)["choices"][0]["message"][
            "content"
        ]
        from vivavoce.text.chunking import sentences

        text = (sentences(text.strip()) or [""])[0]
        thought = time.perf_counter()
        next(self._sound(text))
        spoken_at = time.perf_counter()
        return {
            "heard": heard, "answer": text, "first_sound_ms": 1000 * (ENDPOINT + spoken_at - began),
            "parts_ms": {"recognise": 1000 * (recognised - began), "think": 1000 * (thought - recognised),
                         "speak": 1000 * (spoken_at - thought)},
        }  # fmt: skip

    def _sound(self, text: str) -> Iterator[np.ndarray]:
        for chunk in self.speaks.synthesize(text or "Sorry."):
            yield chunk.audio_float_array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-model", default="smollm2-135m-instruct")
    parser.add_argument("--asr")
    parser.add_argument("--published")
    parser.add_argument("--gguf")
    parser.add_argument("--piper")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    questions = twenty()[: given.count]
    waves = [spoken(question) for question in questions]
    parts: dict[str, Ours | Glue] = {f"vivavoce {given.text_model}": Ours(given.text_model, given.asr)}
    if given.gguf:
        glue = Glue(given.published, given.gguf, given.piper, given.cached, given.threads)
        glue.answer(np.zeros(RATE, np.float32))
        parts["faster-whisper -> llama.cpp -> piper"] = glue
    sides: dict[str, list[dict]] = {name: [] for name in parts}
    for wave in waves:  # in turns, so that both meet the same machine
        for name, side in parts.items():
            sides[name].append(side.answer(wave))
    for name, rows in sides.items():
        for question, row in zip(questions, rows, strict=True):
            print(json.dumps({"side": name, "asked": question, **row}, ensure_ascii=False))
    for name, rows in sides.items():
        times = sorted(row["first_sound_ms"] for row in rows if row["first_sound_ms"] is not None)
        parts = {key: round(statistics.median(row["parts_ms"][key] for row in rows if key in row.get("parts_ms", {})))
                 for key in ("recognise", "think", "speak")}  # fmt: skip
        print(f"{name}: first sound median {statistics.median(times):.0f} ms, min {times[0]:.0f}, max {times[-1]:.0f}, "
              f"{len(times)} of {len(rows)} answered; medians {parts}; "
              f"underruns {sum(row.get('underruns', 0) for row in rows)}")  # fmt: skip


if __name__ == "__main__":
    main()
