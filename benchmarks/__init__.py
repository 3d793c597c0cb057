"""Figures beside the programs people use now, measured in one run. How to install those: benchmarks/README.md."""

from __future__ import annotations

from pathlib import Path


def peak_mb() -> int:
    """The most memory this process ever held, in MB (the kernel's own mark, which a parent's size does not spoil)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10
