"""What there is: the models that can be pulled, what a file or name is made of, what this machine offers.

Nothing in an inspected file is executed, and no tensor is kept.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.catalogue import CATALOGUE, SHIPPED, SYSTEMS, is_shipped, reference, system
from vivavoce.checkpoints import store
from vivavoce.checkpoints.gguf import GGUFFile
from vivavoce.checkpoints.native import open_native
from vivavoce.checkpoints.read import Checkpoint, open_checkpoint, read_json
from vivavoce.checkpoints.rules import Layout, detect
from vivavoce.checkpoints.sources import SOURCES
from vivavoce.errors import CheckpointError, ConfigError, UnknownNameError, nearest
from vivavoce.nn import native
from vivavoce.nn.quantized import Int8Linear

CONFIG = "config.json"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as it lies in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """What a file or name is. ``stack`` lists (file, lines) of a system, ``tensors`` what a checkpoint holds."""

    name: str
    system: str | None
    layout: str | None
    format: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    stack: tuple[tuple[str, int], ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Numbers in all tensors, without the scales of integer rows."""
        scales = {f"{tensor.name}_scale" for tensor in self.tensors}
        return sum(math.prod(tensor.shape) for tensor in self.tensors if tensor.name not in scales)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "n_parameters": self.n_parameters}


def inspect(name_or_path: str | Path) -> Inspection:
    """What a system, pulled model or weight file is made of; nothing in a file is executed."""
    text = str(name_or_path)
    if text in SYSTEMS:
        row = system(text)
        return Inspection(text, text, None, sizes=dict(row.sizes), stack=stack(text))
    if text in SOURCES:
        return _inspect_native(store.locate(text), text)
    if is_shipped(text):
        return _inspect_native(SHIPPED[text], text)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        known = (*SYSTEMS, *SOURCES, *SHIPPED)
        raise UnknownNameError(f"{text!r} is neither a system, a model nor a file here{nearest(text, known)}")
    if is_native(path):
        return _inspect_native(path, path.name)
    checkpoint = open_checkpoint(path)
    try:
        stem, layout, _ = find_layout(checkpoint)
    except CheckpointError:
        stem, layout = None, None
    lines = stack(stem) if stem else ()
    return Inspection(
        path.name, stem, layout, checkpoint.format, {}, lines, tuple(_tensors(checkpoint)), checkpoint.foreign
    )


def _inspect_native(folder: Path, name: str) -> Inspection:
    about = open_native(folder)
    tensors = tuple(_info(key, tensor) for key, tensor in about.tensors().items())
    return Inspection(name, about.system, "vivavoce", "safetensors", about.config, stack(about.system), tensors)


def _tensors(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    if isinstance(checkpoint.tensors, GGUFFile):
        for name, entry in checkpoint.tensors.entries.items():
            yield TensorInfo(name, entry.shape, entry.type.name)
    else:
        for name in checkpoint.tensors:
            yield _info(name, checkpoint.tensors[name])


def _info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def stack(stem: str) -> tuple[tuple[str, int], ...]:
    """The brick files of a system with their line counts."""
    found = []
    for module in system(stem).modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        lines = Path(spec.origin).read_text("utf-8").count("\n")
        found.append(("/".join(module.split(".")) + ".py", lines))
    return tuple(found)


@dataclass(frozen=True)
class Check:
    """One line of :func:`doctor`; ``advice`` says the mend where something is missing."""

    name: str
    value: str
    good: bool = True
    advice: str = ""


def doctor(threads: int | None = None) -> list[Check]:
    """What this machine offers: versions, processor, extras, cache."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    native.enable(store.cache_dir() / "kernels")
    checks = [
        Check("python", platform.python_version(), sys.version_info >= (3, 11), "use Python 3.11 or newer"),
        Check("torch", torch.__version__),
        Check("threads", f"{set_threads(threads)} of {cores} cores"),
        Check("processor", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {_flags()}"),
        Check("kernels", native.status(), native.active(), "install a C compiler (gcc) for quicker language models"),
        Check("int8", _int8_gain()),
        Check("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        *_extras(),
    ]
    folder = store.cache_dir()
    here = store.installed()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    return [
        *checks,
        Check("cache", f"{folder}: {size / 1e6:.0f} MB used, {free / 1e9:.1f} GB free", free > 2e9, "free some disk"),
        Check("models", ", ".join(here) or "none", bool(here), "run  viva pull starter"),
    ]


def _flags() -> str:
    """The vector instructions that matter for integer and half-precision layers."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "flags unknown"
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    wanted = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "bf16")
    return " ".join(flag for flag in wanted if flag in line.split()) or "no vector extensions"


def _int8_gain() -> str:
    """How much quicker integer layers are than float ones here, one row at a time (the step of a language model)."""
    linear = torch.nn.Linear(1024, 4096).requires_grad_(False)
    quick, row = Int8Linear.from_linear(linear), torch.randn(1, 1024)

    def fastest(layer: torch.nn.Module) -> float:
        times = []
        for _ in range(40):
            began = time.perf_counter()
            layer(row)
            times.append(time.perf_counter() - began)
        return min(times)

    floats, integers = fastest(linear), fastest(quick)
    return f"layer of 1024 x 4096: {floats * 1e6:.0f} us in float32, {integers * 1e6:.0f} us in int8"


def _extras() -> Iterator[Check]:
    for module, extra, why in (
        ("av", "media", "mp4, m4a, webm, aac"),
        ("sounddevice", "mic", "microphone and loudspeaker"),
        ("espeakng_loader", "phonemes", "voices in all languages"),
        ("huggingface_hub", "hub", "pulling from the hub"),
        ("matplotlib", "plot", "viva plot"),
    ):
        there = importlib.util.find_spec(module) is not None
        yield Check(f"[{extra}]", f"{module}: {why}", there, f"pip install 'vivavoce[{extra}]'")


def is_native(path: Path) -> bool:
    """Whether a folder is one of ours, as ``viva pull`` writes them."""
    try:
        about = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    except CheckpointError:
        return False
    return about.get("system") in SYSTEMS and isinstance(about.get("config"), dict)


def find_layout(checkpoint: Checkpoint) -> tuple[str, str, Layout | None]:
    """(stem, layout's name, its table) of published weights; the table is None where it depends on the head counts."""
    if checkpoint.format == "gguf":
        return "llama", "llama, GGUF", None
    if not any(key.startswith("mtp_projs.") for key in checkpoint.tensors) and is_vita_audio(checkpoint):
        return "vita_audio", "vita_audio, transformers", None  # without modules its names are those of a Qwen2
    tables = [(row.stem, reference(path)) for row in CATALOGUE for path in row.layouts.values()]
    told = [table if isinstance(table, Layout) else table(1, 1) for _, table in tables]  # for the signature alone
    layout = detect(checkpoint.tensors, told)
    stem, table = next(found for found, made in zip(tables, told, strict=True) if made is layout)
    return stem, layout.name, layout if table is layout else None


def is_vita_audio(checkpoint: Checkpoint) -> bool:
    """Whether the config.json beside the weights says that they are a plain VITA-Audio's."""
    return (
        "config.json" in checkpoint.files
        and read_json(checkpoint.files["config.json"]).get("model_type") == "qwen2_mtp"
    )


def find_device(name: str | None) -> torch.device:
    """The device of a name, of VIVA_DEVICE, or the processor; ConfigError where there is no such one here."""
    wanted = name or os.environ.get("VIVA_DEVICE") or "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {wanted!r}; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"the device {wanted!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this torch finds no GPU; use --device cpu, or install a torch with CUDA")
    if device.type == "cuda":  # convolutions too compute what they compute on a processor
        torch.backends.cudnn.allow_tf32 = False
    return device


def set_threads(threads: int | None = None) -> int:
    """Use ``threads`` cores: the number given, or VIVA_THREADS, or OMP_NUM_THREADS, or the idle cores (at most 4)."""
    if threads is None:
        for name in ("VIVA_THREADS", "OMP_NUM_THREADS"):
            text = os.environ.get(name, "")
            if text:
                threads = _whole_number(name, text)
                break
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        threads = max(1, min(4, cores - round(busy)))
    if not 1 <= threads <= 1024:
        raise ConfigError(f"threads must lie between 1 and 1024, not {threads}")
    torch.set_num_threads(threads)
    return threads


def _whole_number(name: str, text: str) -> int:
    first = text.split(",")[0]
    if not first.isdigit():
        raise ConfigError(f"{name} must be a whole number, not {text!r}")
    return int(first)
