"""Damaged and hostile files: only CheckpointError comes out, and memory stays bounded."""

from __future__ import annotations

import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from small_files import message, write_all

from vivavoce.checkpoints.inert_pickle import read_inert
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.errors import CheckpointError

NAMES = ("a.safetensors", "zip.pt", "old.pt", "model.bin", "a.gguf", "a.onnx")
PATTERNS = (b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8, b"\x80", struct.pack("<Q", 1 << 40), b"\x7f\xff\xff\xff")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in write_all(tmp_path_factory.mktemp("fuzz")).items()}


def read_whole(path: Path) -> None:
    """Open a file and touch every tensor; a CheckpointError is a good answer."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.tensors:
            checkpoint.tensors[name]
    except CheckpointError as error:
        assert "\n" not in str(error)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Flip bytes, cut, or put an absurd number somewhere."""
    found = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(found[: chance.randrange(len(found))])
    if kind == 1:
        for _ in range(chance.randrange(1, 8)):
            found[chance.randrange(len(found))] = chance.randrange(256)
    elif kind == 2:
        at, pattern = chance.randrange(len(found)), chance.choice(PATTERNS)
        found[at : at + len(pattern)] = pattern
    else:
        at = chance.randrange(min(len(found), 400))
        found[at : at + 1] = bytes(chance.randrange(256) for _ in range(chance.randrange(4)))
    return bytes(found)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_one_kind_of_error(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    chance, path = random.Random(name), tmp_path / name
    tracemalloc.start()
    for _ in range(250):
        path.write_bytes(damage(files[name], chance))
        read_whole(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("name", ["zip.pt", "old.pt"])
def test_the_inert_reader_alone_survives_too(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    chance, path = random.Random(name + "inert"), tmp_path / name
    for _ in range(150):
        path.write_bytes(damage(files[name], chance))
        try:
            read_inert(path)
        except CheckpointError:
            continue


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_of_the_head(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for length in range(0, min(120, len(files[name]))):
        path.write_bytes(files[name][:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def zip_with(path: Path, program: bytes, storages: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def tensor_program(numel: int, size: int, stride: int) -> bytes:
    """A pickle of one tensor with a storage of ``numel`` floats, seen with the given size and stride."""
    storage = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x08"
        + struct.pack("<q", numel)
        + b"tQ"
    )
    numbers = b"K\0(\x8a\x08" + struct.pack("<q", size) + b"t(\x8a\x08" + struct.pack("<q", stride) + b"t\x89}t"
    return b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"Rs."


@pytest.mark.parametrize(
    ("numel", "size", "stride"),
    [(1 << 50, 4, 1), (4, 1 << 40, 0), (4, 1 << 40, 1), (4, 4, 1 << 40), (4, -4, 1), (-4, 4, 1), (4, 5, 1)],
)
def test_absurd_tensors(tmp_path: Path, numel: int, size: int, stride: int) -> None:
    path = zip_with(tmp_path / "a.pt", tensor_program(numel, size, stride), {"0": bytes(16)})
    with pytest.raises(CheckpointError):
        open_checkpoint(path).tensors["w"]
    good = zip_with(tmp_path / "b.pt", tensor_program(4, 2, 2), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert open_checkpoint(good).tensors["w"].tolist() == [1, 3]


def laughing() -> bytes:
    """A few hundred bytes that stand for 2 ** 60 leaves."""
    value: object = ["ha"]
    for _ in range(60):
        value = [value, value]
    return pickle.dumps(value, 4)


HOSTILE = {
    "a memo of 2^31 entries": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "a frame of 2^63": b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b".",
    "shared lists without end": laughing(),
    "a list that holds itself": b"\x80\x02]q\0h\0a.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "an empty stack": b"\x80\x02.",
    "a mark too few": b"\x80\x02t.",
    "nested marks": b"\x80\x02" + b"(" * 100_000 + b".",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "bare.pt").write_bytes(program)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "bare.pt")
    with pytest.raises(CheckpointError):
        open_checkpoint(zip_with(tmp_path / "zip.pt", program, {}))


def test_zip_bombs(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "a.pt", tensor_program(1 << 24, 4, 1), {"0": bytes(1 << 26)}, zipfile.ZIP_BZIP2)
    with pytest.raises(CheckpointError):
        open_checkpoint(path).tensors["w"]


def test_absurd_headers(tmp_path: Path) -> None:
    gguf = b"GGUF" + struct.pack("<I", 3)
    heads = {
        "counts": gguf + struct.pack("<QQ", 1 << 60, 1 << 60),
        "array": gguf + struct.pack("<QQ", 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 1 << 62),
        "shape": gguf
        + struct.pack("<QQ", 1, 0)
        + struct.pack("<Q1sI4QIQ", 1, b"t", 4, *[1 << 31] * 4, 0, 0)
        + bytes(64),
        "offset": gguf
        + struct.pack("<QQ", 1, 0)
        + struct.pack("<Q1sIQIQ", 1, b"t", 1, 1, 0, (1 << 64) - 32)
        + bytes(64),
        "safetensors": struct.pack("<Q", 1 << 62) + b"{" + bytes(64),
        "ctranslate2": struct.pack("<IH2sII", 6, 2, b"a\0", 1, 1 << 31) + bytes(64),
        "onnx": message((1, 8)) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    }
    graph = b""
    for _ in range(200):
        graph = message((1, message((5, message((6, graph))))))
    heads["nested graphs"] = message((1, 8), (7, graph))
    for name, head in heads.items():
        (tmp_path / "file").write_bytes(head)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "file")
            pytest.fail(name)
