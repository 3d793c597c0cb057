"""Integer weights of a file are compared with the layers they replace, and every mismatch is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.tiny import int8, randomised
from torch import Tensor, nn

from vivavoce.checkpoints.native import build
from vivavoce.errors import CheckpointError
from vivavoce.lm.llama import Llama, LlamaConfig
from vivavoce.nn.quantized import Int4Linear, Int8Embedding, Int8Linear, install_int8, pack_tiles


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 64)
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 32)
        self.down = nn.Linear(32, 64, bias=False)


def tiles(n: int, k: int) -> Tensor:
    levels = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return pack_tiles(levels, torch.ones(n, k // 32), torch.zeros(n, k // 32))


def stored() -> dict[str, Tensor]:
    made = int8({key: value for key, value in Small().state_dict().items() if not key.startswith("down")})
    return made | {"down.tiles": tiles(64, 32)}


def test_what_fits_is_installed() -> None:
    module = Small()
    rest = install_int8(module, stored())
    assert isinstance(module.embedding, Int8Embedding) and isinstance(module.up, Int8Linear)
    assert isinstance(module.down, Int4Linear) and sorted(rest) == ["norm.bias", "norm.weight"]


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "up.weight": lambda t: t.update({"up.weight": t["up.weight"][:-1]}),
    "up.weight ": lambda t: t.update({"up.weight": t["up.weight"].float()}),
    "up.weight  ": lambda t: t.update({"up.weight": t["up.weight"].flatten()}),
    "up.weight   ": lambda t: t.pop("up.weight"),
    "up.weight_scale": lambda t: t.update({"up.weight_scale": t["up.weight_scale"][:, None]}),
    "up.weight_scale ": lambda t: t.update({"up.weight_scale": t["up.weight_scale"].int()}),
    "up.bias": lambda t: t.update({"up.bias": t["up.bias"][1:]}),
    "up.bias ": lambda t: t.pop("up.bias"),
    "embedding.weight": lambda t: t.update({"embedding.weight": t["embedding.weight"][:, 1:]}),
    "embedding.bias": lambda t: t.update({"embedding.bias": torch.zeros(8)}),
    "norm": lambda t: t.update({"norm.weight_scale": torch.ones(64)}),
    "norm ": lambda t: t.update({"norm.tiles": tiles(64, 64)}),
    "embedding": lambda t: t.update({"embedding.tiles": tiles(8, 64)}),
    "down.tiles": lambda t: t.update({"down.tiles": t["down.tiles"][:-1]}),
    "down.tiles ": lambda t: t.update({"down.tiles": t["down.tiles"].char()}),
    "down.bias": lambda t: t.update({"down.bias": torch.zeros(64)}),
    "down": lambda t: t.update({"down.weight_scale": torch.ones(64)}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_one_sentence(name: str) -> None:
    tensors = stored()
    CHANGES[name](tensors)
    with pytest.raises(CheckpointError, match=r": pull the model again$") as error:
        install_int8(Small(), tensors)
    assert name.strip() in str(error.value) and "\n" not in str(error.value)


def test_floats_to_be_rounded_are_compared_too() -> None:
    tensors = Small().state_dict()
    module = Small()
    rest = install_int8(module, tensors, lambda name: False)
    assert isinstance(module.down, Int8Linear) and sorted(rest) == ["norm.bias", "norm.weight"]
    with pytest.raises(CheckpointError, match=r"up.weight is \[32, 63\]"):
        install_int8(Small(), {**tensors, "up.weight": tensors["up.weight"][:, 1:]}, lambda name: False)


def test_a_head_of_four_bits_is_not_the_embedding() -> None:
    """A file whose head is tiles and whose embedding is int8: the head is computed from its own tiles."""
    config = replace(LlamaConfig.tiny(), vocab_size=48, tied=False)
    dim = config.decoder.dim - config.decoder.dim % 32 or 32
    config = replace(config, decoder=replace(config.decoder, dim=dim))
    state = randomised(Llama(config)).state_dict()
    tensors = int8({key: value for key, value in state.items() if key != "head.weight"})
    tensors["head.tiles"] = tiles(48, dim)
    model = build(Llama, config, tensors)
    assert isinstance(model.head, Int4Linear)
    # an embedding in floats is no head either
    floats = {key: value for key, value in state.items() if key != "head.weight"} | {"head.tiles": tiles(48, dim)}
    model = build(Llama, config, floats)
    assert isinstance(model.head, Int4Linear)
