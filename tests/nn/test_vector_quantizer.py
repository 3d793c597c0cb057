"""Vector quantisation: nearest rows, gradients past them, a codebook that follows what falls to it."""

from __future__ import annotations

import pytest
import torch

from vivavoce.nn.vector_quantizer import CodebookUpkeep, VectorQuantizer, k_means


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def clusters(each: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (N, 3) around four far centres, and which centre each belongs to."""
    centres = torch.tensor([[5.0, 0, 0], [-5, 0, 0], [0, 5, 0], [0, 0, 5]])
    belongs = torch.arange(4).repeat_interleave(each)
    return centres[belongs] + 0.3 * torch.randn(4 * each, 3), belongs


def test_codes_are_the_nearest_rows() -> None:
    quantizer = VectorQuantizer(20, 6)
    x = torch.randn(3, 7, 6)
    codes = quantizer(x)
    assert codes.shape == (3, 7)
    assert torch.equal(codes, torch.cdist(x.flatten(0, 1), quantizer.weight).argmin(1).view(3, 7))
    assert torch.equal(quantizer(quantizer.embed(codes)), codes)
    quantizer.weight.data[7] = quantizer.weight.data[2]
    assert quantizer(quantizer.weight[7:8]).item() == 2, "the first of equals"


def test_gradients_pass_straight_and_the_commitment_pulls() -> None:
    quantizer = VectorQuantizer(8, 4)
    x = torch.randn(5, 4, requires_grad=True)
    rows, codes, commit = quantizer.straight_through(x)
    assert torch.allclose(rows, quantizer.embed(codes), atol=1e-6) and torch.equal(codes, quantizer(x))
    (gradient,) = torch.autograd.grad((rows * torch.arange(4.0)).sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.arange(4.0).expand(5, 4))
    (pull,) = torch.autograd.grad(commit, x)
    assert torch.allclose(pull, 2 * (x - quantizer.embed(codes)).detach() / x.numel(), atol=1e-6)


def test_k_means_parts_the_clusters() -> None:
    x, belongs = clusters()
    found = VectorQuantizer(12, 3)
    found.weight.data = k_means(x, 12)
    codes = found(x)
    assert len(codes.unique()) == 12
    for code in range(12):
        fell = codes == code
        assert len(belongs[fell].unique()) == 1, "a row serves one cluster"
        assert torch.allclose(found.weight[code], x[fell].mean(0), atol=0.05)


def test_k_means_fills_empty_rows() -> None:
    x = torch.randn(6, 3)
    rows = k_means(x.repeat(30, 1), 6, rounds=40)
    assert all((row - x).norm(dim=1).min() < 1e-5 for row in rows)


def test_the_codebook_follows_running_means() -> None:
    x, belongs = clusters()
    quantizer = VectorQuantizer(4, 3)
    quantizer.weight.data = torch.stack([x[belongs == centre].mean(0) for centre in range(4)])
    upkeep, moved = CodebookUpkeep(quantizer, decay=0.9), x + 1.0
    before = quantizer.weight.detach().clone()
    upkeep.update(quantizer, x, quantizer(x))
    assert torch.allclose(quantizer.weight, before, atol=1e-4), "means stay where their vectors are"
    for _ in range(60):
        upkeep.update(quantizer, moved, quantizer(moved))
    assert torch.allclose(quantizer.weight, before + 1.0, atol=0.05)
    assert torch.allclose(upkeep.count, torch.full((4,), 50.0), atol=0.2)


def test_unused_rows_are_put_onto_vectors() -> None:
    x, _ = clusters()
    quantizer = VectorQuantizer(6, 3)
    quantizer.weight.data[:4] = k_means(x, 4)
    quantizer.weight.data[4:] = 1000.0
    upkeep = CodebookUpkeep(quantizer, decay=0.5, restart_below=0.3)
    restarted = [int(upkeep.update(quantizer, x, quantizer(x))) for _ in range(2)]
    assert restarted == [0, 2], "a row counts as used once at first, so it is given up a step later"
    assert all((x == row).all(1).any() for row in quantizer.weight[4:])
