"""``viva inspect``: what a system or a weight file is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vivavoce.cli.options import AsJson, Verbose, print_json, table

if TYPE_CHECKING:
    from vivavoce.inspection import Inspection


def inspect(
    name: Annotated[str, typer.Argument(help="A system (whisper), a pulled model, or a weight file or folder.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what a system or a weight file is made of.

    Of a system: the files it is built from. Of a checkpoint: layout and tensors; nothing in it is executed.

    viva inspect whisper

    viva inspect whisper-base --tensors

    viva inspect ~/Downloads/model.gguf --json
    """
    from vivavoce import inspection

    found = inspection.inspect(name)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found, tensors)


def _print(found: Inspection, tensors: bool) -> None:
    print(f"{found.name}: {found.system or 'no known system'}")
    if found.format:
        print(f"format {found.format}, layout {found.layout or 'unknown'}")
        print(f"{len(found.tensors)} tensors, {found.n_parameters / 1e6:.2f} M numbers")
    if found.foreign:
        print(f"asked for and not given: {', '.join(found.foreign)}")
    if found.sizes:
        print("sizes: " + ", ".join(f"{key} {value}" if found.format else key for key, value in found.sizes.items()))
    if found.stack:
        total = sum(lines for _, lines in found.stack)
        table([*([path, str(lines)] for path, lines in found.stack), ["together", str(total)]], ["file", "lines"])
    if tensors:
        table(
            [[t.name, "x".join(map(str, t.shape)) or "1", t.dtype] for t in found.tensors], ["tensor", "shape", "type"]
        )
