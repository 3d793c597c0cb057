"""The training loop of every recipe: one step after the other, logged, resumable to the bit.

A run lives in one folder:

    recipe.json            name, settings and seed of the recipe
    log.jsonl              one object a logged step: loss terms, rate, seconds; and one an evaluation
    checkpoint.safetensors weights, optimizer moments and the step they belong to, replaced in one move
    events/, samples/      TensorBoard events and what ``Recipe.sample`` wrote, where wanted

Everything random in a step follows from (seed, step): the loop seeds torch with both before each step, and recipes draw
their batches the same way. So a run that was killed goes on from its last checkpoint as if nothing had happened.

Under torchrun several processes share each step (:mod:`~vivavoce.train.parallel`), for recipes that have a ``share``:
gradients are averaged, the first process logs, evaluates and saves, all read the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, ConfigError
from vivavoce.train import parallel
from vivavoce.train.events import Events

CHECKPOINT, LOG, ABOUT = "checkpoint.safetensors", "log.jsonl", "recipe.json"
Report = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: linear warm-up over a share of the steps, then a half cosine to a share of the peak."""

    steps: int
    warmup: float = 0.03
    floor: float = 0.1
    clip: float = 1.0  # largest norm of all gradients together
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {getattr(self, name)}")

    def factor(self, step: int) -> float:
        """The learning rate of a step as a share of its peak."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Recipe(Protocol):
    """What a run trains and on what. ``model`` holds everything that a checkpoint keeps."""

    name: str
    seed: int
    schedule: Schedule
    model: nn.Module

    def settings(self) -> Mapping[str, Any]:
        """Plain data that must be the same when a run goes on."""
        ...

    def optimizer(self) -> torch.optim.Optimizer:
        """With the peak learning rates."""
        ...

    def loss(self, step: int) -> dict[str, Tensor]:
        """The terms of one step; ``loss`` is descended, the others are told."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def sample(self, folder: Path, step: int) -> None:
        """Write something to listen to or look at; may do nothing."""
        ...


def train(
    recipe: Recipe, folder: Path, *, resume: bool = False, stop_after: float | None = None,
    report: Report | None = None, evaluated: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Run a recipe in ``folder`` until its last step, or for ``stop_after`` seconds; gives the last evaluation.

    ``resume`` goes on from the folder's checkpoint. ``report`` hears of every step, ``evaluated`` of every evaluation.
    Asked to leave (Ctrl-C, SIGTERM), the run completes its step, saves itself and raises KeyboardInterrupt or
    SystemExit; asked once more, it leaves at once and its last checkpoint stays.
    """
    share, schedule, began = parallel.share_of(recipe), recipe.schedule, time.monotonic()
    spread, optimizer = parallel.Spread(recipe, share), recipe.optimizer()
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    if share.leads:
        check_folder(folder, resume)
        _check_space(folder, recipe.model, optimizer, resume)
        _open(recipe, folder, resume)
    share.wait()
    # a run may have been killed before its first checkpoint
    step = restore(folder, recipe.model, optimizer) if resume and (folder / CHECKPOINT).exists() else 0
    log, pace = _Log(folder, step, kept=share.leads), _Pace()
    recipe.model.train()
    try:
        with _Asked() as asked:
            while step < schedule.steps:
                terms = _descend(recipe, spread.loss, optimizer, peaks, step)
                step += 1
                pace.steps += 1
                if step % schedule.log_every == 0 or step == schedule.steps:
                    log.trained(step, share.mean(terms) | {"step_s": pace.seconds()})
                if report is not None:
                    report(recipe.name, step, schedule.steps)
                late = stop_after is not None and time.monotonic() - began > stop_after
                leaving, late = share.agree(asked.signal is not None, late)
                if leaving:
                    save(folder, recipe.model, optimizer, step, share.leads)
                    asked.leave()
                due = step == schedule.steps or late
                if step % schedule.evaluate_every == 0 or due:
                    figures = spread.judged(lambda step=step: _evaluate(recipe, folder, step, share.leads))
                    if figures is not None:
                        log.evaluated(step, figures)
                    if evaluated is not None:
                        evaluated(step, figures or {})
                    pace = _Pace()
                if step % schedule.save_every == 0 or due:
                    save(folder, recipe.model, optimizer, step, share.leads)
                if due:
                    break
    finally:
        log.close()
    return log.evaluation


def _descend(
    recipe: Recipe, loss: Callable[[int], dict[str, Tensor]], optimizer: torch.optim.Optimizer, peaks: list[float],
    step: int,
) -> dict[str, Tensor]:  # fmt: skip
    """One step; gives the terms of its loss, the norm of its gradients and its rate."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    factor = recipe.schedule.factor(step)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * factor
    optimizer.zero_grad(set_to_none=True)
    terms = loss(step)
    terms["loss"].backward()
    norm = parallel.gathered(nn.utils.clip_grad_norm_(_parameters(optimizer), recipe.schedule.clip))
    if not torch.isfinite(norm):
        raise ConfigError(f"the gradients of step {step} are not finite; lower the learning rate")
    optimizer.step()
    return {**terms, "norm": norm, "rate": torch.tensor(factor, dtype=torch.float64)}


def _evaluate(recipe: Recipe, folder: Path, step: int, leads: bool = True) -> dict[str, float]:
    """Held-out figures and samples, without touching the random numbers of training; one process keeps samples."""
    recipe.model.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(recipe.seed)
        figures = recipe.evaluate()
        with contextlib.ExitStack() as stack:
            kept = folder / "samples" if leads else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            recipe.sample(kept, step)
    recipe.model.train()
    return figures


def check_folder(folder: Path, resume: bool) -> None:
    """ConfigError where a new run would overwrite one, or where there is none to go on with."""
    there = (folder / ABOUT).exists()
    if there and not resume:
        raise ConfigError(f"{folder} holds a run already; add --resume to go on with it, or name another folder")
    if resume and not there:
        raise ConfigError(f"{folder} holds no run to go on with; leave --resume out to begin one")


def _check_space(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> None:
    """ConfigError where two checkpoints, the old and the new, would not fit; moments take twice what they belong to."""
    tensors = [*_weights(model).values(), *_parameters(optimizer), *_parameters(optimizer)]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) * (1 if resume else 2)
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ConfigError(
            f"a run in {folder} needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free there; free some, or name "
            "a folder on another disk"
        )


def _open(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Make the folder of a new run, or make sure that an old one is of this recipe with these settings."""
    about = json.loads(json.dumps({"recipe": recipe.name, "seed": recipe.seed, "settings": dict(recipe.settings())}))
    path = folder / ABOUT
    if not resume:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"no run can be written in {folder} ({error.strerror}); name another folder") from error
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old = {"recipe": before["recipe"], "seed": before["seed"], **before["settings"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the description of a run; begin the run anew") from error
    for key, new in {"recipe": about["recipe"], "seed": about["seed"], **about["settings"]}.items():
        if old.get(key) != new:
            raise ConfigError(_differs(folder, key, old.get(key), new))


def _differs(folder: Path, key: str, old: Any, new: Any) -> str:
    """What differs, the first field of it where it has fields."""
    while isinstance(old, dict) and isinstance(new, dict):
        key, old, new = next((f"{key}.{k}", old.get(k), new[k]) for k in new if old.get(k) != new[k])
    return f"the run in {folder} has {key} {old!r}, not {new!r}; use the same, or another folder"


def _replace(path: Path, text: str) -> None:
    """Write a file in one move."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ----------------------------------------------------------------------------------------------------- checkpoints
def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, leads: bool = True) -> None:
    """Weights, moments and step in one safetensors file, moved into place when it is complete and on the disk.

    Of several processes one ``leads`` and writes; all must call, since weights may lie in pieces.
    """
    tensors = {f"model.{name}": parallel.gathered(tensor) for name, tensor in _weights(model).items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{number}.{name}"] = parallel.gathered(torch.as_tensor(value))
    if not leads:
        return
    part = folder / f"{CHECKPOINT}.part"
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, part, {"step": str(step)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, folder / CHECKPOINT)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        why = "the disk is full" if _is_full(error) else str(error).partition("(os error")[0].strip()
        raise CheckpointError(
            f"step {step} could not be saved in {folder} ({why}); mend that, then go on from the checkpoint before it "
            "with --resume"
        ) from error


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """The inverse of :func:`save`, in place; gives the step. Without an optimizer only the weights are read."""
    path = folder / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint of a run; begin that run anew") from error
    own = _weights(model)
    theirs = {name.removeprefix("model."): t for name, t in stored.items() if name.startswith("model.")}
    for name in own:
        if name not in theirs or theirs[name].shape != own[name].shape:
            raise CheckpointError(f"{path} does not fit the model at {name}; it belongs to another configuration")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(parallel.laid_out(theirs[name], tensor))
    if optimizer is not None:
        for number, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer.{number}."
            state = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
            if state:  # the step counter stays with the processor, as the optimizer keeps it
                optimizer.state[parameter] = {
                    k: v if k == "step" else parallel.laid_out(v, parameter) for k, v in state.items()
                }
    return step


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=True))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# --------------------------------------------------------------------------------------------------- log and signals
class _Log:
    """JSON lines and TensorBoard events, ``kept`` by one process of a run; what a killed run wrote past its checkpoint
    is dropped. ``evaluation``: the last one."""

    def __init__(self, folder: Path, step: int, kept: bool = True):
        self.evaluation: dict[str, float] = {}
        self.folder, self._file, self._events = folder, None, None
        if not kept:
            return
        path = folder / LOG
        if path.exists():
            lines = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    if row["step"] <= step:
                        lines.append(line)
                        self.evaluation = row.get("evaluation", self.evaluation)
                except (ValueError, KeyError, TypeError):
                    continue
            _replace(path, "".join(f"{line}\n" for line in lines))
        self._file, self._events = path.open("a", encoding="utf-8"), Events(folder / "events")

    def trained(self, step: int, row: Mapping[str, float]) -> None:
        """The terms of a step."""
        self._write({"step": step, **row})
        if self._events is not None:
            self._events.figures("train", row, step)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """What was found on held-out data, and the samples that lie there."""
        self.evaluation = figures
        self._write({"step": step, "evaluation": figures})
        if self._events is not None:
            self._events.figures("held-out", figures, step)
            self._events.samples(self.folder / "samples", step)

    def close(self) -> None:
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


class _Pace:
    """How long steps take: counted from when it was made, or last asked."""

    def __init__(self):
        self.steps, self._since = 0, time.monotonic()

    def seconds(self) -> float:
        """Seconds a step; counts anew."""
        now = time.monotonic()
        taken = (now - self._since) / max(1, self.steps)
        self.steps, self._since = 0, now
        return round(taken, 4)


class _Asked:
    """Keeps Ctrl-C and SIGTERM until the step is done: half a step in a checkpoint could not be gone on from.

    Inside a thread, where signals cannot be asked for, they stay as they are.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Asked:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._keep) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.leave()
        self.signal = number

    def leave(self) -> None:
        """Do what was asked for."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + int(self.signal or signal.SIGTERM))
