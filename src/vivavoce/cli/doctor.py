"""``viva doctor``: what this machine offers and what is missing."""

from __future__ import annotations

from dataclasses import asdict

from vivavoce.cli.options import AsJson, Threads, Verbose, print_json


def doctor(as_json: AsJson = False, threads: Threads = None, verbose: Verbose = False) -> None:
    """Check this machine, and say how to get what is missing.

    viva doctor
    """
    from vivavoce import inspection

    checks = inspection.doctor(threads)
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"  -> {check.advice}" if not check.good and check.advice else ""
        print(f"{'ok' if check.good else '--'}  {check.name.ljust(width)}  {check.value}{advice}")
