"""The C kernels of native.c: compiled on first use where a C compiler is there, never needed.

``enable(folder)`` is called once by whoever loads a model; from then on layers built by nn/quantized.py and
nn/packed.py compute in C, and nn/decoder.py passes texts through a whole stack in one call. Without a compiler, or with
VIVA_NATIVE=0 in the environment, everything runs on torch; ``status()`` says which, and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.c")
COMPILERS = ("cc", "gcc", "clang")
# the first set that compiles is taken: some compilers lack OpenMP, some the name "native"
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
FIXED = ("-std=gnu11", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden")
MAX_TEXTS = 64  # whose caches are known at once
MAX_INPUTS = 1 << 16  # of an int8 layer: 32-bit sums hold so many products
FLOAT, INT8, INT4 = 32, 8, 4
TILE = 16  # rows of a float or 4-bit matrix that lie interleaved

_long, _pointer = ctypes.c_int64, ctypes.c_void_p


class LinearStruct(ctypes.Structure):
    """``Linear`` of native.c."""

    _fields_ = [("kind", _long), ("n", _long), ("k", _long),
                ("weight", _pointer), ("scale", _pointer), ("bias", _pointer)]  # fmt: skip


class LayerStruct(ctypes.Structure):
    """``Layer`` of native.c."""

    _fields_ = [("attention_norm", _pointer), ("ffn_norm", _pointer), ("qkv", LinearStruct), ("out", LinearStruct),
                ("gate_up", LinearStruct), ("down", LinearStruct)]  # fmt: skip


class TextStruct(ctypes.Structure):
    """``Text`` of native.c."""

    _fields_ = [("keys", _pointer), ("values", _pointer), ("capacity", _long), ("span", _long), ("length", _long),
                ("offset", _long)]  # fmt: skip


class PlanStruct(ctypes.Structure):
    """``Plan`` of native.c."""

    _fields_ = [("n_layers", _long), ("dim", _long), ("heads", _long), ("groups", _long), ("width", _long),
                ("ffn", _long), ("norm", _pointer), ("table", _pointer), ("context", _long), ("eps", ctypes.c_double),
                ("layers", _pointer)]  # fmt: skip


_SIGNATURES = {
    "linear_bytes": ((_pointer, _long), _long),
    "linear": ((_pointer, _long, _pointer, _pointer, _pointer, ctypes.c_int32), None),
    "decoder_bytes": ((_pointer, _long, _long, ctypes.c_int32), _long),
    "decoder_step": (
        (_pointer, _pointer, _long, _pointer, _pointer, _pointer, ctypes.c_int32),
        None,
    ),
    "draft_bytes": ((_pointer, _long, _long, _long, _long, ctypes.c_int32), _long),
    "draft": ((_pointer, _pointer, _pointer, _long, _long, _pointer, ctypes.c_int32), None),
}

_library: ctypes.CDLL | None = None
_status = "the C kernels were not asked for"
_failed: dict[tuple[Path, str], str] = {}  # folder and compiler -> why: what failed once is not tried at every load


def enable(folder: Path) -> bool:
    """Make the kernels of ``folder`` (compiled there at need) those of all layers for them built from now on."""
    global _library, _status
    if os.environ.get("VIVA_NATIVE") == "0":
        _library, _status = None, "C kernels are turned off by VIVA_NATIVE=0"
    elif _library is None:
        _library, _status = library(folder)
    return _library is not None


def disable() -> None:
    """Build layers on torch again; layers that were built before keep their kernels."""
    global _library, _status
    _library, _status = None, "the C kernels were not asked for"


def active() -> bool:
    """Whether new layers compute in C."""
    return _library is not None


def status() -> str:
    """One line for a report: which kernels are in use, or why none are."""
    return _status


def library(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels and a line about them, or None and the reason; never raises for what this machine lacks."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"no C compiler found (looked for {', '.join(COMPILERS)}); models run on torch alone"
    asked = (folder, compiler)
    if asked in _failed:
        return None, _failed[asked]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _open_to_others(folder):
            return None, f"others may write into {folder}, so no C kernels are taken from it; models run on torch alone"
        file = folder / f"kernels-{_fingerprint(compiler)}.so"
        return _kept(file) or _compile(compiler, file), f"C kernels compiled by {Path(compiler).name} in use"
    except (OSError, subprocess.SubprocessError) as error:
        why = " ".join(str(error).split())[:200]
        _failed[asked] = f"the C kernels could not be built ({why}); models run on torch alone"
        return None, _failed[asked]


def _open_to_others(folder: Path) -> bool:
    """Whether somebody else could have put a library there, for us to run."""
    if os.name != "posix":
        return False
    found = folder.stat()
    return found.st_uid != os.geteuid() or bool(found.st_mode & 0o022)


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler and the processor that "native" means."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=True).stdout
    about, processor = Path("/proc/cpuinfo"), {platform.machine(), platform.processor()}
    if about.exists():
        lines = about.read_text(encoding="utf-8", errors="replace").splitlines()
        processor |= {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    parts = (SOURCE.read_bytes(), repr((FIXED, FLAGS)).encode(), version, "\n".join(sorted(processor)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _compile(compiler: str, file: Path) -> ctypes.CDLL:
    """Into a file of another name, then renamed: another process sees all of it or nothing."""
    why = "the compiler made nothing"
    with tempfile.TemporaryDirectory(dir=file.parent) as room:
        made = Path(room) / "kernels.so"
        for flags in FLAGS:
            command = [compiler, *FIXED, *flags, str(SOURCE), "-o", str(made), "-lm"]
            run = subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=room)
            if run.returncode or not made.exists():
                why = run.stderr.decode(errors="replace") or why
                continue
            _seal(file).write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="ascii")
            made.replace(file)
            try:
                return _load(file)
            except (OSError, AttributeError) as error:  # such as a missing OpenMP library: plainer flags may do
                why = str(error)
                file.unlink(missing_ok=True)
    raise OSError(why)


def _kept(file: Path) -> ctypes.CDLL | None:
    """The kernels compiled before, if they are there, whole and can be loaded."""
    try:
        return _load(file) if _whole(file) else None
    except (OSError, AttributeError):
        return None


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
    """One layer for the C kernels: x (..., K) float32 -> (..., N). Keeps alive what ``struct`` points to."""

    def __init__(self, kind: int, n: int, k: int, weight: Tensor, scale: Tensor | None, bias: Tensor | None):
        assert _library is not None
        self._library, self._kept = _library, (weight, scale, bias)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._kept]
        self.struct = LinearStruct(kind, n, k, *pointers)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(self.struct, x)

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Only a run of the outputs: x (..., K) -> (..., R); nothing else is computed but what shares its tiles."""
        whole, first = self.struct, rows.start
        start = first if whole.kind == INT8 else first // TILE * TILE
        weight, scale, bias = self._kept
        row = whole.k if whole.kind == INT8 else weight.nbytes // (-(-whole.n // TILE) * TILE)
        numbers = [None if part is None else part.data_ptr() + 4 * start for part in (scale, bias)]
        some = LinearStruct(whole.kind, rows.stop - start, whole.k, weight.data_ptr() + start * row, *numbers)
        return self._product(some, x)[..., first - start :]

    def _product(self, struct: LinearStruct, x: Tensor) -> Tensor:
        if x.shape[-1] != struct.k:
            raise ValueError(f"the layer takes {struct.k} inputs, not {x.shape[-1]}")
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("layers for the C kernels have no gradient; train the model before it is made ready")
        if x.device.type != "cpu":
            raise ValueError(f"these layers compute on the CPU, not on {x.device}")
        x = x.float().contiguous()
        length = x.numel() // struct.k
        y = torch.empty((*x.shape[:-1], struct.n))
        where = ctypes.byref(struct)
        work = torch.empty(self._library.linear_bytes(where, length), dtype=torch.uint8)
        threads = torch.get_num_threads()
        self._library.linear(where, length, x.data_ptr(), y.data_ptr(), work.data_ptr(), threads)
        return y


def float_linear(tiles: Tensor, n: int, bias: Tensor | None) -> NativeLinear | None:
    """A layer over the float tiles of nn/packed.py, used where they lie; None where the kernels cannot serve it."""
    if _library is None or tiles.shape[0] != -(-n // TILE) or tiles.shape[2] != TILE or tiles.dtype != torch.float32:
        return None
    if bias is not None and bias.shape != (n,):
        return None
    return NativeLinear(FLOAT, n, tiles.shape[1], tiles.contiguous(), None, bias)


def int8_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> NativeLinear | None:
    """A layer over int8 rows (N, K), used where they lie, with scales (N,); None where the kernels cannot serve it."""
    n, k = weight.shape
    if _library is None or k > MAX_INPUTS or weight.dtype != torch.int8 or scale.shape != (n,):
        return None
    if bias is not None and bias.shape != (n,):
        return None
    return NativeLinear(INT8, n, k, weight.contiguous(), scale.float().contiguous(), bias)


def int4_linear(tiles: Tensor, n: int, bias: Tensor | None) -> NativeLinear | None:
    """A layer over the 4-bit tiles of nn/quantized.py, used where they lie; None as for :func:`int8_linear`."""
    if _library is None or tiles.shape[0] != -(-n // TILE) or tiles.shape[2] != 20 * TILE or tiles.dtype != torch.uint8:
        return None
    if bias is not None and bias.shape != (n,):
        return None
    return NativeLinear(INT4, n, 32 * tiles.shape[1], tiles.contiguous(), None, bias)


class Caches(NamedTuple):
    """Pointers to the caches of one text, and the tensors they were taken from."""

    tensors: list[weakref.ref[Tensor]]
    keys: ctypes.Array[ctypes.c_void_p]
    values: ctypes.Array[ctypes.c_void_p]
    capacity: int


class CacheTable:
    """Pointers to the caches of the texts that were seen last: (1, ``groups``, capacity, ``width``), ``count`` each."""

    def __init__(self, count: int, groups: int, width: int):
        self._count, self._shape = count, (groups, width)
        self._array = _pointer * count
        self._known: dict[int, Caches] = {}

    def of(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Caches | None:
        """Pointers to these caches; None where they are no plain float32 memory of one shape."""
        parts = (*keys, *values)
        if not len(keys) == len(values) == self._count or not keys:
            return None
        known = self._known.get(id(keys[0]))
        if known is not None and all(ref() is part for ref, part in zip(known.tensors, parts, strict=True)):
            return known
        groups, width = self._shape
        shape = (1, groups, keys[0].shape[2], width)
        plain = all(
            part.shape == shape and part.dtype == torch.float32 and part.is_contiguous() and part.device.type == "cpu"
            for part in parts
        )
        if not plain:
            return None
        made = Caches(
            [weakref.ref(part) for part in parts],
            self._array(*(key.data_ptr() for key in keys)),
            self._array(*(value.data_ptr() for value in values)),
            shape[2],
        )
        if len(self._known) >= MAX_TEXTS:  # of texts that have ended, nothing is to be kept
            self._known = {}
        self._known = {**self._known, id(keys[0]): made}  # another thread may be reading the old one
        return made


class TextRows(NamedTuple):
    """What one text brings to a pass: its caches, how many slots are filled after it, how many rows it has, and the
    position in the text of the first slot."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    span: int
    length: int
    offset: int = 0


class NativeStack:
    """A whole decoder for the C kernels, made once per Decoder; several texts and threads may share it."""

    def __init__(self, sizes: tuple[int, ...], eps: float, norms: list[tuple[Tensor, Tensor]],
                 linears: list[tuple[NativeLinear, ...]], norm: Tensor, table: Tensor):  # fmt: skip
        """sizes: dim, heads, key/value heads, head width, feed-forward width; norms and linears (qkv, out, gate_up,
        down) per layer; table (2, context, head width)."""
        self.library = linears[0][0]._library
        self._kept = (norms, linears, norm, table)
        self.layers = (LayerStruct * len(norms))(
            *(
                LayerStruct(first.data_ptr(), second.data_ptr(), *(linear.struct for linear in four))
                for (first, second), four in zip(norms, linears, strict=True)
            )
        )
        self.plan = PlanStruct(
            len(norms), *sizes, norm.data_ptr(), table.data_ptr(), table.shape[1], eps, ctypes.addressof(self.layers)
        )
        self._caches = CacheTable(len(norms), sizes[2], sizes[3])

    def step(self, x: Tensor, texts: Sequence[TextRows]) -> Tensor | None:
        """x (1, T, D), the rows of one text after those of the other -> normed states (1, T, D); caches (1, G,
        capacity, width) are written in place. None where caches are no plain float32 memory of one shape, or a span
        does not fit."""
        x = x.contiguous()
        if x.shape[2] != self.plan.dim or x.shape[1] != sum(text.length for text in texts):
            return None
        structs, kept = (TextStruct * len(texts))(), list[Caches]()  # pointers live as long as the pass
        for struct, text in zip(structs, texts, strict=True):
            caches = self._caches.of(text.keys, text.values)
            if caches is None or not text.length <= text.span <= min(
                caches.capacity, self.plan.context - text.offset
            ):  # nothing has been written yet
                return None
            kept.append(caches)
            struct.keys, struct.values = ctypes.addressof(caches.keys), ctypes.addressof(caches.values)
            struct.capacity, struct.span = caches.capacity, text.span
            struct.length, struct.offset = text.length, text.offset
        threads, plan, y = torch.get_num_threads(), ctypes.byref(self.plan), torch.empty_like(x)
        span = max(text.span for text in texts)
        work = torch.empty(self.library.decoder_bytes(plan, x.shape[1], span, threads), dtype=torch.uint8)
        self.library.decoder_step(
            plan, structs, len(texts), x.data_ptr(), y.data_ptr(), work.data_ptr(), threads
        )  # fmt: skip
        return y


def stack(sizes: tuple[int, ...], eps: float, norms: list[tuple[Tensor, Tensor]],
          linears: Sequence[tuple[object, ...]], norm: Tensor, table: Tensor) -> NativeStack | None:  # fmt: skip
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
    gains = (norm, *(gain for pair in norms for gain in pair))
    plain = all(gain.dtype == torch.float32 and gain.shape == (dim,) and gain.is_contiguous() for gain in gains)
    if not plain or any(gain.device.type != "cpu" for gain in gains) or width % 2:
        return None
    return NativeStack(sizes, eps, norms, ready, norm, table) if ready else None
