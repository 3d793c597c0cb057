"""``viva rm``: remove pulled models."""

from __future__ import annotations

from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Verbose, print_json
from vivavoce.errors import MissingWeightsError


def rm(
    names: Annotated[list[str], typer.Argument(help="Models (viva ls).")],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Remove pulled models and unfinished downloads.

    viva rm whisper-tiny.en
    """
    from vivavoce.checkpoints import store

    rows = [store.row(name) for name in names]  # all names are checked before anything is deleted
    for row in rows:
        if not store.traces(row.name):
            raise MissingWeightsError(f"{row.name} is not here, so nothing was removed; `viva ls` lists what is")
    for row in rows:
        freed = store.remove(row.name)
        if as_json:
            print_json({"name": row.name, "bytes": freed})
        else:
            print(f"{row.name}: {freed / 1e6:.0f} MB freed")
