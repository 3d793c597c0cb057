"""Layout tables: reading is total, writing is its inverse, and every fault is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vivavoce.checkpoints.rules import (
    Chain,
    Drop,
    Each,
    Fill,
    Inverse,
    Join,
    Layout,
    Reshape,
    RopeHalves,
    Row,
    Scale,
    Split,
    Squeeze,
    Tie,
    Transpose,
    WeightNorm,
    detect,
    export_weights,
    import_weights,
)
from vivavoce.errors import CheckpointError

LAYOUT = Layout(
    "everything",
    ("blocks.{i}.q.weight", "ups.{i}.weight_g"),
    (
        Row(("blocks.{i}.q.weight", "blocks.{i}.k.weight", "blocks.{i}.v.weight"), "layers.{i}.qkv.weight", Join(0)),
        Row(
            ("blocks.{i}.q.bias", "blocks.{i}.k.bias", "blocks.{i}.v.bias"),
            "layers.{i}.qkv.bias",
            Join(0, zero_if_missing=(1,)),
        ),
        Row("blocks.{i}.out.{w}", "layers.{i}.out.{w}"),
        Row("blocks.{i}.conv.weight", "layers.{i}.gate.weight", Squeeze(-1)),
        Row("blocks.{i}.mlp.weight", ("layers.{i}.up.weight", "layers.{i}.down.weight"), Split(0)),
        Row("ups.{i}.weight", "decoder.{i}.weight", WeightNorm()),
        Row("flows.{2*i}.weight", "couplings.{i}.weight", Transpose()),
        Row("logs", "scale.log", Reshape((1, -1, 1))),
        Row("temperature", "scale.temperature", Scale(-2.0)),
        Row("emb.weight", ("embed.weight", "head.weight"), Tie()),
        Row(
            ("rope.q", "rope.k"),
            "rope.qk",
            Chain(Each(RopeHalves(4), RopeHalves(2)), Join(0, sizes=(2, 1))),
        ),
        Row("inverse.rope", "rope.inverse", Inverse(RopeHalves(2))),
        Row((), "constant", Fill(3.0)),
        Row("training.*", None, Drop("training only")),
        Row("maybe.{i}", "perhaps.{i}", optional=True),
    ),
)


def ours(seed: int = 0, n_layers: int = 2, width: int = 4) -> dict[str, Tensor]:
    """A random state dict that the layout above can write."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights: dict[str, Tensor] = {"scale.log": draw(5), "scale.temperature": draw(1), "constant": torch.full((2,), 3.0)}
    weights["embed.weight"] = draw(7, width)
    weights["head.weight"] = weights["embed.weight"].clone()
    weights |= {"rope.qk": draw(24, width), "rope.inverse": draw(8)}
    for i in range(n_layers):
        weights[f"layers.{i}.qkv.weight"] = draw(3 * width, width)
        weights[f"layers.{i}.qkv.bias"] = draw(3 * width)
        weights[f"layers.{i}.qkv.bias"][width : 2 * width] = 0
        weights[f"layers.{i}.out.weight"] = draw(width, width)
        weights[f"layers.{i}.gate.weight"] = draw(width, 3)
        weights[f"layers.{i}.up.weight"] = draw(6, width)
        weights[f"layers.{i}.down.weight"] = draw(2, width)
        weights[f"decoder.{i}.weight"] = draw(width, 3, 2)
        weights[f"couplings.{i}.weight"] = draw(3, width)
    return weights


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([2, 4, 6]))
@settings(max_examples=20, deadline=None)
def test_import_undoes_export(seed: int, n_layers: int, width: int) -> None:
    weights = ours(seed, n_layers, width)
    theirs = export_weights(LAYOUT, weights)
    assert "blocks.0.k.bias" not in theirs and "blocks.0.q.bias" in theirs
    assert "flows.2.weight" in theirs or n_layers == 1
    back = import_weights(LAYOUT, theirs, shapes_of(weights))
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-6, atol=1e-6)
        assert torch.equal(back[key], tensor) or key.startswith("decoder.")


def test_every_deleted_foreign_key_is_named() -> None:
    weights = ours()
    theirs = export_weights(LAYOUT, weights)
    for key in theirs:
        rest = {name: tensor for name, tensor in theirs.items() if name != key}
        with pytest.raises(CheckpointError, match="missing"):
            import_weights(LAYOUT, rest, shapes_of(weights))


def test_every_deleted_row_is_noticed() -> None:
    weights = ours()
    theirs = export_weights(LAYOUT, weights)
    for row in LAYOUT.rows:
        if row.optional or isinstance(row.operation, Drop):
            continue
        cut = Layout("cut", LAYOUT.signature, tuple(other for other in LAYOUT.rows if other is not row))
        with pytest.raises(CheckpointError, match=r"surplus|missing"):
            import_weights(cut, theirs, shapes_of(weights))


def test_every_wrong_shape_is_named() -> None:
    weights = ours()
    theirs = export_weights(LAYOUT, weights)
    for key, tensor in theirs.items():
        wrong = {**theirs, key: torch.cat([tensor, tensor, tensor])}
        with pytest.raises(CheckpointError, match="misshapen"):
            import_weights(LAYOUT, wrong, shapes_of(weights))


def test_all_faults_come_in_one_sentence_with_at_most_twenty_keys() -> None:
    weights = ours()
    theirs = export_weights(LAYOUT, weights)
    theirs["stranger"] = torch.zeros(1)
    del theirs["logs"]
    theirs["temperature"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        import_weights(LAYOUT, theirs, shapes_of(weights))
    message = str(caught.value)
    assert "missing: logs" in message and "surplus: stranger" in message and "misshapen: scale.temperature" in message
    with pytest.raises(CheckpointError) as caught:
        import_weights(LAYOUT, theirs | {f"odd{i}": torch.zeros(1) for i in range(50)}, shapes_of(weights))
    assert "33 more" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["g_v", "parametrizations", "folded"])
@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm_is_folded_as_torch_does(spelling: str, transposed: bool) -> None:
    kind = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    layer = kind(3, 5, 4)
    layer.weight.data *= 3
    torch.nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(1.7)
    folded = layer.weight.detach()
    new = {key: tensor for key, tensor in layer.state_dict().items() if key != "bias"}
    given_weights = {
        "parametrizations": {f"x.{key}": tensor for key, tensor in new.items()},
        "g_v": {
            "x.weight_g": new["parametrizations.weight.original0"],
            "x.weight_v": new["parametrizations.weight.original1"],
        },
        "folded": {"x.weight": folded},
    }[spelling]
    layout = Layout("one", (), (Row("x.weight", "y.weight", WeightNorm(writes=spelling)),))
    read = import_weights(layout, given_weights, {"y.weight": tuple(folded.shape)})["y.weight"]
    torch.testing.assert_close(read, folded, rtol=1e-6, atol=1e-6)
    assert export_weights(layout, {"y.weight": read}).keys() == given_weights.keys()


def test_dropped_tensors_are_never_read() -> None:
    class Lazy(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            assert not key.startswith("training"), "a dropped tensor was read"
            return super().__getitem__(key)

    weights = ours()
    theirs = Lazy(export_weights(LAYOUT, weights) | {"training.discriminator.weight": torch.zeros(3)})
    assert import_weights(LAYOUT, theirs, shapes_of(weights)).keys() == weights.keys()


def test_a_key_of_ours_is_never_filled_twice() -> None:
    layout = Layout("twice", (), (Row("a", "x"), Row("b", "x")))
    one, shapes = torch.ones(2), {"x": (2,)}
    with pytest.raises(CheckpointError, match="surplus: b"):
        import_weights(layout, {"a": one, "b": one}, shapes)


def test_rope_rows_follow_the_rotation() -> None:
    # Interleaved pairs (0, 1), (2, 3) of a head of width 4 become halves (0, 2), (1, 3).
    moved = RopeHalves(2).forward(torch.arange(8))
    assert moved.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_detect_takes_the_longest_signature_and_names_the_known_layouts() -> None:
    short, long = Layout("short", ("a.{i}",), ()), Layout("long", ("a.{i}", "b"), ())
    barred = Layout("barred", ("a.{i}", "b", "c"), (), absent=("d.{w}",))
    assert detect(["a.0"], [short, long]).name == "short"
    assert detect(["a.0", "b"], [short, long]).name == "long"
    assert detect(["a.0", "b", "c", "d.x"], [barred, long]).name == "long"
    with pytest.raises(CheckpointError, match=r"short, long"):
        detect(["z"], [short, long])


def test_rows_with_unequal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="same names"):
        Row("a.{i}", "b.{j}")
    with pytest.raises(ValueError, match="dropped"):
        Row("a", None)


def test_a_number_of_thousands_of_digits_is_a_surplus_key() -> None:
    layout = Layout("toy", ("w.{i}",), (Row("w.{i}", "ours.{i}"),))
    source = {"w.0": torch.ones(1), "w." + "9" * 5000: torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"surplus: w\.9999"):
        import_weights(layout, source, {"ours.0": (1,)})
    with pytest.raises(CheckpointError, match="no known layout"):
        detect(["w." + "9" * 5000], [layout])
