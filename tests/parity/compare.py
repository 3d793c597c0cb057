"""How recorded and computed values are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Case:
    """A recorded case: inputs, expected tensors, and expected plain values."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.expected: dict[str, Any] = self.about.get("expected_values", {})
        self.tensors = load_file(folder / "io.safetensors")
        self.errors: dict[str, float] = {}

    def given(self, name: str) -> torch.Tensor:
        return self.tensors[f"in.{name}" if f"in.{name}" in self.tensors else name]

    def wanted(self, name: str) -> torch.Tensor:
        """A recorded output; some cases mark inputs and outputs with ``in.`` and ``out.``, others do not."""
        return self.tensors[f"out.{name}" if f"out.{name}" in self.tensors else name]

    def wave(self, name: str) -> torch.Tensor:
        """A recorded int16 wave as float32 in [-1, 1]."""
        return self.given(name).float() / 32768

    def close(self, name: str, value: torch.Tensor, what: str | None = None) -> None:
        """Largest difference over the largest expected value; a shape that differs counts as infinite."""
        wanted = self.wanted(name)
        self.errors[what or name] = relative(value, wanted)

    def equal(self, name: str, value: Any, wanted: Any) -> None:
        self.errors[name] = 0.0 if value == wanted else 1.0


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    if tuple(value.shape) != tuple(wanted.shape):
        return float("inf")
    if not wanted.is_floating_point():
        return float(not torch.equal(value.to(wanted.dtype), wanted))
    difference = (value.double() - wanted.double()).abs().max().item()
    return difference / max(wanted.double().abs().max().item(), 1e-12)
