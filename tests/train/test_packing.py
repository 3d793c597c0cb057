"""Documents packed into rows: each once an epoch within the budget, and the loss is that of each alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import randomised
from vivavoce.dialogue.vita_audio import VITAAudio, VITAAudioConfig
from vivavoce.errors import ConfigError
from vivavoce.train.packing import Document, PackedBatches, joined

sizes_of_items = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@settings(max_examples=40, deadline=None)
@given(sizes=sizes_of_items, length=st.integers(40, 120), rows=st.integers(1, 4), seed=st.integers(0, 9))
def test_an_epoch_holds_every_document_once(sizes: list[int], length: int, rows: int, seed: int) -> None:
    batches, seen, step = PackedBatches(sizes, length, rows, seed), list[int](), 0
    while len(seen) < len(sizes):
        assert 1 <= len(batches[step]) <= rows
        for row in batches[step]:
            assert row and sum(sizes[item] for item in row) <= length
            seen += row
        step += 1
    assert sorted(seen) == list(range(len(sizes)))
    assert PackedBatches(sizes, length, rows, seed)[step - 1] == batches[step - 1]


def test_rows_are_full_and_epochs_differ() -> None:
    sizes = [5 + number % 7 for number in range(200)]
    batches = PackedBatches(sizes, 100, 1, 0)
    first, steps = [batches[step] for step in range(14)], 14
    assert sum(sizes[item] for step in first for row in step for item in row) > 0.92 * 100 * steps
    assert [batches[step] for step in range(20, 34)] != first != [PackedBatches(sizes, 100, 1, 1)[s] for s in range(14)]
    with pytest.raises(ConfigError, match="a document of 11 tokens does not fit a row of 10"):
        PackedBatches(sizes, 10, 1, 0)
    with pytest.raises(ConfigError, match="nothing to draw"):
        PackedBatches([], 10, 1, 0)


def documents(count: int) -> list[Document]:
    random = torch.Generator().manual_seed(0)
    made = list[Document]()
    for number in range(count):
        ids = torch.randint(61, (6 + 3 * number,), generator=random).tolist()
        prompt = 2 + number % 3
        made.append((ids, [-100] * prompt + ids[prompt:]))
    return made


def sums(model: VITAAudio, rows: list[list[Document]]) -> tuple[Tensor, Tensor]:
    """Summed losses and numbers of learned tokens, of backbone and modules."""
    pairs = model.predict(*joined(rows))
    losses = [F.cross_entropy(model.logits(hidden), wanted, reduction="sum") for hidden, wanted in pairs]
    return torch.stack(losses), torch.tensor([len(wanted) for _, wanted in pairs])


def test_the_loss_of_packed_documents_is_that_of_each_alone() -> None:
    model, found = randomised(VITAAudio(VITAAudioConfig.tiny())), documents(6)
    assert isinstance(model, VITAAudio)
    alone = [sums(model, [[document]]) for document in found]
    total, count = (sum(part[i] for part in alone) for i in (0, 1))
    for rows in ([found], [found[:2], found[2:5], found[5:]], [[document] for document in found]):
        packed, packed_count = sums(model, rows)
        assert torch.equal(packed_count, torch.as_tensor(count))
        assert torch.allclose(packed, torch.as_tensor(total), rtol=1e-5)
        terms = model.loss_terms(*joined(rows))
        assert torch.allclose(terms["main"], packed[0] / packed_count[0], rtol=1e-5)
        assert torch.allclose(terms["modules"], packed[1:] / packed_count[1:], rtol=1e-5)


def test_packed_documents_do_not_see_each_other() -> None:
    model, found = randomised(VITAAudio(VITAAudioConfig.tiny())), documents(3)
    assert isinstance(model, VITAAudio)
    other = ([7] * len(found[0][0]), found[0][1])
    one, changed = (sums(model, [[first, *found[1:]]])[0] - sums(model, [[first]])[0] for first in (found[0], other))
    assert torch.allclose(one, changed, rtol=1e-4)
    tokens, labels, positions = joined([[found[2], found[0]], [found[1]]])
    assert tokens.shape == labels.shape == positions.shape == (2, 18)
    assert positions[0].tolist() == [*range(12), *range(6)] and positions[1].tolist() == [*range(9), *range(9)]
    assert (labels[1, 9:] == -100).all() and tokens[0, 12:].tolist() == found[0][0]
