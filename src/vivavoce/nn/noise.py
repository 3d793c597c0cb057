"""Normal noise that belongs to places of a stream: any cutting of the stream draws the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # columns drawn from one seed


def place_noise(first: int, count: int, rows: int, seed: int) -> Tensor:
    """(rows, count) for the columns from ``first`` on; a column's numbers depend on its place and the seed alone."""
    start, end = first // BLOCK, -(-(first + count) // BLOCK)
    if count == 0:
        return torch.zeros(rows, 0)
    drawn = torch.cat([_block(block, rows, seed) for block in range(start, end)], dim=1)
    return drawn[:, first - start * BLOCK :][:, :count].clone()


def _block(block: int, rows: int, seed: int) -> Tensor:
    # torch's CPU generator reads 32 bits of its seed: a prime factor keeps the blocks of nearby seeds apart
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**32)
    return torch.randn(BLOCK, rows, generator=generator).T
