"""``viva ls``: what has been pulled."""

from __future__ import annotations

from vivavoce.cli.options import AsJson, Verbose, print_json, table


def ls(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the pulled models with their size on disk and place.

    viva ls --json
    """
    from vivavoce.checkpoints import store

    found = {
        name: (sum(file.stat().st_size for file in folder.iterdir() if file.is_file()), folder)
        for name, folder in store.installed().items()
    }
    if as_json:
        print_json([{"name": name, "bytes": size, "folder": str(folder)} for name, (size, folder) in found.items()])
    elif found:
        table([[name, f"{size / 1e6:.0f} MB", str(folder)] for name, (size, folder) in found.items()],
              ["name", "size", "folder"])  # fmt: skip
    else:
        print("nothing has been pulled yet: run  viva pull starter")
