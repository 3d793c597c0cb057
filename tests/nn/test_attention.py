"""The attention kernel and its cache: cached steps equal the whole, rows do not touch, beams reorder."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.nn.attention import append, attend, init_cache, reorder, visible
from vivavoce.nn.decoder import Decoder, DecoderConfig
from vivavoce.nn.quantized import Int8Linear, quantize_rows
from vivavoce.state import fork, take

CONFIG = DecoderConfig(dim=24, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=8, ffn_dim=40, context=64, qkv_bias=True)


def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms of one and zero biases would hide mistakes
        parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    return model


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = torch.einsum("bhtd,bhkd->bhtk", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhtk,bhkd->bhtd", scores.softmax(-1), value)


def test_attend_equals_the_formula() -> None:
    torch.manual_seed(1)
    for length in (1, 5):
        query, key, value = torch.randn(2, 6, length, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
        mask = torch.rand(2, 1, length, 9) > 0.3
        mask[..., 0] = True
        for given_mask in (None, mask):
            torch.testing.assert_close(attend(query, key, value, given_mask), naive(query, key, value, given_mask))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_any_cutting_gives_the_same(cuts: list[int]) -> None:
    model, total = decoder(), sum(cuts)
    x = torch.randn(2, total, CONFIG.dim, generator=torch.Generator().manual_seed(total))
    whole = model(x)
    state, pieces, at = model.init_state(2, total), [], 0
    for cut in cuts:
        y, state = model.step(x[:, at : at + cut], state, at + cut)
        pieces.append(y)
        at += cut
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)


def test_rows_of_different_age_do_not_touch() -> None:
    model = decoder()
    x = torch.randn(1, 7, CONFIG.dim)
    y = torch.randn(1, 7, CONFIG.dim)
    _, old = model.step(x[:, :5], model.init_state(1, 16))
    _, young = model.step(y[:, :2], model.init_state(1, 16))
    from vivavoce.state import stack

    both = stack([old, young])
    out, _ = model.step(torch.cat([x[:, 5:6], y[:, 2:3]]), both)
    torch.testing.assert_close(out[0], model(x)[0, 5:6], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[1], model(y)[0, 2:3], rtol=1e-5, atol=1e-5)


def test_later_input_never_changes_earlier_output() -> None:
    model = decoder()
    x = torch.randn(1, 8, CONFIG.dim)
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(model(x)[:, :5], model(changed)[:, :5])
    assert not torch.allclose(model(x)[:, 5:], model(changed)[:, 5:])


def test_fork_continues_twice() -> None:
    model = decoder()
    x = torch.randn(1, 4, CONFIG.dim)
    _, state = model.step(x[:, :3], model.init_state(1, 8))
    copy = fork(state)
    first, _ = model.step(x[:, 3:], state)
    other, _ = model.step(torch.randn(1, 1, CONFIG.dim), copy)
    again, _ = model.step(x[:, 3:], take(fork(copy), torch.tensor([0])))
    torch.testing.assert_close(first, model(x)[:, 3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, other) and again.shape == first.shape


def test_reorder_copies_only_what_lives() -> None:
    cache = init_cache(3, 2, 5, 4, torch.zeros(1))
    cache = append(cache, torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 4), torch.zeros(3, 2, 2, 4))
    moved = reorder(cache, torch.tensor([2, 2, 0]), 2)
    assert moved.key[:, 0, 0, 0].tolist() == [2.0, 2.0, 0.0]
    wider = reorder(moved, torch.tensor([0, 0, 1, 2]), 2)
    assert wider.key.shape[0] == 4 and wider.position.tolist() == [2, 2, 2, 2]


def test_visible_is_causal_from_each_rows_age() -> None:
    mask = visible(torch.tensor([0, 3]), 2, 5)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, False, False, False, False], [True, True, False, False, False]]
    assert mask[1, 0].tolist() == [[True, True, True, True, False], [True] * 5]


def test_int8_rows_are_close_and_independent() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    layer = Int8Linear.from_linear(linear)
    x = torch.randn(5, 64)
    wanted = linear(x)
    assert ((layer(x) - wanted).norm() / wanted.norm()) < 0.02
    loud = x.clone()
    loud[0] *= 1000  # one loud row must not coarsen the others
    torch.testing.assert_close(layer(loud)[1:], layer(x)[1:])
    weight, scale = quantize_rows(linear.weight)
    assert (weight.float() * scale[:, None] - linear.weight).abs().max() <= scale.max() / 2 + 1e-7
