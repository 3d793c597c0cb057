"""``viva models``: what can be pulled."""

from __future__ import annotations

from vivavoce.cli.options import AsJson, Verbose, print_json, table


def models(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the models that can be pulled.

    viva models --json
    """
    from vivavoce.catalogue import SYSTEMS, system_of
    from vivavoce.checkpoints import store
    from vivavoce.checkpoints.sources import SOURCES

    here = store.installed()
    found = [
        {
            "name": name, "system": system_of(name), "room": SYSTEMS[system_of(name)].room,
            "verbs": SYSTEMS[system_of(name)].verbs, "bytes": row.bytes, "pulled": name in here,
            "licence": row.licence, "origin": row.origin, "note": row.note,
        }
        for name, row in SOURCES.items()
    ]  # fmt: skip
    if as_json:
        print_json(found)
        return
    rows = [
        [
            row["name"],
            ", ".join(row["verbs"]),
            f"{row['bytes'] / 1e6:.0f} MB",
            "yes" if row["pulled"] else "",
            row["licence"],
        ]
        for row in found
    ]
    table(rows, ["name", "for", "download", "pulled", "licence"])
