"""Options that several verbs share, and how verbs print."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from vivavoce.config import check_seed


class Settings:
    """What holds for the whole command."""

    verbose = False


def _a_seed(value: int | None) -> int | None:
    check_seed(value)
    return value


def _be_verbose(value: bool) -> bool:
    Settings.verbose = Settings.verbose or value
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (one object, or one per line for several results).")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", envvar="VIVA_THREADS", help="Processor cores to use (default: the idle ones)."),
]
Device = Annotated[str | None, typer.Option("--device", envvar="VIVA_DEVICE", help="cpu or cuda.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", envvar="VIVA_SEED", callback=_a_seed, help="Makes random choices repeatable."),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_be_verbose, help="Show where an error came from.", hidden=True)
]


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def on_terminal() -> bool:
    """Whether there is someone to show progress to."""
    return sys.stderr.isatty()


def note(text: str) -> None:
    """A remark for a person, on standard error; silent in scripts."""
    if on_terminal():
        print(text, file=sys.stderr)


def expand(patterns: list[str]) -> list[str]:
    """Patterns such as ``talks/*.mp3`` (which some shells leave as they are) to files; other names stay."""
    found: list[str] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if any(mark in pattern for mark in "*?[") else []
        found += matches or [pattern]
    return list(dict.fromkeys(found))


@contextmanager
def progress(unit: str = "") -> Iterator[Callable[[str, float, float], None]]:
    """A bar with an estimate of the time left on a terminal, silence elsewhere: ``report(what, done, total)``."""
    if not on_terminal():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %")]
    columns += [DownloadColumn()] if unit == "bytes" else []
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:

        def report(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


def table(rows: list[list[str]], heads: list[str]) -> None:
    """Aligned columns on standard output."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
