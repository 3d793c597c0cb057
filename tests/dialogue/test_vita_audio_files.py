"""Bundles of VITA-Audio on disk: written small, read back, refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from tests.dialogue.vita_parts import parts

from vivavoce.checkpoints.compact import expand, shrink
from vivavoce.dialogue.vita_audio_files import open_bundle, read_config, save_bundle, small_weight
from vivavoce.errors import CheckpointError


def test_a_bundle_comes_back_as_its_small_form(tmp_path):
    p = parts()
    save_bundle(tmp_path / "talk", p)
    again = open_bundle(tmp_path / "talk")
    assert again.tokens.codes == p.tokens.codes and again.interleave == p.interleave and again.name == "talk"
    small = expand(shrink({f"model.{k}": v for k, v in p.model.state_dict().items()}, small_weight))
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, small[f"model.{name}"]), name


def test_another_number_of_modules_is_refused(tmp_path):
    save_bundle(tmp_path / "talk", parts())
    with pytest.raises(CheckpointError, match="has 10 prediction modules, not 1"):
        open_bundle(tmp_path / "talk", modules=1)


def test_a_missing_part_is_told(tmp_path):
    save_bundle(tmp_path / "talk", parts())
    (tmp_path / "talk" / "config.json").write_text('{"system": "whisper", "config": {}}', "utf-8")
    with pytest.raises(CheckpointError, match="holds a whisper"):
        open_bundle(tmp_path / "talk")


def test_foreign_configurations_are_refused():
    with pytest.raises(CheckpointError, match="qwen2_mtp"):
        read_config({"model_type": "qwen2"})
    with pytest.raises(CheckpointError, match="incomplete"):
        read_config({"model_type": "qwen2_mtp"})
