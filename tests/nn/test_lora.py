"""Adapters: they change nothing at first, they alone learn, and merged they do the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vivavoce.errors import ConfigError
from vivavoce.nn.decoder import Decoder, DecoderConfig
from vivavoce.nn.lora import LoRALinear, attach, merge

CONFIG = DecoderConfig(
    dim=24, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=8, ffn_dim=40, context=32, qkv_bias=True
)  # fmt: skip


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG)


def test_at_first_nothing_changes() -> None:
    plain, x = decoder(), torch.randn(2, 5, 24)
    adapted = copy.deepcopy(plain)
    adapters = attach(adapted, 4, 8.0)
    assert len(adapters) == 8 and "layers.1.gate_up" in adapters and adapters["layers.0.qkv"].scale == 2.0
    assert torch.equal(adapted(x), plain(x))


def test_merged_is_the_same() -> None:
    net = decoder()
    names, plain = list(net.state_dict()), copy.deepcopy(net)
    for adapter in attach(net, 4, 8.0).values():
        nn.init.normal_(adapter.difference.up, std=0.1)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        apart = net(x)
        merge(net)
        whole = net(x)
    assert list(net.state_dict()) == names and not any(isinstance(m, LoRALinear) for m in net.modules())
    assert (apart - whole).abs().max() < 1e-6 * apart.abs().max()
    assert (apart - plain(x)).abs().max() > 0.01 * apart.abs().max()


def test_adapters_alone_move() -> None:
    net = decoder()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    attach(net.requires_grad_(False), 2, 2.0)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(1, 4, 24)).square().sum().backward()
        optimizer.step()
    after = {name.replace(".linear.", "."): tensor for name, tensor in net.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[f"layers.{n}.down.difference.up"].abs().max() > 0 for n in (0, 1))


def test_layers_are_chosen_by_name() -> None:
    net = decoder()
    adapters = attach(net, 3, 3.0, lambda name: name.endswith("qkv"))
    assert list(adapters) == ["layers.0.qkv", "layers.1.qkv"]
    assert sum(p.numel() for a in adapters.values() for p in a.difference.parameters()) == 2 * 3 * (24 + 40)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match="a rank of 25 does not fit a layer of 24 by 40; take one from 1 to 24"):
        attach(decoder(), 25, 1.0)
    with pytest.raises(ConfigError, match="no linear layer was chosen"):
        attach(decoder(), 2, 1.0, lambda name: name == "head")
