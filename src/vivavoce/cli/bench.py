"""``viva bench``: how quick a system is on this machine, with random weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vivavoce.cli.options import AsJson, Device, Threads, Verbose, print_json, progress, table
from vivavoce.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from vivavoce.evaluate.vita_audio_speed import Result, Timing
    from vivavoce.nn.packed import Weights

SYSTEM = "vita_audio"


def bench(
    system: Annotated[str, typer.Argument(help=f"What to measure: {SYSTEM}.")],
    size: Annotated[str, typer.Option("--size", help="nano, 28x192, 0.5b or 7b.")] = "28x192",
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens of a long run (default: by size; the paper's is 4096).")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", help="all, vanilla, balance, boost or turbo.")] = "all",
    sessions: Annotated[
        str, typer.Option("--sessions", help="How many conversations at once, by commas; 0 leaves this out.")
    ] = "1,4,16",
    weights: Annotated[str, typer.Option("--weights", help="float32, int8 or int4, on a processor.")] = "float32",
    reference: Annotated[
        str | None, typer.Option("--reference", help="An interpreter that can run the authors' code.")
    ] = None,
    reference_code: Annotated[
        Path | None, typer.Option("--reference-code", help="The folder of the authors' code.")
    ] = None,
    as_json: AsJson = False,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Measure how quick a system is here, with random weights; nothing is loaded.

    Time to the first block of speech, a long run by each mode, what the memory's speed allows, many conversations at
    once; with --reference, the authors' code beside it.

    viva bench vita_audio --size nano

    viva bench vita_audio --mode turbo --tokens 4096

    viva bench vita_audio --size 7b --device cuda
    """
    if system != SYSTEM:
        raise UnknownNameError(f"{system!r} cannot be measured; give {SYSTEM}")
    from vivavoce import inspection
    from vivavoce.checkpoints import store
    from vivavoce.evaluate import vita_audio_speed as speed
    from vivavoce.nn import native

    chosen, modes, counts = speed.size_named(size), speed.modes_named(mode), _counts(sessions)
    count = chosen.tokens if tokens is None else tokens
    speed.check_tokens(chosen.config, count)
    python = None if reference is None else os.path.expanduser(reference)
    code = None if reference_code is None else reference_code.expanduser()
    speed.check_reference(python, code)
    forms: dict[str, Weights] = {"float32": "float32", "int8": "int8", "int4": "int4"}
    if weights not in forms:
        raise ConfigError(f"there are no weights {weights!r}{nearest(weights, forms)}; use {', '.join(forms)}")
    place = inspection.find_device(device)
    inspection.set_threads(threads)
    native.enable(store.cache_dir() / "kernels")
    positions = (speed.PROMPT + count) * max([1, *counts])
    speed.check_room(chosen.config, place, positions, 1 if python is None else 2)
    with progress() as report:
        plan = speed.Plan(modes, count, counts, weights=forms[weights], python=python, code=code)
        result = speed.bench(chosen.config, place, plan, report)
    if as_json:
        print_json({"system": system, "size": size, **asdict(result)})
    else:
        _print(size, result)


def _counts(text: str) -> list[int]:
    """How many conversations, from numbers with commas between; none for "0"."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= 1024 for word in words) or (len(words) > 1 and "0" in words):
        raise ConfigError(f"--sessions takes numbers such as 1,4,16 up to 1024, or 0 for none, not {text!r}")
    return [int(word) for word in words if int(word)]


def _print(size: str, result: Result) -> None:
    print(f"VITA-Audio {size}: {result.parameters:,} random parameters in {result.dtype}")
    print(f"{result.processor}, threads: {result.threads}, torch {result.torch}; {result.kernels}")
    if result.reference is not None:
        versions = ", ".join(f"{name} {number}" for name, number in result.reference.items())
        print(f"Beside it the authors' code ({versions}), in turns")
    print("\nTime to the first block of speech: 32 tokens are read, 11 written")
    _timings(result.chunk, "ms", lambda seconds: 1000 * seconds)
    print(f"\nA run of {result.tokens} tokens")
    _timings(result.run, "tokens/s", lambda seconds: result.tokens / seconds)
    _memory(result)
    if result.together:
        _together(result)


def _timings(rows: Sequence[Timing], unit: str, value: Callable[[float], float]) -> None:
    """Seconds in the unit wanted, calls, and how we compare with our Vanilla and with the reference."""
    heads = ["mode", unit, "seconds", "backbone passes", "module passes", "x Vanilla"]
    body = []
    for row in rows:
        cells = [row.mode, f"{value(row.seconds):.1f}", f"{row.seconds:.3f}", str(row.passes), str(row.drafts)]
        body.append([*cells, "" if row.of_vanilla is None else f"{row.of_vanilla:.2f}"])
    beside = [(number, row, row.reference) for number, row in enumerate(rows) if row.reference is not None]
    for number, row, other in beside:
        alike = (row.passes, row.drafts) == (other.passes, other.drafts)
        body[number] += [f"{value(other.seconds):.1f}", f"{other.seconds / row.seconds:.2f}", "yes" if alike else "no"]
        body[number].append("" if row.agree is None else f"first {row.agree}")
    table(body, [*heads, *([f"reference: {unit}", "x reference", "same passes", "same tokens"] if beside else [])])


def _memory(result: Result) -> None:
    memory = result.memory
    print(
        f"\nWeights that a pass reads: backbone {memory.backbone / 1e6:.1f} MB, module {memory.module / 1e6:.1f} MB; "
        f"memory yields {memory.bandwidth / 1e9:.1f} GB/s"
    )
    if memory.cache is not None and memory.backbone < memory.cache:
        print(f"The processor's cache of {memory.cache / 1e6:.0f} MB may hold them: the floor is that of memory alone.")
    table(
        [
            [row.mode, f"{row.bytes / 1e6:.1f}", f"{1000 * row.seconds:.3f}", f"{100 * row.reached:.0f} %"]
            for row in result.floor
        ],
        ["mode", "MB a token", "floor in ms a token", "of it reached"],
    )


def _together(result: Result) -> None:
    print("\nConversations at once; cycle and wait: what 95 of 100 stay below")
    alone = {row.mode: row.tokens_per_second for row in result.together if row.sessions == 1}
    body = []
    for row in result.together:
        rate, times = row.tokens_per_second, [f"{1000 * row.cycle:.1f}", f"{1000 * row.wait:.1f}"]
        of_one = f"{rate / alone[row.mode]:.2f}" if row.mode in alone else ""
        body.append([row.mode, str(row.sessions), f"{rate:.1f}", of_one, *times])
    table(body, ["mode", "at once", "tokens/s", "x one", "cycle in ms", "wait in ms"])
