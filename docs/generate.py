"""Write the tables of the pages anew from the catalogue: between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

``make docs`` runs it; a test compares. Nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vivavoce.catalogue import CATALOGUE, System, is_shipped, system_of
from vivavoce.checkpoints.sources import SETS, SOURCES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_PLACE = re.compile(r"(<!-- (\w+): begin -->\n).*?(<!-- \2: end -->)", re.DOTALL)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


def _parity(row: System) -> str:
    """Which kinds of parity tests a system has: recorded cases, a reference that runs beside it."""
    tests = ROOT / "tests" / "parity"
    marks = (f"layouts.{row.stem} ", f".{row.room}.{row.stem} ")
    live = any(mark in path.read_text("utf-8") for path in tests.glob("test_*.py") for mark in marks)
    kinds = ["recorded"] * (tests / f"golden_{row.stem}.py").is_file() + ["live"] * live
    return ", ".join(kinds) or "no"


def systems() -> str:
    """Every system: its room, its file, how it streams, and how it is checked."""
    return _table(
        ["system", "room", "model", "streams", "parity", "real weights", "paper"],
        (
            [
                f"**{row.title}** `{row.stem}`", row.room, f"`src/{row.model.partition(':')[0].replace('.', '/')}.py`",
                f"{row.streams}: {row.streaming}", _parity(row),
                ", ".join(f"`{name}`" for name in (*filter(is_shipped, row.ships), *row.weights)) or "no",
                row.paper,
            ]
            for row in CATALOGUE
        ),
    )  # fmt: skip


def layouts() -> str:
    """Which published files each system reads."""
    return _table(
        ["system", "published layouts", "sizes"],
        ([f"`{row.stem}`", "; ".join(row.layouts), ", ".join(row.sizes)] for row in CATALOGUE),
    )


def weights() -> str:
    """Everything that ``viva pull`` knows."""
    sets = {name: [group for group, members in SETS.items() if name in members] for name in SOURCES}
    return _table(
        ["name", "for", "download", "in the sets", "licence", "origin"],
        (
            [
                f"`{name}`", ", ".join(next(r.verbs for r in CATALOGUE if r.stem == system_of(name))),
                f"{row.bytes / 1e6:.0f} MB", ", ".join(sets[name]), row.licence,
                row.origin + (f" ({row.note})" if row.note else ""),
            ]
            for name, row in SOURCES.items()
        ),
    )  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {"systems": systems, "layouts": layouts, "weights": weights}


def pages() -> dict[Path, str]:
    """Every page that holds a generated table, as it should be."""
    made = {}
    for path in (ROOT / "README.md", *sorted(HERE.glob("*.md"))):
        text = path.read_text("utf-8") if path.is_file() else ""
        if _PLACE.search(text):
            made[path] = _PLACE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
        print(path.name)
