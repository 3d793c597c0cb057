"""Linear layers over floats in the order in which the C kernels read them: exact, and quicker for a few rows at once
than the library's, whose products are made for many.

    weight (N, K) -> tiles (N / 16, K, 16): of 16 outputs, the weights of an input lie side by side
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import ConfigError
from vivavoce.nn import native
from vivavoce.nn.native import TILE
from vivavoce.nn.quantized import GROUP, Int4Linear, Int8Linear

Weights = Literal["float32", "int8", "int4"]


def pack_rows(weight: Tensor) -> Tensor:
    """(N, K) floats -> tiles (N / 16 rounded up, K, 16); the rows that fill up the last are zeros."""
    n, k = weight.shape
    return F.pad(weight.float(), (0, 0, 0, -n % TILE)).view(-1, TILE, k).transpose(1, 2).contiguous()


class PackedLinear(nn.Module):
    """A linear layer over float tiles; inference on a CPU only. Not in ``state_dict``: it is made from a layer, when a
    model is made ready, and holds the only copy of its weights."""

    def __init__(self, kernel: native.NativeLinear, n: int, k: int):
        super().__init__()
        self.kernel, self.out_features, self.in_features = kernel, n, k

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PackedLinear | None:
        """None where the C kernels are not in use."""
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        if not native.active():
            return None
        kernel = native.float_linear(pack_rows(linear.weight.detach()), linear.out_features, bias)
        return None if kernel is None else cls(kernel, linear.out_features, linear.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., N) float32."""
        return self.kernel(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def make_ready(module: nn.Module, weights: Weights = "float32") -> nn.Module:
    """Replace every ``nn.Linear`` below a module by the form that computes quickest here, in place, for inference on a
    CPU: exact floats, or weights rounded to 8 bits a row or to 4 bits in groups (ConfigError where an input is no whole
    groups). Without the C kernels floats stay as they are."""
    forms: dict[str, Callable[[nn.Linear], nn.Module | None]] = {
        "float32": PackedLinear.from_linear, "int8": Int8Linear.from_linear, "int4": Int4Linear.from_linear
    }  # fmt: skip
    if weights not in forms:
        raise ConfigError(f"there are no weights {weights!r}; use {', '.join(forms)}")
    for name, child in list(module.named_modules()):
        if not isinstance(child, nn.Linear):
            continue
        if weights == "int4" and child.in_features % GROUP:
            raise ConfigError(
                f"{name} has {child.in_features} inputs, which 4 bits take in groups of {GROUP}; use int8"
            )
        made = forms[weights](child)
        if made is not None:
            setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], made)
    return module


def some_outputs(linear: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """Only a run of a layer's outputs: x (..., K) -> (..., R), whatever form the layer has."""
    if isinstance(linear, nn.Linear):
        return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])
    kernel = getattr(linear, "kernel", None)
    return kernel.rows(x, rows) if isinstance(kernel, native.NativeLinear) else linear(x)[..., rows]
