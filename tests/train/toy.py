"""A recipe that takes milliseconds: a line through noisy points with dropout, and a buffer that follows the loss.

python -m tests.train.toy FOLDER STEP     dies of SIGKILL in the middle of saving that step
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vivavoce.train import loop
from vivavoce.train.loop import Schedule


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(6, 3)
        self.register_buffer("mean_loss", torch.zeros(()))


class ToyRecipe:
    """``at``: what happens before a step's loss. ``rate`` is a setting, ``evaluate_every`` is none."""

    name = "toy"

    def __init__(
        self, steps: int = 30, rate: float = 0.05, seed: int = 3, evaluate_every: int = 1000,
        at: Callable[[int], None] = lambda step: None,
    ):  # fmt: skip
        self.seed, self.rate, self.at = seed, rate, at
        self.schedule = Schedule(steps=steps, log_every=5, save_every=10, evaluate_every=evaluate_every)
        torch.manual_seed(seed)
        self.model: nn.Module = Toy()
        self.samples = 0

    @property
    def toy(self) -> Toy:
        assert isinstance(self.model, Toy)
        return self.model

    def settings(self) -> Mapping[str, Any]:
        return {"rate": self.rate, "steps": self.schedule.steps, "size": {"inner": 6, "outer": 3}}

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.toy.line.weight], "lr": self.rate}, {"params": [self.toy.line.bias], "lr": 0.1}]
        return torch.optim.AdamW(groups)

    def loss(self, step: int) -> dict[str, Tensor]:
        self.at(step)
        x = torch.randn(16, 6)
        wanted = x[:, :3] - 2 * x[:, 3:]
        got = self.toy.line(F.dropout(x, 0.1, training=self.model.training))
        loss = (got - wanted).square().mean()
        self.toy.mean_loss.lerp_(loss.detach(), 0.1)
        return {"loss": loss, "double": 2 * loss}

    def evaluate(self) -> dict[str, float]:
        assert not self.model.training
        return {"weight": float(self.toy.line.weight.mean()), "drawn": float(torch.rand(()))}

    def sample(self, folder: Path, step: int) -> None:
        self.samples += 1


def die_in_the_middle_of(step: str) -> None:
    """Write half of the checkpoint of ``step``, then SIGKILL."""

    def dying(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if metadata["step"] == step:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    loop.save_file = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.modules["tensorboard"] = None  # pyright: ignore[reportArgumentType]
    die_in_the_middle_of(sys.argv[2])
    loop.train(ToyRecipe(), Path(sys.argv[1]))
