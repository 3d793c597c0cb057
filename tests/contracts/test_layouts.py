"""Every published layout of every row: written and read back, and a fault in table or file never passes unseen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.contracts.cases import layouts
from vivavoce.catalogue import CATALOGUE, reference
from vivavoce.checkpoints.layouts import llama
from vivavoce.checkpoints.rules import Drop, Layout, detect, export_weights, import_weights
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import LlamaConfig

CASES = list(layouts())


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _, _ in CASES])
def case(request: pytest.FixtureRequest) -> tuple[Layout, dict[str, Tensor], dict[str, Tensor]]:
    """(table, our weights, theirs): random numbers under the published keys."""
    _, table, make = request.param
    return table, *_written(table, make)


def _written(table: Layout, make: Callable[[], nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    ours = {key: value.contiguous().clone() for key, value in make().state_dict().items()}
    for key in ours:  # what a layout cannot hold, because the published model does not have it
        if table.name.startswith("whisper") and "CTranslate2" not in table.name and key.endswith("qkv.bias"):
            ours[key][len(ours[key]) // 3 : 2 * len(ours[key]) // 3] = 0  # the key's bias
        if table.name.startswith("whisper") and "CTranslate2" not in table.name and key.endswith("cross_kv.bias"):
            ours[key][: len(ours[key]) // 2] = 0
    return ours, {key: value.clone() for key, value in export_weights(table, ours).items()}


def _shapes(ours: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in ours.items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)


def test_all_layouts_of_the_catalogue_are_here() -> None:
    made = ("llama", "vita_audio", "vita_audio_plus")  # tables for the head counts of one file
    named = {id(reference(path)) for row in CATALOGUE if row.stem not in made for path in row.layouts.values()}
    assert named == {id(table) for name, table, _ in CASES if not name.startswith(made)}


def test_written_read_and_written_again(case) -> None:
    table, ours, theirs = case
    read = import_weights(table, theirs, _shapes(ours))
    assert _same(read, ours)
    assert _same(export_weights(table, read), theirs)


def test_a_file_is_told_by_its_keys(case) -> None:
    table, _, theirs = case
    every = [reference(path) for row in CATALOGUE for path in row.layouts.values()]
    known = [found for found in every if isinstance(found, Layout)]
    if table.name.startswith(("llama", "vita_audio")):
        known.append(table)  # made for the head counts of one file
    assert detect(theirs, known).name == table.name


def test_a_changed_number_is_seen(case) -> None:
    table, ours, theirs = case
    for key in list(theirs)[:: max(1, len(theirs) // 12)]:
        changed = {**theirs, key: theirs[key] + 0.5}
        assert not _same(import_weights(table, changed, _shapes(ours)), ours), key


def test_a_missing_or_surplus_or_misshapen_tensor_is_named(case) -> None:
    table, ours, theirs = case
    shapes = _shapes(ours)
    key = next(k for k in theirs if k.endswith("weight") or k.endswith("weight_v"))
    with pytest.raises(CheckpointError, match="missing"):
        import_weights(table, {k: v for k, v in theirs.items() if k != key}, shapes)
    with pytest.raises(CheckpointError, match=r"surplus: something\.else"):
        import_weights(table, {**theirs, "something.else": torch.zeros(1)}, shapes)
    with pytest.raises(CheckpointError):
        import_weights(table, {**theirs, key: torch.zeros(3, 1, 7, 5)}, shapes)


def test_a_layer_too_many_is_seen(case) -> None:
    """A file of a deeper model does not load half."""
    table, ours, theirs = case
    more = {re.sub(r"(?<=\D)1(?=\D)", "41", key, count=1): value for key, value in theirs.items()}
    assert more.keys() != theirs.keys()
    with pytest.raises(CheckpointError, match=r"surplus: .*41"):
        import_weights(table, {**theirs, **more}, _shapes(ours))


def test_a_deleted_row_is_seen(case) -> None:
    """Without the rows that fill one key of ours, neither writing nor reading may pass."""
    table, ours, theirs = case
    kinds = [own for own in dict.fromkeys(row.own for row in table.rows) if own]
    deleted = 0
    for own in kinds[:: max(1, len(kinds) // 16)]:
        fewer = replace(table, rows=tuple(row for row in table.rows if row.own != own))
        try:
            export_weights(fewer, ours)
            continue  # rows for variants that this model is not
        except CheckpointError:
            deleted += 1
        with pytest.raises(CheckpointError):
            import_weights(fewer, theirs, _shapes(ours))
    assert deleted >= 4


def test_dropped_keys_say_why(case) -> None:
    table, _, _ = case
    for row in table.rows:
        if isinstance(row.operation, Drop):
            assert len(row.operation.reason) > 8


@pytest.mark.parametrize("name", ["transformers", "gguf"])
def test_the_parts_of_shared_keys_have_their_own_heights(name: str) -> None:
    """Query, key and value come out as wide as their heads, and as the same numbers."""
    decoder = LlamaConfig.tiny().decoder
    joined = torch.arange(5.0 * decoder.head_dim)[:, None].expand(-1, decoder.dim)
    table = getattr(llama, name)(decoder.n_heads, decoder.n_kv_heads)
    rows = tuple(row for row in table.rows if row.own == ("decoder.layers.{i}.qkv.{w}",))
    written = export_weights(replace(table, rows=rows), {"decoder.layers.0.qkv.weight": joined})
    assert [len(part) for part in written.values()] == [24, 8, 8]
    starts = [part.min().item() for part in written.values()]
    assert starts == [0, 24, 32]


def test_the_layouts_of_a_system_are_those_of_its_row() -> None:
    for stem in ("whisper", "silero", "vits", "hifigan"):
        row = next(row for row in CATALOGUE if row.stem == stem)
        module = next(iter(row.layouts.values())).partition(":")[0]
        assert [id(reference(path)) for path in row.layouts.values()] == [id(t) for t in reference(f"{module}:LAYOUTS")]
