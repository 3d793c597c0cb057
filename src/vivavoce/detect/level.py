"""The plainest voice detector: a chunk is speech when it is well above the quietest the microphone has heard lately.

For places where no trained detector is at hand. It takes any loud sound for speech.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """``margin`` in dB above the floor is even odds; the floor rises by ``rise`` dB a chunk and falls at once."""

    sample_rate: int = 16_000
    chunk: int = 512
    margin: float = 12.0
    slope: float = 4.0  # dB from even odds to 73 %
    rise: float = 0.05
    quietest: float = -55.0  # dB of full scale: below this nothing is speech


@dataclass(frozen=True)
class LevelState:
    """``floor`` (B,): level in dB of what is not speech."""

    floor: Tensor


class LevelDetector:
    """Chunks of a wave (B, n x chunk) -> probabilities (B, n)."""

    def __init__(self, config: LevelConfig | None = None):
        self.config = config or LevelConfig()

    def init_state(self, batch: int) -> LevelState:
        return LevelState(torch.full((batch,), self.config.quietest + self.config.margin))

    def step(self, wave: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        c = self.config
        levels = 10 * (wave.unflatten(-1, (-1, c.chunk)).square().mean(-1) + 1e-10).log10()  # (B, n)
        odds = []
        for level in levels.unbind(1):
            floor = torch.minimum(state.floor + c.rise, level.clamp_min(c.quietest))
            state = replace(state, floor=floor)
            odds.append(torch.sigmoid((level - floor - c.margin) / c.slope) * (level > c.quietest))
        return torch.stack(odds, dim=1), state
