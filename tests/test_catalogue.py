"""The catalogue: rows complete, everything they name exists, and every published checkpoint has a row."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from vivavoce.catalogue import CATALOGUE, SHIPPED, SYSTEMS, System, models, reference, system, system_of
from vivavoce.checkpoints.rules import Layout
from vivavoce.checkpoints.sources import SOURCES
from vivavoce.cli import VERBS
from vivavoce.errors import UnknownNameError, nearest

every_row = pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.stem)


@every_row
def test_a_row_is_complete(row: System) -> None:
    assert row.title and row.paper and row.licence and row.streaming and row.layouts and row.sizes
    assert issubclass(reference(row.model), torch.nn.Module)
    assert set(row.verbs) <= set(VERBS)
    assert set(row.parts) | set(row.lineage) <= set(SYSTEMS)
    for module in row.modules:
        assert importlib.util.find_spec(module), module
    assert any(row.stem in module for module in row.modules) and f".{row.room}." in "".join(row.modules)


@every_row
def test_its_layouts_and_sizes_exist(row: System) -> None:
    for path in row.layouts.values():
        table = reference(path)
        assert isinstance(table, Layout) or callable(table)
    config = reference(row.config)
    for call in row.sizes.values():
        method, _, argument = call.partition(":")
        made = getattr(config, method)(*([argument] if argument else [])) if method else config()
        assert isinstance(made, config)


@every_row
def test_what_streams_exactly_has_a_state(row: System) -> None:
    if row.streams == "exact":
        model = reference(row.model)
        assert hasattr(model, "init_state") and hasattr(model, "step")


def test_every_published_checkpoint_has_one_row() -> None:
    named = [name for row in CATALOGUE for name in row.weights]
    assert sorted(named) == sorted(SOURCES)
    for name, source in SOURCES.items():
        assert source.system == system_of(name)
    assert len(SYSTEMS) == len(CATALOGUE)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'whisper'"):
        system("wisper")
    with pytest.raises(UnknownNameError, match="'vits-joe'"):
        system_of("vits-jo")


def test_reading_the_table_imports_nothing_heavy() -> None:
    code = (
        "import sys, vivavoce.catalogue, vivavoce.checkpoints.store; assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_suggestion_stands_inside_its_sentence() -> None:
    assert nearest("wisper", ["whisper"]) == " (did you mean 'whisper'?)" and nearest("xyz", ["whisper"]) == ""


def test_the_models_are_listed_with_their_system() -> None:
    found = {model.name: model for model in models()}
    assert set(found) - set(SHIPPED) == set(SOURCES)
    assert found["silero-vad"].system == "silero" and found["silero-vad"].room == "detect"
    assert found["vits-joe"].to_dict()["verbs"] == SYSTEMS["vits"].verbs
