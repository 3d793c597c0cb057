"""Small forms of weights: what comes back is near what went in, and as small as promised."""

from __future__ import annotations

import pytest
import torch

from vivavoce.checkpoints.compact import expand, shrink


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8.1, 0.01), ("int4", 4.6, 0.12), ("half", 16, 1e-3)])
def test_there_and_back(kind, bits, error):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 64)[:, None]
    small = shrink({"a.weight": weight}, lambda name, tensor: kind)
    back = expand(small)["a.weight"]
    assert ((back - weight).norm(dim=1) / weight.norm(dim=1)).max() < error
    assert 8 * sum(t.numel() * t.element_size() for t in small.values()) / weight.numel() < bits + 0.2


def test_vectors_and_odd_widths_are_not_cut_into_groups():
    small = shrink({"bias": torch.randn(7), "conv": torch.randn(4, 5, 3)}, lambda name, tensor: "int4")
    assert small["bias"].dtype == torch.float16 and small["conv"].dtype == torch.int8
    assert expand(small)["conv"].shape == (4, 5, 3)


def test_zeros_stay_zeros():
    for kind in ("int8", "int4"):
        zeros = torch.zeros(3, 64)
        assert torch.equal(expand(shrink({"w": zeros}, lambda name, tensor, kind=kind: kind))["w"], zeros)


@pytest.mark.parametrize("kind", ["int8", "int4", "half"])
def test_rounding_twice_changes_nothing(kind):
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    once = expand(shrink({"w": weight}, lambda name, tensor: kind))
    assert torch.equal(expand(shrink(once, lambda name, tensor: kind))["w"], once["w"])
