"""Vector quantisation: each vector becomes the number of the nearest row of a codebook.

van den Oord et al. 2017 (arXiv 1711.00937), section 3; the codebook follows running means of what fell to each row
(appendix A.1), and rows that nothing falls to are moved onto recent vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Vectors (..., D) to codes (...) and back; ``weight`` (N, D) is the codebook."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(codes, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of the nearest rows by squared distance, the first of equals."""
        with torch.autocast(x.device.type, enabled=False):  # near rows differ by less than bfloat16 tells
            distance = self.weight.square().sum(1) - 2 * x.flatten(0, -2).to(self.weight.dtype) @ self.weight.T
        return distance.argmin(dim=1).view(x.shape[:-1])

    def embed(self, codes: Tensor) -> Tensor:
        """The rows of codes."""
        return F.embedding(codes, self.weight)

    def straight_through(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: (rows with the gradient of x, codes, mean squared distance that pulls x to its row)."""
        codes = self(x.detach())
        rows = self.embed(codes).detach()
        return x + (rows - x).detach(), codes, F.mse_loss(x, rows)


@dataclass
class _Rates:
    decay: float
    restart_below: float


class CodebookUpkeep(nn.Module):
    """Running counts and sums of what fell to each row; :meth:`update` moves the codebook to their means.

    Counts start at one with the codebook as the sum, so that a codebook from k-means is kept at first.
    """

    count: Tensor
    total: Tensor

    def __init__(self, codebook: VectorQuantizer, decay: float = 0.99, restart_below: float = 0.02):
        super().__init__()
        codes = codebook.weight.shape[0]
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", codebook.weight.detach().clone())
        self.rates = _Rates(decay, restart_below)

    @torch.no_grad()
    def update(self, codebook: VectorQuantizer, x: Tensor, codes: Tensor) -> Tensor:
        """Take in vectors x (N, D) and their codes (N,); rows used less than ``restart_below`` times a step on the
        average are put onto random vectors of x. Gives the number of rows restarted."""
        x = x.float()
        one_hot = torch.zeros(self.count.shape[0], x.shape[0]).to(x)
        one_hot[codes, torch.arange(x.shape[0], device=x.device)] = 1.0
        self.count.lerp_(one_hot.sum(1), 1 - self.rates.decay)
        self.total.lerp_(one_hot @ x, 1 - self.rates.decay)
        dead = (self.count < self.rates.restart_below).nonzero()[:, 0]
        if len(dead):
            chosen = x[torch.randint(len(x), (len(dead),), device=x.device)]
            self.count[dead] = 1.0
            self.total[dead] = chosen
        codebook.weight.copy_(self.total / self.count[:, None])
        return torch.tensor(len(dead))


@torch.no_grad()
def k_means(x: Tensor, codes: int, rounds: int = 20) -> Tensor:
    """A first codebook (codes, D) from vectors (N, D): Lloyd's rounds from random vectors, empty rows put anew."""
    rows = x[torch.randperm(len(x), device=x.device)[:codes]].clone()
    for _ in range(rounds):
        nearest = torch.cat([(rows.square().sum(1) - 2 * part @ rows.T).argmin(1) for part in x.split(8192)])
        total = torch.zeros_like(rows).index_add_(0, nearest, x)
        count = torch.bincount(nearest, minlength=codes).to(x)
        rows = total / count.clamp_min(1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        rows[empty] = x[torch.randint(len(x), (len(empty),), device=x.device)]
    return rows
