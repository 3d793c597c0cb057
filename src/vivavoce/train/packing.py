"""Several documents to a row, so that little of a step is padding; positions begin at 0 with each of them.

The loss of a step is the sum over its learned tokens divided by their number (the rule of VITA-Audio's training, where
a batch is one packed row): each token counts once, in whichever row or document it stands, so packing changes nothing
but the order. A long document weighs more than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vivavoce.errors import ConfigError

Document = tuple[Sequence[int], Sequence[int]]  # ids, labels


class PackedBatches:
    """Endless steps of ``rows`` rows of document numbers, at most ``length`` tokens to a row, the same for the same
    seed.

    An epoch visits every document once: shuffled, put into the row until the next does not fit. Its last step may have
    fewer rows.
    """

    def __init__(self, sizes: Sequence[int], length: int, rows: int, seed: int):
        if not sizes:
            raise ConfigError("there is nothing to draw batches from; give some records")
        if max(sizes) > length:
            raise ConfigError(
                f"a document of {max(sizes)} tokens does not fit a row of {length}; cut it, or widen rows"
            )
        self.sizes, self.length, self.rows, self.seed = sizes, length, rows, seed
        self._steps, self._epochs = list[list[list[int]]](), 0

    def __getitem__(self, step: int) -> list[list[int]]:
        while step >= len(self._steps):
            packed = self._epoch(self._epochs)
            self._steps += [packed[first : first + self.rows] for first in range(0, len(packed), self.rows)]
            self._epochs += 1
        return self._steps[step]

    def _epoch(self, number: int) -> list[list[int]]:
        packed, room = list[list[int]](), 0
        for item in np.random.default_rng((self.seed, number)).permutation(len(self.sizes)).tolist():
            if self.sizes[item] > room:
                packed.append([])
                room = self.length
            packed[-1].append(item)
            room -= self.sizes[item]
        return packed


def joined(rows: Sequence[Sequence[Document]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of documents to ids, labels (-100: nothing to learn) and positions, each (B, T). Padding is a document of
    its own at the end of a row."""
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels, positions = torch.full_like(tokens, -100), torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        at = 0
        for ids, wanted in row:
            end = at + len(ids)
            tokens[number, at:end] = torch.tensor(ids)
            labels[number, at:end] = torch.tensor(wanted)
            positions[number, at:end] = torch.arange(len(ids))
            at = end
        positions[number, at:] = torch.arange(length - at)
    return tokens, labels, positions
