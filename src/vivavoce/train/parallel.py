"""One run in several processes, as torchrun starts them: who takes which part of a step, and what they agree on.

Every process draws the same batch of a step and takes its :class:`Share` of it. A recipe that can be shared has an
attribute ``share`` and, where a loss is a mean, divides its sums by the :meth:`Share.total` of all counts, times the
number of processes: the average of the gradients is then that of one process with the whole batch.

Each process holds a copy of the model (DDP), or a part of every weight where the recipe names :class:`Pieces` (FSDP2),
for models that do not fit into one device. All processes read and write the same folder.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from vivavoce.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # how long processes wait for the one that evaluates or saves


@dataclass(frozen=True)
class Share:
    """This process is the ``rank``-th of ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that logs, evaluates and saves."""
        return self.rank == 0

    def take(self, items: Sequence[T]) -> list[T]:
        """Its part of the items of a step; each item goes to one process."""
        return list(items[self.rank :: self.world])

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        value = value.detach().clone()
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """The terms of a loss, averaged over all processes."""
        told = torch.stack([term.detach().double().cpu() for term in terms.values()])
        if self.world > 1:
            told = self.total(told.to(_collective_device())).cpu() / self.world
        return dict(zip(terms, told.tolist(), strict=True))

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag as soon as one process raises it."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=_collective_device())
        return [bool(count) for count in self.total(raised).tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


def leads() -> bool:
    """Whether this process is the first of its run; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def join(device: torch.device) -> tuple[Share, torch.device]:
    """This process's share and its own device, as torchrun's variables say; one process alone without them."""
    try:
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ConfigError(
            "WORLD_SIZE, RANK and LOCAL_RANK must be whole numbers; start the run with torchrun"
        ) from error
    if world <= 1:
        return Share(), device
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return Share(rank, world), device


def leave() -> None:
    """The run is over: all processes part together. One that merely ends takes its connections' threads down in the
    middle of their work, and the process aborts."""
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # models wrapped for the run hold on to its connections, in circles
        distributed.barrier()
        distributed.destroy_process_group()


def share_of(recipe: Any) -> Share:
    """The recipe's share; ConfigError where several processes run one that cannot be shared."""
    share = getattr(recipe, "share", None)
    if share is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"the recipe {recipe.name} runs in one process; start it without torchrun")
    return share or Share()


@dataclass(frozen=True)
class Pieces:
    """How a model is cut up: what of ``model`` is gathered one after the other (``layers``), by which methods beside
    ``forward`` those are called; the rest is gathered as a whole."""

    model: nn.Module
    layers: Sequence[nn.Module]
    methods: Sequence[str] = ()


class _Whole(nn.Module):
    """A model whose forward pass is whatever is to be computed with it: torch's wrappers work around forward passes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, what: Callable[[], Any]) -> Any:
        return what()


class Spread:
    """A recipe over the processes of its run: :meth:`loss` has the gradients of all averaged in its backward pass.

    Ask for the optimizer afterwards: weights that lie in pieces are other parameters than before.
    """

    def __init__(self, recipe: Any, share: Share):
        pieces: Pieces | None = getattr(recipe, "pieces", None)
        self.recipe, self.share, self.in_pieces = recipe, share, pieces is not None and share.world > 1
        self._whole: nn.Module | None = None
        if pieces is not None and self.in_pieces:
            self._whole = _sharded(pieces, share)
        elif share.world > 1:
            self._whole = nn.parallel.DistributedDataParallel(_Whole(recipe.model), find_unused_parameters=True)

    def loss(self, step: int) -> dict[str, Tensor]:
        if self._whole is None:
            return self.recipe.loss(step)
        return self._whole(lambda: self.recipe.loss(step))

    def judged(self, judge: Callable[[], T]) -> T | None:
        """What ``judge`` finds with the model, in the process that leads; the others compute along where the model
        lies in pieces."""
        found = None
        if self.in_pieces:
            assert self._whole is not None
            found = self._whole(judge)
        elif self.share.leads:
            found = judge()
        self.share.wait()
        return found if self.share.leads else None


def _sharded(pieces: Pieces, share: Share) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh  # a second to import, and not for one process
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = _collective_device()
    mesh = init_device_mesh(device.type, (share.world,))
    for layer in pieces.layers:
        fully_shard(layer, mesh=mesh)
        for method in pieces.methods:
            register_fsdp_forward_method(layer, method)
    whole = _Whole(pieces.model)
    fully_shard(whole, mesh=mesh)
    return whole


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that lies in pieces; to be asked for by all processes at once."""
    whole = getattr(tensor.detach(), "full_tensor", None)  # of a DTensor
    return tensor.detach() if whole is None else whole()


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the pieces and on the device of another."""
    if hasattr(like, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def _collective_device() -> torch.device:
    on_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
