"""``viva models``: what ships and what can be pulled."""

from __future__ import annotations

from vivavoce.cli.options import AsJson, Verbose, print_json, table


def models(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the models that ship with the package and those that can be pulled.

    viva models --json
    """
    from vivavoce import catalogue

    found = catalogue.models()
    if as_json:
        print_json([model.to_dict() for model in found])
        return
    rows = [
        [
            model.name,
            ", ".join(model.verbs),
            f"{model.bytes / 1e6:.0f} MB" if model.bytes else "none",
            "ships" if not model.bytes else "yes" if model.pulled else "",
            model.licence,
        ]
        for model in found
    ]
    table(rows, ["name", "for", "download", "pulled", "licence"])
