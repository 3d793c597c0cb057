"""The C kernels compute what torch computes, and nothing depends on their being there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from vivavoce.nn import native
from vivavoce.nn.decoder import Decoder, DecoderConfig, RMSNorm
from vivavoce.nn.packed import PackedLinear, make_ready, some_outputs
from vivavoce.nn.quantized import (
    Int4Linear,
    Int8Linear,
    TorchInt8,
    install_int8,
    pack_tiles,
    quantize_groups,
    quantize_linears,
    quantize_rows,
    unpack_tiles,
)

CONFIG = DecoderConfig(
    dim=96, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=20, ffn_dim=160, context=48, qkv_bias=True
)  # a head width that is no multiple of a register


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("no C compiler here")
    monkeypatch.delenv("VIVA_NATIVE", raising=False)
    native.disable()
    assert native.enable(folder), native.status()
    yield folder
    native.disable()


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_groups(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(n * k)
    levels = torch.randint(0, 16, (n, k), generator=made, dtype=torch.uint8)
    scale, low = (torch.randn(n, k // 32, generator=made).half() for _ in range(2))
    return levels, scale, low


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("n, k", [(1, 32), (5, 96), (16, 64), (33, 160), (50, 576)])
def test_layers_equal_the_float_product(kernels: Path, threads: int, n: int, k: int) -> None:
    made = torch.Generator().manual_seed(n)
    weight, bias = torch.randn(n, k, generator=made), torch.randn(n, generator=made)
    rows, scale = quantize_rows(weight)
    levels, group_scale, low = random_groups(n, k)
    four = levels.float().view(n, -1, 32) * group_scale.float()[..., None] + low.float()[..., None]
    layers = [
        (Int8Linear(rows, scale, bias), rows * scale[:, None]),
        (Int4Linear(pack_tiles(levels, group_scale, low), n, bias), four.view(n, k)),
    ]
    for layer, matrix in layers:
        assert isinstance(layer.kernel, native.NativeLinear)
        for length in range(1, 10):
            x = torch.randn(length, k, generator=made) * torch.logspace(-2, 2, length)[:, None]
            y = layer(x)
            # each row by itself, or a small row's faults would hide behind a large one; bounded by 1 / 254 of the
            # largest input times the root of K
            step = x.abs().amax(1, keepdim=True) / 127
            room = 3 * step * matrix.norm(dim=1) + 1e-4 * (1 + bias.abs())
            assert ((y - (x @ matrix.T + bias)).abs() <= room).all()
            # the rows of a batch do not touch each other: not even in the last bit
            assert all(torch.equal(y[t : t + 1], layer(x[t : t + 1])) for t in range(length))


def test_exact_where_nothing_is_rounded(kernels: Path) -> None:
    x = torch.randint(-127, 128, (5, 64)).float()
    x[:, ::32] = 127.0  # so that the largest value of every group is a whole step
    rows = torch.randint(-127, 128, (19, 64), dtype=torch.int8)
    assert torch.equal(Int8Linear(rows, torch.ones(19), None)(x), x @ rows.float().T)
    levels, scale, low = random_groups(19, 64)
    scale, low = torch.full_like(scale, 0.5), torch.full_like(low, -3.0)
    wanted = x @ (levels.float() * 0.5 - 3).T
    torch.testing.assert_close(Int4Linear(pack_tiles(levels, scale, low), 19, None)(x), wanted, rtol=1e-6, atol=1e-3)


def test_tiles_come_back(kernels: Path) -> None:
    levels, scale, low = random_groups(35, 96)
    wanted = levels.float().view(35, -1, 32) * scale.float()[..., None] + low.float()[..., None]
    assert torch.equal(unpack_tiles(pack_tiles(levels, scale, low), 35), wanted.view(35, 96))


def test_odd_input_is_refused(kernels: Path) -> None:
    layer = Int8Linear(*quantize_rows(torch.randn(4, 64)), None)
    with pytest.raises(ValueError, match="64 inputs"):
        layer(torch.randn(2, 63))
    assert layer(torch.randn(2, 3, 128)[..., ::2]).shape == (2, 3, 4)
    assert layer(torch.randn(0, 64)).shape == (0, 4)
    assert not layer(torch.zeros(1, 64)).any()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 7), (50, 33), (160, 96)])
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@torch.inference_mode()
def test_float_linear_is_exact_in_whatever_pieces(kernels: Path, threads: int, n: int, k: int) -> None:
    plain = nn.Linear(k, n, bias=n != 50)
    ours = PackedLinear.from_linear(plain)
    assert ours is not None
    x = torch.randn(31, k)
    whole = ours(x)
    torch.testing.assert_close(whole, plain(x), rtol=0, atol=2e-5)
    for length in (1, 2, 11, 12, 13, 25):
        assert torch.equal(ours(x[:length]), whole[:length])


@pytest.mark.parametrize("form", ["plain", "float32", "int8", "int4", "torch"])
@torch.inference_mode()
def test_some_outputs_are_those_of_all(kernels: Path, form: str) -> None:
    layer: nn.Module = nn.Sequential(nn.Linear(64, 83))
    if form == "torch":
        native.disable()
    if form != "plain":
        make_ready(layer, "int8" if form == "torch" else form)  # pyright: ignore[reportArgumentType]
    x = torch.randn(5, 64)
    for rows in (slice(0, 83), slice(17, 18), slice(30, 83), slice(16, 32)):
        torch.testing.assert_close(some_outputs(layer[0], x, rows), layer(x)[:, rows], rtol=0, atol=1e-6)  # pyright: ignore


def test_four_bits_of_a_float_layer_are_near_it(kernels: Path) -> None:
    weight = torch.randn(40, 96) * torch.rand(40, 1) * 3
    levels, scale, low = quantize_groups(weight)
    back = unpack_tiles(pack_tiles(levels, scale, low), 40)
    step = scale.repeat_interleave(32, dim=1)
    assert bool(((back - weight).abs() <= 0.52 * step + 1e-3 * weight.abs()).all())
    assert torch.equal(quantize_groups(torch.full((1, 32), 0.5))[2], torch.full((1, 1), 0.5))


def make_decoder(form: str) -> tuple[Decoder, Decoder]:
    """The same weights in layers for the C kernels (float32, int8, int4), and as plain floats."""
    torch.manual_seed(3)
    exact, ours = Decoder(CONFIG).eval(), Decoder(CONFIG).eval()
    for norm in (module for module in exact.modules() if isinstance(module, RMSNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    ours.load_state_dict(exact.state_dict())
    if form != "int4":
        make_ready(ours, form)  # pyright: ignore[reportArgumentType]
        return ours, exact
    tensors = {}
    for name, layer in list(exact.named_modules()):
        if isinstance(layer, nn.Linear) and not name.endswith("out"):  # a stack may be mixed
            tensors[f"{name}.tiles"] = pack_tiles(*quantize_groups(layer.weight))
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias.detach()
            layer.weight.data = unpack_tiles(tensors[f"{name}.tiles"], layer.out_features)
    assert not install_int8(ours, tensors)
    quantize_linears(ours)
    return ours, exact


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize(("form", "near"), [("float32", 1e-5), ("int8", 2e-2), ("int4", 2e-2)])
@torch.inference_mode()
def test_decoder_step_follows_torch(kernels: Path, threads: int, form: str, near: float) -> None:
    ours, exact = make_decoder(form)
    with torch.inference_mode():
        x = torch.randn(1, 25, CONFIG.dim)
        state, exact_state, slow_state = (d.init_state(1, 30) for d in (ours, exact, ours))
        y = torch.empty(0)
        for start, end in [(0, 5), *((t, t + 1) for t in range(5, 25))]:
            y, state = ours.step(x[:, start:end], state, end)
            wanted, exact_state = exact.step(x[:, start:end], exact_state, end)
            assert relative(y, wanted) < 1.5 * near
            with pytest.MonkeyPatch.context() as patch:  # the same layers, one by one
                patch.setattr(ours, "_native_step", lambda x, states, spans, lengths: None)
                slow, slow_state = ours.step(x[:, start:end], slow_state, end)
            assert relative(y, slow) < near
        assert ours._stack is not None
        found = ours._stack._caches.of([cache.key for cache in state], [cache.value for cache in state])
        assert found is not None and found.capacity == 30  # it was the C path
        assert int(state[0].position) == 25 and int(state[-1].position) == 25
        assert relative(state[-1].key[:, :, :25], exact_state[-1].key[:, :, :25]) < 1.5 * near
        # in one piece or token by token, and without telling the span
        whole, _ = ours.step(x, ours.init_state(1, 30))
        assert torch.equal(whole[:, -1], y[:, 0])


@pytest.mark.parametrize("form", ["plain", "float32", "int8", "int4"])
@torch.inference_mode()
def test_texts_of_different_ages_go_through_together(kernels: Path, form: str) -> None:
    ours, plain = make_decoder("int8" if form == "plain" else form)
    ours = plain if form == "plain" else ours
    torch.manual_seed(1)
    rows = [torch.randn(1, 40, CONFIG.dim) for _ in range(4)]
    cuts = [(0, 3, 4, 18), (0, 1, 2, 3), (0, 14, 25, 26), (0, 7, 14, 30)]
    alone, together = [ours.init_state(1, 40) for _ in rows], [ours.init_state(1, 30 + i) for i in range(4)]
    for turn in range(3):
        parts = [row[:, cut[turn] : cut[turn + 1]] for row, cut in zip(rows, cuts, strict=True)]
        spans = [cut[turn + 1] for cut in cuts]
        made, together = ours.step_together(parts, together, spans)
        for i, (part, span) in enumerate(zip(parts, spans, strict=True)):
            wanted, alone[i] = ours.step(part, alone[i], span)
            if form == "plain":
                torch.testing.assert_close(made[i], wanted, rtol=0, atol=2e-5)
            else:  # a row's result does not depend on its neighbours
                assert torch.equal(made[i], wanted)
            assert int(together[i][-1].position) == span


@torch.inference_mode()
def test_conversations_and_threads_do_not_mix(kernels: Path) -> None:
    ours, _ = make_decoder("int8")
    rows = [torch.randn(1, 20, CONFIG.dim) for _ in range(2)]
    y, alone = torch.empty(0), []
    for row, capacity in zip(rows, (20, 40), strict=True):
        state = ours.init_state(1, capacity)
        for t in range(20):
            y, state = ours.step(row[:, t : t + 1], state, t + 1)
        alone.append((y, state[-1].key[:, :, :20]))
    states = [ours.init_state(1, 20), ours.init_state(1, 40)]  # in turn, with caches of other lengths
    ends = [torch.empty(0)] * 2
    for t in range(20):
        for i in range(2):
            ends[i], states[i] = ours.step(rows[i][:, t : t + 1], states[i], t + 1)
    for i in range(2):
        assert torch.equal(ends[i], alone[i][0]) and torch.equal(states[i][-1].key[:, :, :20], alone[i][1])

    made: list[torch.Tensor | None] = [None, None]

    def run(i: int) -> None:
        with torch.inference_mode():
            y = torch.empty(0)
            for _ in range(20):
                state = ours.init_state(1, 20 + 20 * i)
                for t in range(20):
                    y, state = ours.step(rows[i][:, t : t + 1], state, t + 1)
                before = made[i]
                made[i] = y if before is None or torch.equal(before, y) else torch.full_like(y, torch.nan)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        found = made[i]
        assert found is not None and torch.equal(found, alone[i][0])


@torch.inference_mode()
def test_decoder_leaves_to_torch_what_is_not_for_it(kernels: Path) -> None:
    ours, _ = make_decoder("int8")
    one, _ = ours.step(torch.ones(1, 1, CONFIG.dim), ours.init_state(1, 4), 1)
    two, _ = ours.step(torch.ones(2, 1, CONFIG.dim), ours.init_state(2, 4), 1)
    assert relative(two[:1], one) < 2e-2
    with pytest.raises(RuntimeError):  # as torch says it: the cache is full
        ours.step(torch.ones(1, 5, CONFIG.dim), ours.init_state(1, 4), 5)
    strided = tuple(
        type(cache)(cache.key[:, :, ::2], cache.value[:, :, ::2], cache.position) for cache in ours.init_state(1, 8)
    )
    assert relative(ours.step(torch.ones(1, 1, CONFIG.dim), strided, 1)[0], one) < 2e-2


def test_without_compiler_everything_runs_on_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.disable()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert not native.enable(folder) and "no C compiler" in native.status()
    levels, scale, low = random_groups(20, 64)
    tiles = pack_tiles(levels, scale, low)
    layer, x = Int4Linear(tiles, 20, None), torch.randn(3, 64)
    assert isinstance(layer.kernel, TorchInt8)
    assert relative(layer(x), x @ unpack_tiles(tiles, 20).T) < 2e-2


def test_environment_turns_it_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.disable()
    monkeypatch.setenv("VIVA_NATIVE", "0")
    assert not native.enable(folder) and "VIVA_NATIVE" in native.status() and not native.active()
    assert isinstance(Int8Linear(*quantize_rows(torch.randn(4, 32)), None).kernel, TorchInt8)


def test_failing_compiler_is_only_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\necho no room left >&2\n[ "$1" = --version ]\n', encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(broken))
    handle, reason = native.library(tmp_path / "out")
    assert handle is None and "no room left" in reason
    monkeypatch.setattr(native.subprocess, "run", None)  # it is not tried again in this process
    assert native.library(tmp_path / "out") == (None, reason)


def test_plainer_flags_where_the_first_cannot_be_loaded(kernels: Path, tmp_path: Path, monkeypatch) -> None:
    load, tried = native._load, []

    def picky(file: Path):
        tried.append(file.exists())
        if len(tried) < 3:
            raise OSError("a library is missing")
        return load(file)

    monkeypatch.setattr(native, "_load", picky)
    handle, reason = native.library(tmp_path)
    assert handle is not None and "in use" in reason and tried == [True] * 3
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_kernels_that_cannot_be_loaded_are_only_a_reason(kernels: Path, tmp_path: Path, monkeypatch) -> None:
    def never(file: Path):
        raise OSError("a library is missing")

    monkeypatch.setattr(native, "_load", never)
    handle, reason = native.library(tmp_path)
    assert handle is None and "a library is missing" in reason and not list(tmp_path.glob("*.so"))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
def test_a_folder_that_others_may_write_is_refused(kernels: Path, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "kernels"
    assert native.library(folder)[0] is not None and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(mode)
    handle, reason = native.library(folder)
    assert handle is None and "others may write" in reason
    folder.chmod(0o755)
    assert native.library(folder)[0] is not None


@pytest.mark.skipif(os.name != "posix", reason="owners are POSIX")
def test_a_folder_of_somebody_else_is_refused(kernels: Path, tmp_path: Path, monkeypatch) -> None:
    us = os.geteuid()
    monkeypatch.setattr(native.os, "geteuid", lambda: us + 1)
    handle, reason = native.library(tmp_path)
    assert handle is None and "others may write" in reason and not list(tmp_path.iterdir())


def test_damaged_library_is_built_again(kernels: Path, tmp_path: Path) -> None:
    assert native.library(tmp_path)[0] is not None
    (file,) = tmp_path.glob("*.so")
    stamp = file.stat().st_mtime_ns
    assert native.library(tmp_path)[0] is not None and file.stat().st_mtime_ns == stamp  # not compiled twice
    copy = tmp_path / "other"
    copy.mkdir()
    for part in tmp_path.glob("kernels-*"):
        shutil.copyfile(part, copy / part.name)
    damaged = copy / file.name
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert native.library(copy)[0] is not None
    assert damaged.stat().st_size == file.stat().st_size


@torch.inference_mode()
def test_more_texts_than_are_known_at_once(kernels: Path) -> None:
    """Pointers live as long as the pass that uses them."""
    ours, _ = make_decoder("float32")
    count = native.MAX_TEXTS + 9
    rows = list(torch.randn(count, 1, 2, CONFIG.dim))
    made, _ = ours.step_together(rows, [ours.init_state(1, 8) for _ in rows], [2] * count)
    for row, found in zip(rows, made, strict=True):
        assert torch.equal(found, ours.step(row, ours.init_state(1, 8), 2)[0])
