"""The gated stack of dilated convolutions (van den Oord et al. 2016, "WaveNet", arXiv 1609.03499, section 2.3) as flows
use it: not causal, skip outputs summed, the last layer without a residual (Prenger et al. 2018, "WaveGlow").

(B, C, T) -> (B, C, T); a speaker vector (B, G) can tint every layer. Streams exactly, ``delay`` frames late.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vivavoce.nn.streaming import Conv1d, Delay, Edges, behind, join, last, module_list, silence


class WaveNet(nn.Module):
    """``n_layers`` of: convolution, tanh times sigmoid, 1x1 convolution into residual and skip."""

    def __init__(self, dim: int, kernel_size: int, dilation_rate: int, n_layers: int, speaker_dim: int = 0):
        super().__init__()
        self.dim = dim
        self.gates = module_list(Conv1d(dim, 2 * dim, kernel_size, dilation=dilation_rate**i) for i in range(n_layers))
        self.outputs = module_list(Conv1d(dim, 2 * dim if i + 1 < n_layers else dim, 1) for i in range(n_layers))
        self.speaker = nn.Linear(speaker_dim, 2 * dim * n_layers) if speaker_dim else None
        self.waits = [Delay(gate.delay) for gate in self.gates]
        self.delay = sum(gate.delay for gate in self.gates)

    def forward(self, x: Tensor, edges: Edges | None = None, speaker: Tensor | None = None) -> Tensor:
        total: Tensor | None = None
        for gate, output, tint in zip(self.gates, self.outputs, self._tints(speaker), strict=True):
            residual, skip = self._layer(gate(x, edges), output, tint)
            total = skip if total is None else total + skip
            x = x if residual is None else x + residual
        assert total is not None
        return total

    def init_state(self, batch: int) -> tuple:
        return tuple((gate.init_state(batch), silence(self, batch, self.dim, gate.delay)) for gate in self.gates)

    def step(
        self, x: Tensor, state: tuple, edges: Edges | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, tuple]:
        total, frames, states = None, x.shape[-1], []
        layers = zip(self.gates, self.outputs, self.waits, self._tints(speaker), state, strict=True)
        for gate, output, wait, tint, (kept, held) in layers:
            full = join(kept, x if edges is None else edges.clear(x))
            residual, skip = self._layer(gate.valid(full), output, tint)
            if total is None:
                total = skip
            else:
                total, held = wait.step(total, held)
                total = total + skip
            states.append((last(full, gate.kept), held))
            start = gate.kept - gate.delay
            x = x if residual is None else full[..., start : start + frames] + residual
            edges = behind(edges, gate.delay)
        assert total is not None
        return total, tuple(states)

    def _layer(self, x: Tensor, output: nn.Module, tint: Tensor | None) -> tuple[Tensor | None, Tensor]:
        if tint is not None:
            x = x + tint
        y = output(torch.tanh(x[:, : self.dim]) * torch.sigmoid(x[:, self.dim :]))
        if y.shape[1] == self.dim:
            return None, y
        return y[:, : self.dim], y[:, self.dim :]

    def _tints(self, speaker: Tensor | None) -> list[Tensor | None]:
        if self.speaker is None or speaker is None:
            return [None] * len(self.gates)
        return list(self.speaker(speaker)[..., None].chunk(len(self.gates), dim=1))
