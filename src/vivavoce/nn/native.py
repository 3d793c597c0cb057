"""The C kernels of native.c: compiled on first use where a C compiler is there, never needed.

``enable(folder)`` is called once by whoever loads a model; from then on integer layers built by nn/quantized.py keep their
plain rows and compute in C, and nn/decoder.py passes one conversation through a whole stack in one call. Without a compiler,
or with VIVA_NATIVE=0 in the environment, everything runs on torch as before; ``status()`` says which, and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.c")
COMPILERS = ("cc", "gcc", "clang")
# the first set that compiles is taken: some compilers lack OpenMP, some the name "native"
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
FIXED = ("-std=gnu11", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
MAX_WIDTH = 1024  # of a head, as native.c has room for
MAX_INPUTS = 1 << 16  # of an int8 layer: 32-bit sums hold so many products
GROUP = 32
INT8, INT4 = 8, 4

_long, _pointer = ctypes.c_int64, ctypes.c_void_p


class LinearStruct(ctypes.Structure):
    """``Linear`` of native.c."""

    _fields_ = [("kind", _long), ("n", _long), ("k", _long), ("weight", _pointer), ("scale", _pointer), ("bias", _pointer)]


class LayerStruct(ctypes.Structure):
    """``Layer`` of native.c."""

    _fields_ = [("attention_norm", _pointer), ("ffn_norm", _pointer), ("qkv", LinearStruct), ("out", LinearStruct),
                ("gate_up", LinearStruct), ("down", LinearStruct)]  # fmt: skip


class PlanStruct(ctypes.Structure):
    """``Plan`` of native.c."""

    _fields_ = [("n_layers", _long), ("dim", _long), ("heads", _long), ("groups", _long), ("width", _long), ("ffn", _long),
                ("norm", _pointer), ("table", _pointer), ("context", _long), ("eps", ctypes.c_double),
                ("layers", _pointer)]  # fmt: skip


_SIGNATURES = {
    "linear_bytes": ((_pointer, _long), _long),
    "linear": ((_pointer, _long, _pointer, _pointer, _pointer, ctypes.c_int32), None),
    "int4_bytes": ((_long, _long), _long),
    "pack_int4": ((_long, _long, _pointer, _pointer, _pointer, _pointer), None),
    "decoder_bytes": ((_pointer, _long, _long, ctypes.c_int32), _long),
    "decoder_step": (
        (_pointer, _pointer, _pointer, _long, _long, _long, _pointer, _pointer, _pointer, ctypes.c_int32),
        None,
    ),
}

_library: ctypes.CDLL | None = None
_status = "the C kernels were not asked for"


def enable(folder: Path) -> bool:
    """Make the kernels of ``folder`` (compiled there at need) those of every integer layer built from now on."""
    global _library, _status
    if os.environ.get("VIVA_NATIVE") == "0":
        _library, _status = None, "C kernels are turned off by VIVA_NATIVE=0"
    elif _library is None:
        _library, _status = library(folder)
    return _library is not None


def disable() -> None:
    """Build integer layers on torch again; layers that were built before keep their kernels."""
    global _library, _status
    _library, _status = None, "the C kernels were not asked for"


def active() -> bool:
    """Whether new integer layers compute in C."""
    return _library is not None


def status() -> str:
    """One line for a report: which kernels are in use, or why none are."""
    return _status


def library(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels and a line about them, or None and the reason; never raises for what this machine lacks."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"no C compiler found (looked for {', '.join(COMPILERS)}); models run on torch alone"
    try:
        file = folder / f"kernels-{_fingerprint(compiler)}.so"
        if not _whole(file):
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, file)
        return _load(file), f"C kernels compiled by {Path(compiler).name} in use"
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        return None, f"the C kernels could not be built ({' '.join(str(error).split())[:200]}); models run on torch alone"


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler and the processor that "native" means."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.exists() else [platform.processor()]
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features")) or len(lines) == 1})
    parts = (SOURCE.read_bytes(), repr((FIXED, FLAGS)).encode(), version, "\n".join(processor).encode(),
             platform.machine().encode())  # fmt: skip
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _compile(compiler: str, file: Path) -> None:
    """Into a file of another name, then renamed: another process sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=file.parent) as room:
        made = Path(room) / "kernels.so"
        for flags in FLAGS:
            command = [compiler, *FIXED, *flags, str(SOURCE), "-o", str(made), "-lm"]
            run = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=room)
            if run.returncode == 0:
                break
        else:
            raise OSError(run.stderr.decode(errors="replace") or "the compiler failed")
        _seal(file).write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="ascii")
        made.replace(file)


def _seal(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _whole(file: Path) -> bool:
    """Whether the compiled file is what was written: a damaged one is compiled again."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == _seal(file).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _load(file: Path) -> ctypes.CDLL:
    handle = ctypes.CDLL(str(file))
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(handle, name)
        function.argtypes, function.restype = arguments, result
    return handle


class NativeLinear:
    """One layer for the C kernels: x (..., K) float32 -> (..., N). Keeps the tensors alive that ``struct`` points to."""

    def __init__(self, kind: int, n: int, k: int, weight: Tensor, scale: Tensor | None, bias: Tensor | None):
        assert _library is not None
        self._library, self._kept = _library, (weight, scale, bias)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._kept]
        self.struct = LinearStruct(kind, n, k, *pointers)

    def __call__(self, x: Tensor) -> Tensor:
        struct = self.struct
        if x.shape[-1] != struct.k:
            raise ValueError(f"the layer takes {struct.k} inputs, not {x.shape[-1]}")
        x = x.float().contiguous()
        length = x.numel() // struct.k
        y = torch.empty((*x.shape[:-1], struct.n))
        where = ctypes.byref(struct)
        work = torch.empty(self._library.linear_bytes(where, length), dtype=torch.uint8)
        threads = torch.get_num_threads()
        self._library.linear(where, length, x.data_ptr(), y.data_ptr(), work.data_ptr(), threads)
        return y


def int8_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> NativeLinear | None:
    """A layer over int8 rows (N, K), used where they lie, with scales (N,); None where the kernels cannot serve it."""
    n, k = weight.shape
    if _library is None or k > MAX_INPUTS or scale.shape != (n,) or (bias is not None and bias.shape != (n,)):
        return None
    return NativeLinear(INT8, n, k, weight.contiguous(), scale.float().contiguous(), bias)


def int4_linear(levels: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None) -> NativeLinear | None:
    """A layer over packed levels (N, K / 2) with scales and lowest values (N, K / 32); None as for :func:`int8_linear`."""
    n, k = levels.shape[0], 2 * levels.shape[1]
    groups = (n, k // GROUP)
    if _library is None or k % GROUP or scale.shape != groups or low.shape != groups or not n:
        return None
    if bias is not None and bias.shape != (n,):
        return None
    packed = torch.empty(_library.int4_bytes(n, k), dtype=torch.uint8)
    levels, scale, low = levels.contiguous(), scale.half().contiguous(), low.half().contiguous()
    _library.pack_int4(n, k, levels.data_ptr(), scale.data_ptr(), low.data_ptr(), packed.data_ptr())
    return NativeLinear(INT4, n, k, packed, None, bias)


class NativeStack:
    """A whole decoder for the C kernels, made once per Decoder."""

    def __init__(self, sizes: tuple[int, ...], eps: float, norms: list[tuple[Tensor, Tensor]],
                 linears: list[tuple[NativeLinear, ...]], norm: Tensor, table: Tensor):  # fmt: skip
        """sizes: dim, heads, key/value heads, head width, feed-forward width; norms and linears (qkv, out, gate_up, down)
        per layer; table (2, context, head width)."""
        self._library = linears[0][0]._library
        self._kept = (norms, linears, norm, table)
        self.context, self.width = table.shape[1], sizes[3]
        self._layers = (LayerStruct * len(norms))(
            *(
                LayerStruct(first.data_ptr(), second.data_ptr(), *(linear.struct for linear in four))
                for (first, second), four in zip(norms, linears, strict=True)
            )
        )
        self.plan = PlanStruct(
            len(norms), *sizes, norm.data_ptr(), table.data_ptr(), self.context, eps, ctypes.addressof(self._layers)
        )
        self._pointers = _pointer * len(norms)

    def step(self, x: Tensor, keys: list[Tensor], values: list[Tensor], span: int) -> Tensor:
        """x (1, T, D) -> normed states (1, T, D); caches (1, G, capacity, width) are written in place up to ``span``."""
        x, length, capacity = x.contiguous(), x.shape[1], keys[0].shape[2]
        if not length <= span <= min(capacity, self.context):
            raise ValueError(f"{span} positions do not fit {capacity} slots of a context of {self.context}")
        threads = torch.get_num_threads()
        plan, y = ctypes.byref(self.plan), torch.empty_like(x)
        work = torch.empty(self._library.decoder_bytes(plan, length, span, threads), dtype=torch.uint8)
        self._library.decoder_step(
            plan, self._pointers(*(key.data_ptr() for key in keys)), self._pointers(*(value.data_ptr() for value in values)),
            capacity, span, length, x.data_ptr(), y.data_ptr(), work.data_ptr(), threads,
        )  # fmt: skip
        return y


def stack(sizes: tuple[int, ...], eps: float, norms: list[tuple[Tensor, Tensor]], linears: list[tuple[object, ...]],
          norm: Tensor, table: Tensor) -> NativeStack | None:  # fmt: skip
    """A :class:`NativeStack` of these parts, or None where one of them is not for the C kernels."""
    dim, heads, groups, width, ffn = sizes
    joined, seen = (heads + 2 * groups) * width, heads * width
    wanted = ((joined, dim), (dim, seen), (2 * ffn, dim), (dim, ffn))
    ready = []
    for four in linears:
        kernels = tuple(kernel for kernel in four if isinstance(kernel, NativeLinear))
        if tuple((kernel.struct.n, kernel.struct.k) for kernel in kernels) != wanted:
            return None
        ready.append(kernels)
    plain = all(
        tensor.dtype == torch.float32 and tensor.shape == (dim,) and tensor.is_contiguous() and tensor.device.type == "cpu"
        for tensor in (norm, *(gain for pair in norms for gain in pair))
    )
    if not plain or width > MAX_WIDTH or width % 2:
        return None
    return NativeStack(sizes, eps, norms, ready, norm, table)
