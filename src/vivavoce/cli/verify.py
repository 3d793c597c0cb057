"""``viva verify``: check pulled models."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Verbose, print_json
from vivavoce.errors import MissingWeightsError, VivaError


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all pulled ones if left out.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check that pulled models are whole.

    Compares every file with the SHA-256 recorded when it was pulled, and loads the model.

    viva verify vits-joe
    """
    from vivavoce.checkpoints import store

    wanted = names or list(store.installed())
    if not wanted:
        raise MissingWeightsError("nothing has been pulled yet: run  viva pull starter")
    from vivavoce import api

    bad = 0
    for name in [store.row(name).name for name in wanted]:
        try:
            files = store.verify(name)["files"]
            api.load(name)
        except VivaError as error:
            bad += 1  # the others may be whole
            print(f"viva: {error}", file=sys.stderr)
            if as_json:
                print_json({"name": name, "good": False, "reason": str(error)})
            continue
        if as_json:
            print_json({"name": name, "good": True, "files": files})
        else:
            print(f"{name}: {len(files)} files are as recorded, and the model loads")
    if bad:
        raise typer.Exit(2)
