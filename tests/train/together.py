"""One process of a run of several: tiny recipes that share their steps.

python -m tests.train.together FOLDER PORT PORT PORT     with RANK, WORLD_SIZE and MASTER_ADDR set

Each of its three runs meets at a port of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.cli import main
from vivavoce.train import loop
from vivavoce.train.loop import Schedule
from vivavoce.train.parallel import Pieces, Share, join, leave


class Net(nn.Module):
    """Frozen first layer, two that learn, one that is never used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6).requires_grad_(False)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head, self.spare = nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


class SharedRecipe:
    """Rows of unlike lengths, the mean over all their numbers: a mean of means would be another one."""

    name = "shared"

    def __init__(self, share: Share, *, in_pieces: bool = False, seed: int = 0):
        self.share, self.seed = share, seed
        self.schedule = Schedule(steps=5, log_every=1, save_every=2, evaluate_every=3)
        self.model: nn.Module = Net()
        self.pieces = Pieces(self.model, list(self.net.layers)) if in_pieces else None
        self.judged = 0

    @property
    def net(self) -> Net:
        assert isinstance(self.model, Net)
        return self.model

    def settings(self) -> Mapping[str, Any]:
        return {"rate": 0.02}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.02)

    def loss(self, step: int) -> dict[str, Tensor]:
        rows = [torch.randn(length, 4) for length in (2, 3, 5, 7, 11, 13, 17)]
        own = torch.cat(self.share.take(rows))
        found = (self.net(own) - own[:, :3].sin()).square().mean(1)
        count = self.share.total(torch.tensor(float(len(found))))
        loss = found.sum() * self.share.world / count
        return {"loss": loss, "double": 2 * loss}

    def evaluate(self) -> dict[str, float]:
        self.judged += 1
        return {"zero": float(self.net(torch.zeros(1, 4)).sum())}

    def sample(self, folder: Path, step: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / f"{step:06d}.txt").write_text("heard")


def shared(share: Share, folder: Path) -> None:
    """Whole runs, and runs that stop after a step and go on, with copies and in pieces."""
    for name, in_pieces in (("copies", False), ("pieces", True)):
        recipe = SharedRecipe(share, in_pieces=in_pieces)
        loop.train(recipe, folder / name)
        assert recipe.judged == (2 if in_pieces or share.leads else 0)
        loop.train(SharedRecipe(share, in_pieces=in_pieces), folder / f"{name}-cut", stop_after=0)
        loop.train(SharedRecipe(share, in_pieces=in_pieces), folder / f"{name}-cut", resume=True)


def tuned(world: int, desk: Path, ports: Sequence[str] = ()) -> None:
    """``viva finetune`` on own records, with copies and in pieces."""
    for number, processes in enumerate(("copies", "pieces") if world > 1 else ("copies",)):
        if ports:
            os.environ["MASTER_PORT"] = ports[number]
        pairs = ("budget=700", "written=1", "evaluate_every=5", "rate=1e-3", f"processes={processes}")
        given = [
            "--model",
            desk / "packing",
            "--run",
            desk / f"run-{world}-{processes}",
            "--held-out",
            0.2,
            "--rank",
            4,
        ]
        chosen = [word for pair in pairs for word in ("--set", pair)]
        try:
            main(
                list(map(str, ["finetune", "vita_audio", desk / "data.jsonl", *given, "--steps", 5, *chosen, "--json"]))
            )
        except SystemExit as left:
            assert left.code in (0, None), left.code


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.modules["tensorboard"] = None  # pyright: ignore[reportArgumentType]
    desk, *ports = sys.argv[1:]
    os.environ["MASTER_PORT"] = ports[0]
    mine, _ = join(torch.device("cpu"))
    assert mine.world == int(os.environ["WORLD_SIZE"])
    shared(mine, Path(desk))
    leave()
    tuned(mine.world, Path(desk), ports[1:])
