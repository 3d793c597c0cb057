"""``viva verify``: check pulled models."""

from __future__ import annotations

from typing import Annotated

import typer

from vivavoce.cli.options import AsJson, Verbose, print_json
from vivavoce.errors import MissingWeightsError


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

    for name in wanted:
        record = store.verify(name)
        api.load(name)
        if as_json:
            print_json({"name": name, "good": True, "files": record["files"]})
        else:
            print(f"{name}: {len(record['files'])} files are as recorded, and the model loads")
