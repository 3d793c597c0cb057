"""Mean-only affine couplings with channel flips: the flow of VITS and its relatives (Dinh et al. 2017, arXiv
1605.08803; Kim et al. 2021, arXiv 2106.06103, section 2.5.2). Volume preserving: the log-determinant is zero.

(B, C, T) -> (B, C, T) both ways. The inverse streams exactly: a WaveNet looks only ``delay`` frames ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivavoce.nn.streaming import Conv1d, Delay, Edges, behind, module_list, silence
from vivavoce.nn.wavenet import WaveNet


class Coupling(nn.Module):
    """The second half of the channels moves by a mean computed from the first half."""

    def __init__(
        self, channels: int, dim: int, kernel_size: int, dilation_rate: int, n_layers: int, speaker_dim: int = 0
    ):
        super().__init__()
        self.n_half = channels // 2
        self.pre = Conv1d(self.n_half, dim, 1)
        self.wavenet = WaveNet(dim, kernel_size, dilation_rate, n_layers, speaker_dim)
        self.post = Conv1d(dim, self.n_half, 1)
        nn.init.zeros_(self.post.weight)
        self.wait = Delay(self.wavenet.delay)
        self.delay = self.wavenet.delay

    def mean(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        """What the second half moves by, from the first half (B, C / 2, T)."""
        return self.post(self.wavenet(self.pre(x), edges, speaker))

    def forward(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        first, second = x.split(self.n_half, dim=1)
        return torch.cat([first, second + self.mean(first, edges, speaker)], dim=1)

    def inverse(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        first, second = x.split(self.n_half, dim=1)
        return torch.cat([first, second - self.mean(first, edges, speaker)], dim=1)

    def init_state(self, batch: int) -> tuple:
        return self.wavenet.init_state(batch), silence(self, batch, 2 * self.n_half, self.delay)

    def step(
        self, x: Tensor, state: tuple, edges: Edges | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        """The next piece of the inverse."""
        mean, kept = self.wavenet.step(self.pre(x[:, : self.n_half]), state[0], edges, speaker)
        x, held = self.wait.step(x, state[1])
        first, second = x.split(self.n_half, dim=1)
        return torch.cat([first, second - self.post(mean)], dim=1), (kept, held)


class CouplingFlow(nn.Module):
    """Couplings, each followed by a flip of the channels."""

    def __init__(
        self,
        channels: int,
        dim: int,
        kernel_size: int,
        dilation_rate: int,
        n_layers: int,
        n_flows: int,
        speaker_dim: int = 0,
    ):
        super().__init__()
        self.couplings = module_list(
            Coupling(channels, dim, kernel_size, dilation_rate, n_layers, speaker_dim) for _ in range(n_flows)
        )
        self.delay = sum(coupling.delay for coupling in self.couplings)

    def forward(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        """From the posterior's side to the prior's."""
        for coupling in self.couplings:
            x = coupling(x, edges, speaker).flip(1)
        return x

    def inverse(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        """From the prior's side to the posterior's."""
        for coupling in reversed(self.couplings):
            x = coupling.inverse(x.flip(1), edges, speaker)
        return x

    def init_state(self, batch: int) -> tuple:
        return tuple(coupling.init_state(batch) for coupling in reversed(self.couplings))

    def step(
        self, x: Tensor, state: tuple, edges: Edges | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        """The next piece of the inverse, ``delay`` frames late."""
        states = []
        for coupling, kept in zip(reversed(self.couplings), state, strict=True):
            x, kept = coupling.step(x.flip(1), kept, edges, speaker)
            edges = behind(edges, coupling.delay)
            states.append(kept)
        return x, tuple(states)
