"""The streaming laws of every row that keeps a state, in float32 with 1e-5 of the largest value."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contracts.cases import STREAMS, Stream
from vivavoce.catalogue import CATALOGUE
from vivavoce.state import fork, leaves, put, stack, take

TICKS = 40


@pytest.fixture(scope="module", params=list(STREAMS))
def stream(request: pytest.FixtureRequest) -> Stream:
    return STREAMS[request.param]()


def close(value: Tensor, wanted: Tensor) -> bool:
    return value.shape == wanted.shape and bool((value - wanted).abs().max() <= 1e-5 * wanted.abs().max())


def test_every_row_that_claims_exact_streaming_is_here() -> None:
    assert {row.stem for row in CATALOGUE if row.streams == "exact"} <= set(STREAMS)


@torch.inference_mode()
def test_forward_is_one_step(stream: Stream) -> None:
    x = stream.draw(2, TICKS, 1)
    whole = stream.whole(x)
    assert whole.abs().max() > 1e-3 and whole.std() > 0
    assert close(stream.run(x, [TICKS])[:, : whole.shape[1]], whole)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=7))
@torch.inference_mode()
def test_any_cutting_gives_the_same(stream: Stream, cuts: list[int]) -> None:
    x = stream.draw(2, sum(cuts), 2)
    whole = stream.whole(x)
    assert close(stream.run(x, cuts)[:, : whole.shape[1]], whole)


@torch.inference_mode()
def test_rows_of_any_age_do_not_touch(stream: Stream) -> None:
    """Three rows that began at different times live in one batch, each as if it were alone."""
    x, ages = stream.draw(3, TICKS, 3), (5, 5, 5) if stream.together else (0, 5, 11)
    unit, further = stream.unit, 6
    states = []
    for row, age in enumerate(ages):
        state = stream.start(1)
        if age:
            _, state = stream.step(x[row : row + 1, ..., : age * unit], state)
        states.append(state)
    pieces = [x[row : row + 1, ..., age * unit : (age + further) * unit] for row, age in enumerate(ages)]
    together, _ = stream.step(torch.cat(pieces), stack([fork(state) for state in states]))
    for row, (piece, state) in enumerate(zip(pieces, states, strict=True)):
        alone, _ = stream.step(piece, state)
        assert close(together[row : row + 1], alone), ages[row]


@torch.inference_mode()
def test_what_comes_later_changes_nothing_before(stream: Stream) -> None:
    x, known = stream.draw(1, TICKS, 4), 3 * TICKS // 4
    other = torch.cat([x[..., : known * stream.unit], stream.draw(1, TICKS - known, 5)], dim=-1)
    first, second = stream.whole(x), stream.whole(other)
    columns = first.shape[1] // TICKS
    settled = max(1, known - stream.ahead) * columns
    assert known > stream.ahead, "the test is vacuous: nothing is settled yet"
    assert close(first[:, :settled], second[:, :settled])
    assert not torch.allclose(first[:, known * columns :], second[:, known * columns :])


@torch.inference_mode()
def test_states_fork_stack_take_and_put(stream: Stream) -> None:
    x, more = stream.draw(2, 8, 6), stream.draw(2, 4, 7)
    _, state = stream.step(x, stream.start(2))
    assert all(leaf.shape[0] == 2 for leaf in leaves(state))
    kept = fork(state)
    wanted, _ = stream.step(more, fork(state))
    stream.step(stream.draw(2, 4, 8), state)  # another future of the same past, which may write in place
    assert close(stream.step(more, fork(kept))[0], wanted)

    turned = torch.tensor([1, 0])
    assert close(stream.step(more[turned], take(kept, turned))[0], wanted[turned])
    rows = [take(kept, torch.tensor([row])) for row in (0, 1)]
    assert close(stream.step(more, stack(rows))[0], wanted)
    pool = fork(kept)
    stream.step(more, fork(pool))
    if stream.together:
        return
    pool = put(stream.step(stream.draw(2, 4, 9), pool)[1], turned, take(kept, turned))
    assert close(stream.step(more, pool)[0], wanted)


class _Work(TorchDispatchMode):
    """Counts the numbers that every operation gives: what a step costs, whatever the machine."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.total += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


@torch.no_grad()
def test_the_work_of_a_step_is_constant(stream: Stream) -> None:
    """Nothing is decoded again: a step costs the same each time, or grows by what attention has more to read."""
    steps, piece = [], max(2, stream.ahead)
    state = stream.start(1)
    for n in range(10):
        x = stream.draw(1, piece, n)
        with _Work() as work:
            _, state = stream.step(x, state)
        steps.append(work.total)
    settled = steps[3:]  # the first ones lie at the stream's edge, or prepare kernels
    growth = {later - earlier for earlier, later in pairwise(settled)}
    assert len(growth) == 1
    if stream.grows:
        assert 0 < growth.pop() < 0.2 * settled[0]
    else:
        assert growth == {0}
