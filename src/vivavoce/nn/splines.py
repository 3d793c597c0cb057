"""Monotonic rational-quadratic splines (Durkan et al. 2019, "Neural Spline Flows", arXiv 1906.04032, section 3.1):
an elementwise invertible map on [-tail, tail], the identity outside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_SIZE = 1e-3  # least width, height and slope of a bin


def spline(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, inverse: bool = False, tail: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Map ``x`` (...) with unnormalised bin ``widths``, ``heights`` (..., K) and inner ``slopes`` (..., K - 1).

    Returns the mapped values and log |dy/dx| of the direction taken, both (...). The slopes at both ends are 1.
    """
    left, width = _bins(widths, tail)
    bottom, height = _bins(heights, tail)
    slope = F.pad(MIN_SIZE + F.softplus(slopes), (1, 1), value=1.0)
    inside = (x >= -tail) & (x <= tail)
    value = x.clamp(-tail, tail)
    index = _bin_of(value, bottom if inverse else left)
    x0, w, y0, h = (_pick(table, index) for table in (left, width, bottom, height))
    d0, d1 = _pick(slope, index), _pick(slope[..., 1:], index)
    mean = h / w
    bend = d0 + d1 - 2 * mean
    if inverse:
        rise = value - y0  # the quadratic of equations 6 to 8
        a = h * (mean - d0) + rise * bend
        b = h * d0 - rise * bend
        c = -mean * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    else:
        t = (value - x0) / w
    between = t * (1 - t)
    below = mean + bend * between
    grade = mean * mean * (d1 * t * t + 2 * mean * between + d0 * (1 - t) ** 2)
    log_slope = grade.log() - 2 * below.log()
    mapped = t * w + x0 if inverse else y0 + h * (mean * t * t + d0 * between) / below
    log_slope = -log_slope if inverse else log_slope
    return torch.where(inside, mapped, x), torch.where(inside, log_slope, torch.zeros_like(x))


def _bins(raw: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Where bins begin (..., K + 1 with the last end) and their sizes (..., K), spanning [-tail, tail] exactly."""
    share = MIN_SIZE + (1 - MIN_SIZE * raw.shape[-1]) * torch.softmax(raw, dim=-1)
    knots = F.pad(share.cumsum(-1), (1, 0)) * (2 * tail) - tail
    knots = torch.cat([knots[..., :-1], torch.full_like(knots[..., :1], tail)], dim=-1)
    return knots, knots.diff(dim=-1)


def _bin_of(x: Tensor, knots: Tensor) -> Tensor:
    return ((x[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)).long()


def _pick(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(-1, index).squeeze(-1)
