"""Streaming state is a value you hold: nested frozen dataclasses (or tuples) whose leaves are tensors, batch on dim 0.

A module offers ``init_state(batch) -> state`` and ``step(x, state) -> (y, state)``. States are linear: ``step``
consumes the state it is given (big leaves such as key/value caches are written in place), so keep only the returned one
and use :func:`fork` where two futures are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


def tree_map(function: Callable[..., Any], state: S, *others: S) -> S:
    """Apply ``function`` to every tensor leaf (and the matching leaves of ``others``), keeping the structure."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        changes = {
            field.name: tree_map(
                function, getattr(state, field.name), *(getattr(other, field.name) for other in others)
            )
            for field in dataclasses.fields(state)
        }
        return dataclasses.replace(state, **changes)  # pyright: ignore[reportReturnType]
    if isinstance(state, tuple | list):
        items = [tree_map(function, item, *rest) for item, *rest in zip(state, *others, strict=True)]  # pyright: ignore
        return type(state)(items)  # pyright: ignore[reportCallIssue]
    if state is None:
        return state
    raise TypeError(f"a state leaf must be a tensor, not {type(state).__name__}")


def leaves(state: Any) -> list[Tensor]:
    """All tensor leaves in order."""
    found: list[Tensor] = []
    tree_map(lambda leaf: (found.append(leaf), leaf)[1], state)
    return found


def fork(state: S) -> S:
    """A deep copy: the only way to continue one state twice."""
    return tree_map(lambda leaf: leaf.clone(), state)


def stack(states: list[S]) -> S:
    """Join states of batch B1, B2, ... into one of batch B1 + B2 + ... (sizes past dim 0 must agree)."""
    return tree_map(lambda *parts: torch.cat(parts, dim=0), states[0], *states[1:])


def take(state: S, rows: Tensor) -> S:
    """Copy out some rows (B,) of a batched state; also reorders, as beam search needs."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def put(pool: S, rows: Tensor, state: S) -> S:
    """Write ``state`` into the rows of ``pool`` in place and return the pool."""
    return tree_map(lambda leaf, new: leaf.index_copy_(0, rows, new), pool, state)


def nbytes(state: Any) -> int:
    """Bytes held by all leaves."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))
