"""The training loop of every recipe: one step after the other, logged, resumable to the bit.

A run lives in one folder:

    recipe.json            name, settings and seed of the recipe
    log.jsonl              one object a logged step: loss terms, rate, seconds; and one an evaluation
    checkpoint.safetensors weights, optimizer moments and the step they belong to, replaced in one move
    events/, samples/      TensorBoard events and what ``Recipe.sample`` wrote, where wanted

Everything random in a step follows from (seed, step): the loop seeds torch with both before each step, and recipes draw
their batches the same way. So a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, ConfigError

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
    report: Report | None = None,
) -> dict[str, float]:  # fmt: skip
    """Run a recipe in ``folder`` until its last step, or for ``stop_after`` seconds; gives the last evaluation.

    ``resume`` goes on from the folder's checkpoint. Interrupted or stopped, the run saves itself first.
    """
    optimizer = recipe.optimizer()
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    step = _open(recipe, folder, optimizer, resume)
    log, events = _Log(folder / LOG, step), _events(folder)
    schedule, began, since, first = recipe.schedule, time.monotonic(), time.monotonic(), step
    figures: dict[str, float] = {}
    recipe.model.train()
    try:
        while step < schedule.steps:
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            factor = schedule.factor(step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
            terms = recipe.loss(step)
            terms["loss"].backward()
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(trained, schedule.clip)
            if not torch.isfinite(norm):
                raise ConfigError(f"the gradients of step {step} are not finite; lower the learning rate")
            optimizer.step()
            step += 1
            if step % schedule.log_every == 0 or step == schedule.steps:
                now = time.monotonic()
                row = {name: float(term.detach()) for name, term in terms.items()}
                row |= {"norm": float(norm), "rate": factor, "step_s": (now - since) / (step - max(first, step - schedule.log_every))}
                since = now
                log.write({"step": step, **row})
                _tell(events, "train", row, step)
            if report is not None:
                report(recipe.name, step, schedule.steps)
            due = step == schedule.steps or (stop_after is not None and time.monotonic() - began > stop_after)
            if step % schedule.evaluate_every == 0 or due:
                figures = _evaluate(recipe, folder, step)
                log.write({"step": step, "evaluation": figures})
                _tell(events, "held-out", figures, step)
                since, first = time.monotonic(), step
            if step % schedule.save_every == 0 or due:
                save(folder, recipe.model, optimizer, step)
            if due:
                break
    except KeyboardInterrupt:
        save(folder, recipe.model, optimizer, step)
        raise
    finally:
        log.close()
        if events is not None:
            events.close()
    return figures


def _evaluate(recipe: Recipe, folder: Path, step: int) -> dict[str, float]:
    """Held-out figures and samples, without touching the random numbers of training."""
    recipe.model.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(recipe.seed)
        figures = recipe.evaluate()
        recipe.sample(folder / "samples", step)
    recipe.model.train()
    return figures


def _open(recipe: Recipe, folder: Path, optimizer: torch.optim.Optimizer, resume: bool) -> int:
    """Make the folder of a new run, or read the checkpoint of an old one; gives the step to begin with."""
    about = json.loads(json.dumps({"recipe": recipe.name, "seed": recipe.seed, "settings": dict(recipe.settings())}))
    path = folder / ABOUT
    if not resume:
        if path.exists():
            raise ConfigError(f"{folder} holds a run already; add --resume to go on with it, or name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return 0
    if not path.exists():
        raise ConfigError(f"{folder} holds no run to go on with; leave --resume out to begin one")
    before = json.loads(path.read_text(encoding="utf-8"))
    for key in about["settings"] | {"seed": 0, "recipe": ""}:
        old = before.get(key) if key in ("seed", "recipe") else before["settings"].get(key)
        new = about[key] if key in ("seed", "recipe") else about["settings"][key]
        if old != new:
            raise ConfigError(f"the run in {folder} has {key} {old!r}, not {new!r}; use the same, or another folder")
    if not (folder / CHECKPOINT).exists():
        return 0  # killed before its first checkpoint
    return restore(folder, recipe.model, optimizer)


# ----------------------------------------------------------------------------------------------------- checkpoints
def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, moments and step in one safetensors file, moved into place when it is complete."""
    tensors = {f"model.{name}": tensor.detach().contiguous() for name, tensor in _weights(model).items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value).detach().contiguous()
    part = folder / f"{CHECKPOINT}.part"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, part, {"step": str(step)})
    os.replace(part, folder / CHECKPOINT)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """The inverse of :func:`save`, in place; gives the step. Without an optimizer only the weights are read."""
    path = folder / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {})["step"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint of a run; begin the run anew") from error
    own = _weights(model)
    theirs = {name.removeprefix("model."): t for name, t in stored.items() if name.startswith("model.")}
    for name in own:
        if name not in theirs or theirs[name].shape != own[name].shape:
            raise CheckpointError(f"{path} does not fit the model at {name}; it belongs to another configuration")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(theirs[name])
    if optimizer is not None:
        for number, parameter in enumerate(_parameters(optimizer)):
            prefix = f"optimizer.{number}."
            state = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
            if state:
                optimizer.state[parameter] = state
    return step


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=True))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# ------------------------------------------------------------------------------------------------------------- log
class _Log:
    """JSON lines; what a killed run wrote past its checkpoint is dropped."""

    def __init__(self, path: Path, step: int):
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _events(folder: Path) -> Any:
    """A TensorBoard writer where TensorBoard is installed (extra ``train``), else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "events"))


def _tell(events: Any, group: str, values: Mapping[str, float], step: int) -> None:
    if events is not None:
        for name, value in values.items():
            events.add_scalar(f"{group}/{name}", value, step)
