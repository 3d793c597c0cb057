"""LoRA (Hu et al. 2021, arXiv 2106.09685): a linear layer that stays as it is, and a product of two thin matrices that
is learned beside it.

    y = W x + b + (alpha / rank) B (A x)        A (rank, K) random, B (N, rank) zero: at first nothing changes

:func:`attach` puts it in the place of chosen layers, :func:`merge` adds the product to W and puts the layers back.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn

from vivavoce.errors import ConfigError


class LowRank(nn.Module):
    """The two thin matrices: ``down`` (rank, K) and ``up`` (N, rank)."""

    def __init__(self, like: Tensor, rank: int):
        super().__init__()
        outputs, inputs = like.shape
        if not 1 <= rank <= min(outputs, inputs):
            raise ConfigError(
                f"a rank of {rank} does not fit a layer of {inputs} by {outputs}; take one from 1 to "
                f"{min(outputs, inputs)}"
            )
        self.down = nn.Parameter(like.new_empty(rank, inputs))
        self.up = nn.Parameter(like.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return (x @ self.down.T) @ self.up.T


class LoRALinear(nn.Module):
    """A frozen ``linear`` with a learned difference beside it."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.difference = LowRank(linear.weight, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return self.linear(x) + self.scale * self.difference(x)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same: the one that was given, with another weight."""
        self.linear.weight += self.scale * (self.difference.up @ self.difference.down)
        return self.linear


def attach(
    module: nn.Module, rank: int, alpha: float, chosen: Callable[[str], bool] = lambda name: True
) -> dict[str, LoRALinear]:
    """Put adapters in the place of the linear layers below ``module`` whose names ``chosen`` wants; gives them by
    name. ConfigError where none is chosen."""
    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and chosen(name)]
    if not linears:
        raise ConfigError("no linear layer was chosen for an adapter; choose by names such as those of named_modules()")
    made = {name: LoRALinear(layer, rank, alpha) for name, layer in linears}
    for name, adapter in made.items():
        _put(module, name, adapter)
    return made


def merge(module: nn.Module) -> None:
    """Fold every adapter below ``module`` into its layer, in place."""
    for name, adapter in list(module.named_modules()):
        if isinstance(adapter, LoRALinear):
            _put(module, name, adapter.merged())


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
