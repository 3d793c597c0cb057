"""The training loop: whatever happens to a run, it goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.train.toy import ToyRecipe
from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.train import loop
from vivavoce.train.loop import CHECKPOINT, LOG, Schedule, restore, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    train(ToyRecipe(), folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / CHECKPOINT)


def same(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bits: weights, buffers, moments."""
    one, other = stored(a), stored(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / LOG).read_text("utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name != "step_s"} for row in rows]


def test_it_learns_and_tells(whole: Path) -> None:
    rows = logged(whole)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 30]
    assert rows[5]["loss"] < 0.75 * rows[0]["loss"] and rows[0]["double"] == pytest.approx(2 * rows[0]["loss"])
    assert set(rows[-1]["evaluation"]) == {"weight", "drawn"}
    assert not list(whole.glob("*.part"))


def test_the_rate_warms_up_and_falls_to_its_floor() -> None:
    schedule = Schedule(steps=100, warmup=0.1, floor=0.2)
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)]) and factors[10] == 1.0
    assert all(after < before for before, after in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.6) and factors[100] == schedule.factor(500) == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="steps must be 1 or more"):
        Schedule(steps=0)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_killed_in_the_middle_of_saving_it_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tests.train.toy", str(run), "20"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, **paths}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (run / f"{CHECKPOINT}.part").exists(), "it was to die while it wrote"
    assert restore(run, ToyRecipe().model) == 10
    assert max(row["step"] for row in logged(run)) == 20
    train(ToyRecipe(), run, resume=True)
    assert same(run, whole) and logged(run) == logged(whole)


def test_a_log_is_cut_to_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with (run / LOG).open("a") as file:
        file.write('{"step": 35, "loss": 1.0}\n{"step": 40, "lo')
    assert train(ToyRecipe(), run, resume=True) == logged(whole)[-1]["evaluation"]
    assert logged(run) == logged(whole)


def test_evaluating_changes_nothing(whole: Path, tmp_path: Path) -> None:
    told: list[int] = []
    recipe = ToyRecipe(evaluate_every=7)
    train(recipe, tmp_path / "run", evaluated=lambda step, figures: told.append(step))
    assert same(tmp_path / "run", whole)
    assert told == [7, 14, 21, 28, 30] and recipe.samples == 5
    drawn = [row["evaluation"]["drawn"] for row in logged(tmp_path / "run") if "evaluation" in row]
    assert len(set(drawn)) == 1, "each evaluation draws the same"


def test_stopped_by_the_clock_it_has_saved_and_evaluated(whole: Path, tmp_path: Path) -> None:
    steps: list[float] = []
    train(ToyRecipe(), tmp_path / "run", stop_after=0, report=lambda what, done, total: steps.append(done))
    assert steps == [1.0] and restore(tmp_path / "run", ToyRecipe().model) == 1
    assert "evaluation" in logged(tmp_path / "run")[-1]
    train(ToyRecipe(), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


def raising(number: int, times: int = 1) -> Callable[[int], None]:
    """Sends this process a signal in step 13."""

    def at(step: int) -> None:
        for _ in range(times if step == 13 else 0):
            signal.raise_signal(number)

    return at


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_leave_it_completes_its_step(whole: Path, tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        train(ToyRecipe(at=raising(number)), tmp_path / "run")
    assert signal.getsignal(number) == before
    assert restore(tmp_path / "run", ToyRecipe().model) == 14
    train(ToyRecipe(), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


def test_asked_twice_it_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(ToyRecipe(at=raising(signal.SIGINT, 2)), tmp_path / "run")
    assert restore(tmp_path / "run", ToyRecipe().model) == 10


def test_runs_are_not_mixed(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        train(ToyRecipe(), whole)
    with pytest.raises(ConfigError, match="no run to go on with; leave --resume out"):
        train(ToyRecipe(), tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"has rate 0\.05, not 0\.06; use the same"):
        train(ToyRecipe(rate=0.06), whole, resume=True)
    with pytest.raises(ConfigError, match="has seed 3, not 4"):
        train(ToyRecipe(seed=4), whole, resume=True)
    wider = ToyRecipe()
    wider.settings = lambda: {"size": {"inner": 6, "outer": 5}}
    with pytest.raises(ConfigError, match=r"has size\.outer 3, not 5"):
        train(wider, whole, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no run can be written in"):
        train(ToyRecipe(), tmp_path / "file" / "run")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   SafetensorError("I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_a_full_disk_is_one_sentence_and_costs_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write = loop.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        write(tensors, path, metadata)
        if metadata["step"] == "20":
            raise error

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(CheckpointError, match=r"^step 20 could not be saved in .*the disk is full.*--resume$"):
        train(ToyRecipe(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.part")) and restore(tmp_path / "run", ToyRecipe().model) == 10


def test_no_run_begins_where_it_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=400))
    with pytest.raises(ConfigError, match="needs 0 MB and 0 MB are free there"):
        train(ToyRecipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_checkpoint_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        train(ToyRecipe(), run, resume=True)
    with pytest.raises(CheckpointError, match="does not fit the model at weight"):
        restore(whole, torch.nn.Linear(2, 2))
    (run / "recipe.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not the description of a run"):
        train(ToyRecipe(), run, resume=True)


def test_gradients_that_are_not_finite_end_it(tmp_path: Path) -> None:
    recipe = ToyRecipe()

    def spoil(step: int) -> None:
        if step == 12:
            recipe.toy.line.weight.data.fill_(torch.nan)

    recipe.at = spoil
    with pytest.raises(ConfigError, match="gradients of step 12 are not finite"):
        train(recipe, tmp_path / "run")
    assert restore(tmp_path / "run", ToyRecipe().model) == 10


def test_tensorboard_is_told_figures_and_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    import numpy as np
    import soundfile
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    class Sounding(ToyRecipe):
        def sample(self, folder: Path, step: int) -> None:
            folder.mkdir(exist_ok=True)
            soundfile.write(folder / f"tone_{step:06d}.wav", np.zeros(80, np.float32), 16_000)
            (folder / f"{step:06d}.png").write_bytes(bytes(16) + (7).to_bytes(4, "big") + (5).to_bytes(4, "big"))

    train(Sounding(steps=5), tmp_path)
    (file,) = (tmp_path / "events").iterdir()
    told = {value.tag: value for event in EventFileLoader(str(file)).Load() for value in event.summary.value}
    assert {"train/loss", "train/step_s", "held-out/weight", "samples/tone", "samples/sample"} <= told.keys()
    assert told["samples/sample"].metadata.plugin_data.plugin_name == "images"
    assert told["samples/tone"].metadata.plugin_data.plugin_name == "audio"
