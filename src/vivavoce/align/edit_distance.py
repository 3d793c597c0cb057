"""The smallest number of insertions, deletions and substitutions between two sequences (Levenshtein 1966)."""

from __future__ import annotations

from collections.abc import Sequence


def edits(expected: Sequence[str], found: Sequence[str]) -> int:
    """Edits that turn one list of words or phones into the other."""
    row = list(range(len(found) + 1))
    for i, left in enumerate(expected, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(found, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
