"""A run of two processes is the run of one: same weights, one log, and it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.own_records import write_records, write_talk
from tests.train import together
from tests.train.toy import ToyRecipe
from vivavoce.errors import ConfigError
from vivavoce.train.loop import CHECKPOINT, LOG, train
from vivavoce.train.parallel import Share, join

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs a torch with distributed")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes that found each other as under torchrun have left: all runs of tests/train/together.py."""
    folder = tmp_path_factory.mktemp("together")
    write_records(folder, 3)
    write_talk(folder / "packing", modules=2, reads=None, able=True)
    with contextlib.ExitStack() as all_free:  # open at once, so that they are three
        free = [all_free.enter_context(socket.socket()) for _ in range(3)]
        for one in free:
            one.bind(("127.0.0.1", 0))
        ports = [str(one.getsockname()[1]) for one in free]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    with (folder / "told.txt").open("w") as told:
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.train.together", str(folder), *ports], cwd=ROOT, stderr=told,
                stdout=(folder / f"printed-{rank}.txt").open("w"),
                env={**os.environ, **paths, **meeting, "RANK": str(rank), "VIVA_THREADS": "1"},
            )
            for rank in (0, 1)
        ]  # fmt: skip
        try:
            left = [process.wait(timeout=300) for process in both]
        finally:
            for process in both:
                process.kill()
    assert left == [0, 0], (folder / "told.txt").read_text("utf-8")
    return folder


def far(one: Path, other: Path) -> float:
    """The largest difference of two checkpoints: weights and moments."""
    a, b = load_file(one / CHECKPOINT), load_file(other / CHECKPOINT)
    assert a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / LOG).read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    return [row["loss"] for row in rows if "loss" in row]


def test_two_processes_are_as_one(desk: Path, tmp_path: Path) -> None:
    alone = together.SharedRecipe(Share())
    train(alone, tmp_path / "one")
    start = together.Net().state_dict()
    assert not torch.allclose(alone.net.head.weight, start["head.weight"], atol=0.01), "it was to move"
    for name in ("copies", "copies-cut", "pieces", "pieces-cut"):
        assert far(tmp_path / "one", desk / name) < 1e-6, name
        assert losses(desk / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        assert [path.name for path in (desk / name / "samples").iterdir()].count("000005.txt") == 1


def test_tuning_with_two_processes_is_as_with_one(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setenv("VIVA_THREADS", "1")
    together.tuned(1, desk)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    printed = [(desk / f"printed-{rank}.txt").read_text("utf-8").splitlines() for rank in (0, 1)]
    assert len(printed[0]) == 4 and printed[1] == [], "one process prints"
    for name, line in (("copies", printed[0][1]), ("pieces", printed[0][3])):
        assert json.loads(line)["evaluation"] == pytest.approx(last["evaluation"], rel=1e-4)
        assert far(desk / "run-1-copies", desk / f"run-2-{name}") < 1e-6, name
        runs = (desk / "run-1-copies", desk / f"run-2-{name}")
        one, two = (load_file(run / "model" / "model.safetensors") for run in runs)
        assert one.keys() == two.keys() and all(torch.allclose(one[k].float(), two[k].float(), atol=1e-3) for k in one)


def test_each_item_goes_to_one_process() -> None:
    shares = [Share(rank, 3) for rank in range(3)]
    assert sorted(item for share in shares for item in share.take(range(10))) == list(range(10))
    assert [share.leads for share in shares] == [True, False, False] and Share().take("abc") == ["a", "b", "c"]
    assert Share().agree(True, False) == [True, False]
    assert Share().mean({"loss": torch.tensor(2.5)}) == {"loss": 2.5}


def test_what_cannot_be_shared_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="the recipe toy runs in one process; start it without torchrun"):
        train(ToyRecipe(), tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="start the run with torchrun"):
        join(torch.device("cpu"))
