"""A cache of tiny random models, written once a session, and a working folder of its own for each test that asks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the cache after ``viva pull``, with models of random weights."""
    from tests.tiny import write_cache

    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.fixture
def desk(tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the tiny models in reach and nothing else from the environment."""
    for name in ("VIVA_MODEL", "VIVA_VOICE", "VIVA_LANGUAGE", "VIVA_DEVICE", "VIVA_SEED", "VIVA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIVA_CACHE", str(tiny_cache))
    monkeypatch.setenv("VIVA_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path
