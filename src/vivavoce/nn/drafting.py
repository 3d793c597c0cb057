"""A chain of small modules that write ahead, each one token, in C without Python between them (nn/native.c: draft).

Module k reads the states that its predecessor left and the tokens behind them; its likeliest token among those that may
stand there joins the text, and module k + 1 goes on. Several texts of different ages go through together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.nn.native import Caches, CacheTable, LayerStruct, LinearStruct, NativeLinear, NativeStack, PlanStruct

_long, _pointer = ctypes.c_int64, ctypes.c_void_p


class ModuleStruct(ctypes.Structure):
    """``Module`` of native.c."""

    _fields_ = [("embed_norm", _pointer), ("hidden_norm", _pointer), ("project", LinearStruct), ("layer", LayerStruct)]


class DrafterStruct(ctypes.Structure):
    """``Drafter`` of native.c."""

    _fields_ = [("plan", PlanStruct), ("n_modules", _long), ("modules", _pointer), ("embedding", _pointer),
                ("embedding_scale", _pointer), ("head", LinearStruct)]  # fmt: skip


class PlaceStruct(ctypes.Structure):
    """``Place`` of native.c."""

    _fields_ = [("first", _long), ("count", _long), ("allowed", _pointer), ("last", _pointer), ("next", _long)]


class RunStruct(ctypes.Structure):
    """``Run`` of native.c."""

    _fields_ = [("keys", _pointer), ("values", _pointer), ("capacity", _long), ("begun", _long), ("tokens", _pointer),
                ("base", _long), ("count", _long), ("drafted", _pointer), ("states", _pointer), ("n_waiting", _pointer),
                ("size", _long), ("place", _long), ("written", _long)]  # fmt: skip


class DraftPlace(NamedTuple):
    """Where a token is to stand: the run of the vocabulary, which of it may, bool (R,); after which of them the drafts
    end, bool (R,) or None; the number of the place that comes next."""

    rows: slice
    allowed: Tensor
    last: Tensor | None
    next: int


@dataclass
class DraftRun:
    """A text that gets drafts: caches (1, G, capacity, width) of each module; the index of each module's next token and
    of the first that module 0 reads; ``waiting``: for each module the states (1, n, D) of its predecessor, from the
    token before its next one on; ``size`` drafts at most, the first in ``place``. ``drafted`` and ``waiting`` are
    replaced by what they are afterwards; ``passed``: the states that each module read; ``added``: the drafts."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    tokens: list[int]
    begun: int
    drafted: list[int]
    waiting: list[Tensor]
    passed: list[Tensor]
    size: int
    place: int
    added: list[int] = field(default_factory=list)


class _Held(NamedTuple):
    """What C works with of one text; it must live as long as the pass."""

    caches: Caches
    tokens: Tensor
    states: list[Tensor]
    drafted: ctypes.Array[ctypes.c_int64]
    pointers: ctypes.Array[ctypes.c_void_p]
    counts: ctypes.Array[ctypes.c_int64]


class Chain:
    """Modules for the C kernels, made once per model; several texts and threads may share it."""

    def __init__(self, stack: NativeStack, joins: Sequence[tuple[Tensor, Tensor, NativeLinear]], embedding: Tensor,
                 scale: Tensor | None, head: NativeLinear):  # fmt: skip
        """stack: the modules' layers as if they were one decoder, with the norm and angles of all; joins: the norms of
        embeddings and states and the projection of each; embedding (V, D) float32, or int8 with ``scale`` (V,)."""
        self._library, self._kept = stack.library, (stack, joins, embedding, scale, head)
        self._modules = (ModuleStruct * len(joins))(
            *(
                ModuleStruct(embed.data_ptr(), hidden.data_ptr(), project.struct, layer)
                for (embed, hidden, project), layer in zip(joins, stack.layers, strict=True)
            )
        )
        self._drafter = DrafterStruct(
            stack.plan, len(joins), ctypes.addressof(self._modules), embedding.data_ptr(),
            None if scale is None else scale.data_ptr(), head.struct,
        )  # fmt: skip
        plan = stack.plan
        self._dim, self._context, self._vocabulary = plan.dim, plan.context, min(len(embedding), head.struct.n)
        self._caches = CacheTable(len(joins), plan.groups, plan.width)

    def draft(self, places: Sequence[DraftPlace], runs: Sequence[DraftRun]) -> bool:
        """Let every text have its drafts; False, and nothing is changed, where caches are no plain float32 memory or
        too small. ValueError for tokens outside the vocabulary, and for modules that stand where they cannot."""
        modules, structs, kept = len(self._modules), (RunStruct * len(runs))(), list[_Held]()
        if any(not 0 <= place.rows.start < place.rows.stop <= self._vocabulary for place in places):
            raise ValueError(f"a place is outside the {self._vocabulary} tokens of the vocabulary")
        rows = [0] * modules
        span = 0
        for struct, run in zip(structs, runs, strict=True):
            caches, size = self._caches.of(run.keys, run.values), min(run.size, modules)
            longest = len(run.tokens) + size - 1 - run.begun  # slots filled by the last module, were it the first
            if caches is None or longest > caches.capacity or len(run.tokens) + size - 1 > self._context:
                return False
            base = min([len(run.tokens), *run.drafted[:size]])  # before that, nothing is read again
            unread = run.tokens[base:]
            if any(index < run.begun + number for number, index in enumerate(run.drafted)) or base < 0:
                raise ValueError("a module stands before its beginning")
            if unread and not 0 <= min(unread) <= max(unread) < self._vocabulary:
                raise ValueError(f"a token is outside the {self._vocabulary} of the vocabulary")
            tokens = torch.tensor([*unread, *([0] * size)])
            states = list[Tensor]()
            for number in range(min(size + 1, modules)):
                said = len(run.tokens) + number - 1 - run.drafted[number - 1] if number else 0
                waiting = run.waiting[number]
                if said:
                    room = waiting.new_empty(1, waiting.shape[1] + said, self._dim)
                    room[:, : waiting.shape[1]] = waiting
                    waiting = room
                elif not waiting.is_contiguous():
                    waiting = waiting.contiguous()
                states.append(waiting)
                if number < size:
                    reads = len(run.tokens) + number - run.drafted[number]
                    if reads > waiting.shape[1] or reads < 1:
                        raise ValueError(f"module {number} has {waiting.shape[1]} states, not {reads}")
                    rows[number] += reads
            drafted = (_long * modules)(*run.drafted)
            pointers = (_pointer * modules)(*(part.data_ptr() for part in states))
            counts = (_long * modules)(*(part.shape[1] for part in run.waiting))
            kept.append(_Held(caches, tokens, states, drafted, pointers, counts))
            struct.keys, struct.values = ctypes.addressof(caches.keys), ctypes.addressof(caches.values)
            struct.capacity, struct.begun = caches.capacity, run.begun
            struct.tokens, struct.base, struct.count = tokens.data_ptr(), base, len(run.tokens)
            struct.drafted, struct.states = ctypes.addressof(drafted), ctypes.addressof(pointers)
            struct.n_waiting, struct.size, struct.place = ctypes.addressof(counts), size, run.place
            span = max(span, longest)
        threads, drafter, most = torch.get_num_threads(), ctypes.byref(self._drafter), max(rows)
        table = (PlaceStruct * len(places))(
            *(
                PlaceStruct(place.rows.start, place.rows.stop - place.rows.start, place.allowed.data_ptr(),
                            None if place.last is None else place.last.data_ptr(), place.next)
                for place in places
            )
        )  # fmt: skip
        widest = max(place.rows.stop - place.rows.start for place in places)
        need = self._library.draft_bytes(drafter, len(runs), most, span, widest, threads)
        work = torch.empty(need, dtype=torch.uint8)
        self._library.draft(drafter, table, structs, len(runs), most, work.data_ptr(), threads)
        for struct, run, held in zip(structs, runs, kept, strict=True):
            _take(run, struct, held)
        return True


def _take(run: DraftRun, struct: RunStruct, held: _Held) -> None:
    """Write what C has made of a text into its run."""
    drafted = list(held.drafted)
    for number, part in enumerate(held.states):
        read = drafted[number] - run.drafted[number] if number < struct.written else 0
        said = drafted[number - 1] - run.drafted[number - 1] if 0 < number <= struct.written else 0
        known = run.waiting[number].shape[1] + said
        if read:
            run.passed[number] = part[:, :read]
        if read or said:
            run.waiting[number] = part[:, read:known]
    first = len(run.tokens) - struct.base
    run.added, run.drafted = held.tokens[first : first + struct.written].tolist(), drafted


def chain(
    stack: NativeStack | None, joins: Sequence[tuple[Tensor, Tensor, object]], embedding: Tensor, scale: Tensor | None,
    head: object,
) -> Chain | None:  # fmt: skip
    """A :class:`Chain` of these parts, or None where one of them is not for the C kernels."""
    if stack is None or not isinstance(head, NativeLinear):
        return None
    ready = [(embed, hidden, project) for embed, hidden, project in joins if isinstance(project, NativeLinear)]
    floats = [embedding] if scale is None else [scale]
    floats += [part for embed, hidden, _ in ready for part in (embed, hidden)]
    plain = all(part.dtype == torch.float32 and part.is_contiguous() and part.device.type == "cpu" for part in floats)
    if scale is not None:
        plain = plain and embedding.dtype == torch.int8 and embedding.is_contiguous()
    if not plain or len(ready) != len(joins):
        return None
    return Chain(stack, ready, embedding, scale, head)
