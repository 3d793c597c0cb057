"""What is installed is complete: every file beside the code is named as package data, and every folder is a package."""

from __future__ import annotations

import fnmatch
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "vivavoce"
LARGEST, LARGEST_MODEL = 10_000_000, 20_000_000  # bytes of the wheel, and of each trained model in it
HERE = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_every_data_file_is_named() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"][
        "vivavoce"
    ]
    data = [path for path in HERE if path.suffix != ".py"]
    assert {"py.typed", "assets/question.flac", "assets/cmudict.txt.gz"} <= {path.as_posix() for path in data}
    assert [path for path in data if not any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in named)] == []
    assert sum((SOURCE / path).stat().st_size for path in HERE if path.parts[0] != "nano") < 2 * LARGEST


def test_trained_models_are_small() -> None:
    for folder in {path.parent for path in HERE if path.parts[0] == "nano"}:
        assert sum(file.stat().st_size for file in (SOURCE / folder).iterdir()) <= LARGEST_MODEL


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in HERE if path.suffix == ".py"}
    assert [folder for folder in folders if not (SOURCE / folder / "__init__.py").is_file()] == []


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools builds the wheel")
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for path in HERE:
        copy = tmp_path / "src" / "vivavoce" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((SOURCE / path).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path, check=True, capture_output=True, timeout=90
    )
    wheel = next(tmp_path.glob("*.whl"))
    models = {path.parent for path in HERE if path.parts[0] == "nano"}
    assert wheel.stat().st_size < LARGEST + LARGEST_MODEL * len(models)
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {f"vivavoce/{path.as_posix()}" for path in HERE} <= inside
