"""4-bit layers compute what the published blocks say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivavoce.checkpoints.gguf import BY_NAME, dequantise, four_bit_groups
from vivavoce.nn.quantized import Int4Linear, pack_tiles


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_layer_equals_the_dequantised_matrix(kind: str) -> None:
    rng, n, k = np.random.default_rng(0), 48, 256
    block = BY_NAME[kind]
    blocks = rng.integers(0, 256, (n, k // block.weights * block.bytes), dtype=np.uint8)
    view = blocks.reshape(-1, block.bytes)
    for start in {"Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2)}[kind]:  # halves that random bytes would make infinite
        halves = rng.uniform(-0.1, 0.1, (len(view), 1)).astype(np.float16)
        view[:, start : start + 2] = halves.view(np.uint8)
    groups = four_bit_groups(kind, blocks)
    assert groups is not None
    levels, scale, low = (torch.from_numpy(part) for part in groups)
    weight = torch.from_numpy(dequantise(kind, blocks))
    exact = levels.float().view(n, -1, 32) * scale[..., None] + low[..., None]
    torch.testing.assert_close(exact.view(n, k), weight, rtol=1e-6, atol=1e-6)
    layer = Int4Linear(pack_tiles(levels, scale, low), n, torch.arange(float(n)))
    x = torch.randn(3, 5, k, generator=torch.Generator().manual_seed(0))
    wanted = x @ weight.T + torch.arange(float(n))
    assert (layer(x) - wanted).norm() / wanted.norm() < 1.5e-2  # activations are rounded to 8 bits


def test_other_types_are_left_to_int8() -> None:
    assert four_bit_groups("Q6_K", np.zeros((2, 210), np.uint8)) is None
