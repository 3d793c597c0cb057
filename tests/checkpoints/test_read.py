"""Every format is told by content, read exactly, and executed never."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_files import BIAS, STATE, WEIGHT, gguf_bytes, message, write_all

from vivavoce.checkpoints import gguf, onnx
from vivavoce.checkpoints.ctranslate2 import open_ctranslate2, write_ctranslate2
from vivavoce.checkpoints.gguf import TYPES, GGUFFile, dequantise
from vivavoce.checkpoints.onnx import OnnxFile
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.errors import CheckpointError


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize(("name", "kind"), [("a.safetensors", "safetensors"), ("zip.pt", "torch"), ("old.pt", "torch")])
def test_plain_files(paths: dict[str, Path], name: str, kind: str, tmp_path: Path) -> None:
    disguised = tmp_path / "weights"
    disguised.write_bytes(paths[name].read_bytes())
    checkpoint = open_checkpoint(disguised)
    assert checkpoint.format == kind and set(checkpoint.tensors) == set(STATE)
    assert all(torch.equal(checkpoint.tensors[key], tensor) for key, tensor in STATE.items())
    assert checkpoint.tensors["layer.bias"].dtype == torch.float16
    assert checkpoint.metadata == ({"note": "hello"} if kind == "safetensors" else {"step": 3})


def test_ctranslate2_is_dequantised_and_written_back_bit_for_bit(paths: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(paths["model.bin"])
    assert checkpoint.format == "ctranslate2" and set(checkpoint.tensors) == {"a/weight", "a/bias", "heads"}
    torch.testing.assert_close(checkpoint.tensors["a/weight"][:, 0], torch.tensor([12.7, 0.05, 0.225]))
    assert checkpoint.metadata["aliases"] == {"b/weight": "a/weight"} and int(checkpoint.tensors["heads"]) == 3
    stored = open_ctranslate2(paths["model.bin"])
    raw = {name: variable.tensor() for name, variable in stored.variables.items()}
    write_ctranslate2(tmp_path / "again.bin", stored.spec, stored.revision, raw, stored.aliases)
    assert (tmp_path / "again.bin").read_bytes() == paths["model.bin"].read_bytes()


def test_onnx_names_weights_by_the_node_that_uses_them(paths: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(paths["a.onnx"])
    found = checkpoint.tensors
    assert isinstance(found, OnnxFile)
    assert found.stored == {"layer.weight": "onnx::Conv_12", "layer.bias": "layer.bias"}
    assert torch.equal(found["layer.weight"], WEIGHT) and torch.equal(found["layer.bias"], BIAS)
    assert found.nodes[0].op_type == "Conv" and found.nodes[0].attributes == {"kernel_shape": [4, 3]}
    assert int(found.constants["/layer/Constant_output_0"]) == 5 and found.constants["two"].tolist() == [1, 2]
    assert found.inputs == ["x"] and checkpoint.metadata == {"author": "us"}


# ---------------------------------------------------------------------------------------------------- GGUF


def slow(kind: str, block: np.ndarray) -> list[float]:
    """One block by the definition of its type, weight by weight."""
    byte = [int(value) for value in block]

    def half(at: int) -> float:
        return float(np.frombuffer(bytes(byte[at : at + 2]), "<f2")[0])

    def nibble(at: int, i: int) -> int:
        return byte[at + i] & 15 if i < 16 else byte[at + i - 16] >> 4

    def scale_and_min(j: int) -> tuple[int, int]:
        s = byte[4:16]
        if j < 4:
            return s[j] & 63, s[j + 4] & 63
        return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4

    def k_nibble(at: int, i: int) -> int:
        packed = byte[at + i // 64 * 32 + i % 32]
        return packed >> 4 if i % 64 >= 32 else packed & 15

    def fifth(at: int, i: int) -> int:
        return (int.from_bytes(bytes(byte[at : at + 4]), "little") >> i & 1) << 4

    def q6(i: int) -> float:
        part, j = divmod(i, 128)
        quarter, k = divmod(j, 32)
        low = byte[part * 64 + quarter % 2 * 32 + k] >> (4 * (quarter // 2)) & 15
        value = low | (byte[128 + part * 32 + k] >> 2 * quarter & 3) << 4
        return half(208) * int(np.int8(np.uint8(byte[192 + i // 16]))) * (value - 32)

    def q45(i: int, at: int, five: bool) -> float:
        scale, low = scale_and_min(i // 32)
        high = (byte[16 + i % 32] >> (i // 32) & 1) << 4 if five else 0
        return half(0) * scale * (k_nibble(at, i) + high) - half(2) * low

    rules = {
        "Q4_0": (32, lambda i: half(0) * (nibble(2, i) - 8)),
        "Q4_1": (32, lambda i: half(0) * nibble(4, i) + half(2)),
        "Q5_0": (32, lambda i: half(0) * ((nibble(6, i) | fifth(2, i)) - 16)),
        "Q5_1": (32, lambda i: half(0) * (nibble(8, i) | fifth(4, i)) + half(2)),
        "Q8_0": (32, lambda i: half(0) * int(np.int8(np.uint8(byte[2 + i])))),
        "Q4_K": (256, lambda i: q45(i, 16, five=False)),
        "Q5_K": (256, lambda i: q45(i, 48, five=True)),
        "Q6_K": (256, q6),
        "F32": (1, lambda i: float(np.frombuffer(bytes(byte), "<f4")[0])),
        "F16": (1, lambda i: half(0)),
        "BF16": (1, lambda i: float(np.frombuffer(bytes([0, 0, *byte]), "<f4")[0])),
    }
    count, rule = rules[kind]
    return [rule(i) for i in range(count)]


@pytest.mark.parametrize("kind", [block.name for block in TYPES.values()])
def test_dequantisation_follows_the_definition(kind: str) -> None:
    size = next(block.bytes for block in TYPES.values() if block.name == kind)
    blocks = np.random.default_rng(1).integers(0, 256, (8, size), dtype=np.uint8)
    # Half-precision fields stay finite: clear the top exponent bit of each.
    for at in {"Q6_K": (209,), "F32": (3,), "BF16": (1,)}.get(kind, (1, 3)):
        if at < size:
            blocks[:, at] &= 0xBF
    expected = np.array([slow(kind, block) for block in blocks])
    np.testing.assert_allclose(dequantise(kind, blocks), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("kind", [block.name for block in TYPES.values()])
def test_dequantisation_equals_the_gguf_package(kind: str) -> None:
    reference = pytest.importorskip("gguf")
    size = next(block.bytes for block in TYPES.values() if block.name == kind)
    blocks = np.random.default_rng(2).integers(0, 256, (512, size), dtype=np.uint8)
    expected = reference.dequantize(blocks, reference.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dequantise(kind, blocks), expected.reshape(len(blocks), -1))


def test_gguf_files(paths: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(paths["a.gguf"])
    gguf = checkpoint.tensors
    assert isinstance(gguf, GGUFFile)
    assert gguf.metadata == {"general.architecture": "toy", "tokens": ["a", "b"], "n": 7}
    for number, block in TYPES.items():
        kind, raw = gguf.raw_blocks(f"t{number}")
        assert kind == block.name and raw.shape == (2, block.bytes) and not raw.flags.writeable
        np.testing.assert_array_equal(gguf.tensor(f"t{number}").numpy(), dequantise(kind, raw))
    with pytest.raises(CheckpointError, match="no tensor 't99'"):
        gguf.tensor("t99")


# ---------------------------------------------------------------------------------------------------- pickles


class Payload:
    """Runs a command when unpickled by a careless reader."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_read_and_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    tied = torch.randn(4, 6)
    state = {**STATE, "view": tied.t(), "tied": tied, "scalar": torch.tensor(2.5, dtype=torch.bfloat16)}
    parameter = {"p": torch.nn.Parameter(torch.ones(2))}
    whole = {"args": argparse.Namespace(dim=4), "payload": Payload(trace), "model": {**state, **parameter}}
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert checkpoint.tensors.keys() == state.keys() | {"p"}
    assert all(torch.equal(checkpoint.tensors[key], tensor) for key, tensor in state.items())
    assert checkpoint.metadata["args"] == {"dim": 4}
    assert f"{os.system.__module__}.system" in checkpoint.foreign and "argparse.Namespace" in checkpoint.foreign
    assert not trace.exists()


def test_torchscript_archives_are_read_without_running(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), torch.zeros(1, 3))
        torch.jit.save(module, tmp_path / "a.jit")
    tensors = open_checkpoint(tmp_path / "a.jit").tensors
    expected = module.state_dict()
    assert {key.removeprefix("0.") for key in tensors} == {"weight", "bias"}
    assert all(torch.equal(tensors[key.removeprefix("0.")], tensor) for key, tensor in expected.items())


def test_training_state_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    optimiser = {"state": {0: {"exp_avg": torch.ones(3)}}}
    torch.save({"state_dict": {"generator": STATE}, "optimizer": optimiser, "epoch": 2}, tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    assert set(checkpoint.tensors) == set(STATE) and checkpoint.metadata == {"epoch": 2}


def test_two_networks_keep_their_names(tmp_path: Path) -> None:
    torch.save({"mpd": STATE, "mrd": STATE}, tmp_path / "do")
    assert set(open_checkpoint(tmp_path / "do").tensors) == {
        f"{name}.{key}" for name in ("mpd", "mrd") for key in STATE
    }


# ---------------------------------------------------------------------------------------------------- folders


def test_sharded_folders(tmp_path: Path) -> None:
    save_file({"layer.weight": WEIGHT}, tmp_path / "model-1.safetensors")
    save_file({"layer.bias": BIAS}, tmp_path / "model-2.safetensors")
    places = {"layer.weight": "model-1.safetensors", "layer.bias": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.tensors["layer.weight"], WEIGHT) and "config.json" in checkpoint.files
    index.write_text(json.dumps({"weight_map": {**places, "x": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="does not lie beside"):
        open_checkpoint(tmp_path)


def test_folders_with_no_or_several_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        open_checkpoint(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"a\.pt, b\.pt"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="check the path"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "note.txt").write_text("hello there, this is a text")
    with pytest.raises(CheckpointError, match="no known weight file"):
        open_checkpoint(tmp_path / "note.txt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint(tmp_path / "plain.pt")


def test_numbers_in_metadata_stay_as_small_as_they_are(tmp_path: Path) -> None:
    """A list of numbers is an array: a Python list would take eight times the bytes of the file."""
    text = b"numbers"
    values = np.arange(1000, dtype=np.uint8)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(text)) + text
    (tmp_path / "a.gguf").write_bytes(head + struct.pack("<IIQ", 9, 0, len(values)) + values.tobytes() + bytes(64))
    found = open_checkpoint(tmp_path / "a.gguf").metadata["numbers"]
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and (found == values).all()


@pytest.mark.parametrize(("limit", "what"), [(1, "entries are too many"), (1000, "texts are too many")])
def test_too_many_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, what: str) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes({}, {"tokens": ["a"] * 1001}))
    assert len(open_checkpoint(tmp_path / "a.gguf").metadata["tokens"]) == 1001
    monkeypatch.setattr(gguf, "MAX_ITEMS", limit)
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(tmp_path / "a.gguf")


def test_an_onnx_file_of_very_many_parts_is_refused(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = message(*[(1, b"")] * 2000)  # two bytes each, and a Python object of hundreds
    (tmp_path / "many.onnx").write_bytes(message((1, 8), (7, graph)))
    monkeypatch.setattr(onnx, "MAX_FIELDS", 1000)
    assert open_checkpoint(paths["a.onnx"]).format == "onnx"
    with pytest.raises(CheckpointError, match="too many parts"):
        open_checkpoint(tmp_path / "many.onnx")


@pytest.mark.parametrize("piece", [1 << 20, 11])
def test_packed_numbers_of_onnx(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(onnx, "PIECE", piece)
    wanted = [0, 1, 127, 128, 300, 2**31, 2**62, -1, -(2**63), 5]
    packed = b"".join(message((0, value & (1 << 64) - 1))[1:] for value in wanted)
    assert onnx._integers(memoryview(packed), Path("x")).tolist() == wanted
    assert onnx._integers(2**64 - 2, Path("x")).tolist() == [-2]
    assert onnx._integers(memoryview(b""), Path("x")).tolist() == []
    for bad in (b"\x80", b"\x01\x80", b"\x80" * 11 + b"\x01", b"\xff" * 10 + b"\x01"):
        with pytest.raises(CheckpointError):
            onnx._integers(memoryview(bad), Path("x"))


def test_long_lists_of_an_onnx_node_stay_arrays(tmp_path: Path) -> None:
    packed = b"\x05" * 1000
    kernel = message((1, "axes"), (8, packed), (20, 7))
    floats = message((1, "scales"), (7, np.ones(100, "<f4").tobytes()), (20, 6))
    graph = message((1, message((4, "Conv"), (5, kernel), (5, floats))))
    (tmp_path / "a.onnx").write_bytes(message((1, 8), (7, graph)))
    file = open_checkpoint(tmp_path / "a.onnx").tensors
    assert isinstance(file, OnnxFile)
    axes, scales = file.nodes[0].attributes["axes"], file.nodes[0].attributes["scales"]
    assert isinstance(axes, np.ndarray) and len(axes) == 1000 and (axes == 5).all()
    assert isinstance(scales, np.ndarray) and scales.dtype == np.float32 and len(scales) == 100
