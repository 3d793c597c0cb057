"""Text models beside llama.cpp: tokens per second of prompt and of writing, peak memory; one thread each, in turns.

python -m benchmarks.language_model --model smollm2-135m-instruct --gguf model.gguf
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch

from benchmarks import peak_mb

PROMPT, WRITTEN = 256, 64


def ours(name: str):
    from vivavoce.api import load

    model, _ = load(name)
    tokens = torch.arange(1000, 1000 + PROMPT)[None]

    def measure() -> tuple[float, float]:
        with torch.inference_mode():
            state, began = model.init_state(1, 512), time.process_time()
            logits, state = model.step(tokens, state, PROMPT)
            read, span = time.process_time(), PROMPT
            for _ in range(WRITTEN):
                span += 1
                logits, state = model.step(logits.argmax(-1, keepdim=True), state, span)
            return PROMPT / (read - began), WRITTEN / (time.process_time() - read)

    return measure


def theirs(gguf: str):
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(gguf, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)

    def measure() -> tuple[float, float]:
        model.reset()
        began = time.process_time()
        model.eval(list(range(1000, 1000 + PROMPT)))
        read = time.process_time()
        for _ in range(WRITTEN):
            model.eval([model.sample(temp=0.0)])
        return PROMPT / (read - began), WRITTEN / (time.process_time() - read)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=("ours", "theirs"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        (ours(given.model) if given.peak == "ours" else theirs(given.gguf))()
        print(json.dumps({"side": given.peak, "peak_mb": peak_mb()}))
        return
    sides = {"vivavoce": ours(given.model), "llama.cpp": theirs(given.gguf)}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(given.repeats):
        for name, measure in sides.items():
            figures[name].append(measure())
    for name, pairs in figures.items():
        prompt, written = (sorted(values) for values in zip(*pairs, strict=True))
        middle = len(prompt) // 2
        print(f"{given.model} {name:14s} prompt {prompt[middle]:6.1f} tokens/s (max {prompt[-1]:.1f}), "
              f"writing {written[middle]:5.1f} tokens/s (max {written[-1]:.1f})")  # fmt: skip
    for side in ("ours", "theirs"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.language_model",
            "--model",
            given.model,
            "--gguf",
            given.gguf,
            "--peak",
            side,
        ]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    main()
