"""Conditional flow matching (Lipman et al. 2023, arXiv 2210.02747) as speech models use it (Mehta et al. 2024,
"Matcha-TTS", arXiv 2309.03199, section 3.1): straight paths from noise to data, an Euler solver whose steps are short
near the noise, and classifier-free guidance (Le et al. 2023, "Voicebox", arXiv 2306.15687, section 3.3).

Flow time runs from 0 (noise) to 1 (data).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIGMA_MIN = 1e-6  # what is left of the noise at flow time 1


def cosine_schedule(time: Tensor) -> Tensor:
    """Uniform times in [0, 1] -> flow times that lie closer together near the noise."""
    return 1 - torch.cos(time * (0.5 * math.pi))


def euler_times(steps: int, like: Tensor) -> Tensor:
    """The flow times between which ``steps`` Euler steps go: (steps + 1,), the device and dtype of ``like``."""
    return cosine_schedule(torch.linspace(0, 1, steps + 1, device=like.device, dtype=like.dtype))


def euler(velocity: Callable[[Tensor, Tensor, int], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Carry ``noise`` (B, ...) to the data: ``velocity(x, time, n)`` gives the direction at step n, time () tensor."""
    x, times = noise, euler_times(steps, noise)
    for n in range(steps):
        x = x + (times[n + 1] - times[n]) * velocity(x, times[n], n)
    return x


def guided(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """The direction moved away from what the network says without its condition."""
    return (1 + strength) * conditional - strength * unconditional


def straight_path(noise: Tensor, data: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Where the path from ``noise`` to ``data`` (B, ...) is at flow time (B,), and the velocity it has there."""
    time = time.view(-1, *[1] * (data.dim() - 1))
    return (1 - (1 - SIGMA_MIN) * time) * noise + time * data, data - (1 - SIGMA_MIN) * noise


def toward(data: Tensor, x: Tensor, time: Tensor) -> Tensor:
    """The velocity at (x, time < 1) of the straight path that ends in ``data``."""
    return (data - x) / (1 - time)
