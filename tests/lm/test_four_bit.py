"""What conversions to 4 bits declare and write: a tied head once, and no holes."""

from __future__ import annotations

import pytest
import torch

from vivavoce.lm.llama import LlamaConfig
from vivavoce.lm.llama_four_bit import integer_shapes
from vivavoce.nn.decoder import DecoderConfig


@pytest.mark.parametrize("tied", [True, False])
def test_what_a_converted_file_declares(tied: bool) -> None:
    decoder = DecoderConfig(dim=64, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96, context=32)
    config = LlamaConfig(decoder=decoder, vocab_size=50, tied=tied)
    shapes = integer_shapes(config, {"decoder.layers.0.out.weight"})
    assert ("head.weight" in shapes) is not tied and ("head.weight_scale" in shapes) is not tied
    assert "decoder.layers.0.out.tiles" in shapes and "decoder.layers.0.out.weight" not in shapes
    assert shapes["decoder.norm.weight"] == ("F32", (64,))


def test_a_hole_is_refused(tmp_path) -> None:
    from vivavoce.conversions import write_parts
    from vivavoce.errors import CheckpointError

    declared = {"a": ("F32", (2,)), "b": ("F32", (2,))}
    with pytest.raises(CheckpointError, match="no weights for b"):
        write_parts(tmp_path / "m.safetensors", declared, [{"a": torch.ones(2)}])
