"""Weights made small for shipping: int8 rows, 4-bit groups, half floats, by a rule; read back as float32.

    name          int8 (N, ...)            with name_scale float16 (N,): a scale a row
    name          uint8 (N, ..., K / 2)    with name_scale float16 (N, ..., K / 32): two weights a byte, a scale a group
    name          float16                  as it is

Symmetric rounding. Four-bit groups take the scale of least squared error among a few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["int8", "int4", "half"]
GROUP = 32


def shrink(tensors: Mapping[str, Tensor], rule: Callable[[str, Tensor], Kind]) -> dict[str, Tensor]:
    """The small form of float tensors; vectors and scalars are always halved."""
    small: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().float()
        kind = rule(name, tensor) if tensor.dim() > 1 else "half"
        if kind == "int4" and tensor.shape[-1] % GROUP:
            kind = "int8"
        if kind == "half":
            small[name] = tensor.half()
        else:
            small[name], small[f"{name}_scale"] = _int8(tensor) if kind == "int8" else _int4(tensor)
    return small


def expand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`shrink`, in float32."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale") and name.removesuffix("_scale") in tensors:
            continue
        scale = tensors.get(f"{name}_scale")
        if scale is None:
            found[name] = tensor.float()
        elif tensor.dtype == torch.int8:
            found[name] = tensor.float() * scale.float().view(-1, *(1,) * (tensor.dim() - 1))
        else:
            nibbles = torch.stack([tensor & 15, tensor >> 4], dim=-1).flatten(-2).float() - 8
            found[name] = (nibbles.unflatten(-1, (-1, GROUP)) * scale.float()[..., None]).flatten(-2)
    return found


def _int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = (tensor.flatten(1).abs().amax(1) / 127).clamp_min(1e-7).half()
    rows = tensor / scale.float().view(-1, *(1,) * (tensor.dim() - 1))
    return rows.round().clamp(-127, 127).to(torch.int8), scale


def _int4(tensor: Tensor) -> tuple[Tensor, Tensor]:
    groups = tensor.unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    best, error = largest / 7, torch.full_like(largest, float("inf"))
    # a whole number of steps to the largest weight, so that weights which are rounded already stay what they are
    for steps in (7.0, 7.4, 7.8, 8.0, 8.5, 9.0, 10.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0):
        scale = (largest / steps).clamp_min(1e-6).half().float()
        rounded = (groups / scale[..., None]).round().clamp(-8, 7) * scale[..., None]
        now = (rounded - groups).square().sum(-1)
        best, error = torch.where(now < error, scale, best), torch.minimum(now, error)
    best = best.clamp_min(1e-6).half()
    codes = (groups / best.float()[..., None]).round().clamp(-8, 7).to(torch.int8).flatten(-2) + 8
    low, high = codes[..., 0::2].to(torch.uint8), codes[..., 1::2].to(torch.uint8)
    return low | (high << 4), best
