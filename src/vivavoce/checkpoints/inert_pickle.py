"""Reads PyTorch files, old and new, without executing anything in them.

A pickle is a program. Here it runs on a machine that knows only data: numbers, texts, containers, tensor storages and a
few constructors that rebuild tensors. Every other global becomes a :class:`Record` that holds its name, arguments and
state and does nothing. Opcodes come from the standard library's :mod:`pickletools`, which only decodes.

Three outer forms: the zip archive of ``torch.save`` and TorchScript, the older file of four pickles followed by raw
storages, and a bare pickle.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.checkpoints.binary import MAX_RANK, Cursor, damaged, map_file
from vivavoce.errors import CheckpointError

MAX_PICKLE = 1 << 28
MAX_STEPS = 20_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()}
_DTYPES |= {str(dtype): dtype for dtype in (torch.uint16, torch.uint32, torch.uint64)}
_DTYPES |= {str(dtype): dtype for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)}


@dataclass(eq=False)
class Record:
    """Something foreign, kept as data: the global's name, what it was called with, and the state it was given."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True, eq=False)
class Storage:
    """Where the elements of a tensor lie: its type, element count, and a way to the raw bytes."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], memoryview]


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor as described in the file; :meth:`tensor` reads it."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, path: Path) -> Tensor:
        """A contiguous copy, after checking that it lies within its storage."""
        n_bytes = self.storage.numel * self.storage.dtype.itemsize
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        count = int(np.prod([min(size, 1 << 40) for size in self.shape], dtype=object)) if self.shape else 1
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) > MAX_RANK or any(not 0 <= number < 1 << 62 for number in numbers):
            raise damaged(path, "a tensor has absurd sizes")
        if not count:
            return torch.empty([min(size, n_bytes) for size in self.shape], dtype=self.dtype)
        # Broadcast views may repeat elements, but only so far: a few bytes must not become gigabytes.
        if (last + 1) * self.dtype.itemsize > n_bytes or count * self.dtype.itemsize > 16 * n_bytes + (1 << 20):
            raise damaged(path, "a tensor reaches past its storage")
        raw = self.storage.read()
        if len(raw) < n_bytes:
            raise damaged(path, "a storage is too short")
        usable = n_bytes - n_bytes % self.dtype.itemsize
        whole = torch.from_numpy(np.frombuffer(raw[:usable], np.uint8).copy()).view(self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset).clone(memory_format=torch.contiguous_format)


class _Machine:
    """The stack machine of pickle, over data only."""

    def __init__(self, path: Path, storage: Callable[[Any], Any]) -> None:
        self.path, self.persistent = path, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Run one pickle from the file's position and leave the position behind it."""
        for step, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if step > MAX_STEPS:
                raise damaged(self.path, "its pickle is too long")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _FRESH:
                self.stack.append(_FRESH[name]())
            elif name in _LITERALS:
                self.stack.append(arg)
            else:
                handler = getattr(self, "on_" + name.lower(), None)
                if handler is None:
                    raise damaged(self.path, f"its pickle uses {name}")
                handler(arg)
        raise damaged(self.path, "its pickle does not end")

    def items(self) -> list[Any]:
        """Everything above the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def on_proto(self, arg: Any) -> None:
        pass

    on_frame = on_proto

    def on_mark(self, arg: Any) -> None:
        self.marks.append(len(self.stack))

    def on_pop(self, arg: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def on_pop_mark(self, arg: Any) -> None:
        self.items()

    def on_dup(self, arg: Any) -> None:
        self.stack.append(self.stack[-1])

    def on_put(self, arg: Any) -> None:
        self.memo[int(arg)] = self.stack[-1]

    on_binput = on_long_binput = on_put

    def on_memoize(self, arg: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_get(self, arg: Any) -> None:
        self.stack.append(self.memo[int(arg)])

    on_binget = on_long_binget = on_get

    def on_tuple(self, arg: Any) -> None:
        self.stack.append(tuple(self.items()))

    def on_tuple1(self, arg: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def on_tuple2(self, arg: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def on_tuple3(self, arg: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def on_list(self, arg: Any) -> None:
        self.stack.append(self.items())

    def on_frozenset(self, arg: Any) -> None:
        self.stack.append(Record("frozenset", items=self.items()))

    def on_dict(self, arg: Any) -> None:
        found = self.items()
        self.stack.append({_key(key): value for key, value in zip(found[::2], found[1::2], strict=True)})

    def on_append(self, arg: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def on_appends(self, arg: Any) -> None:
        self._extend(self.items())

    on_additems = on_appends

    def on_setitem(self, arg: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def on_setitems(self, arg: Any) -> None:
        self._set(self.items())

    def on_global(self, arg: Any) -> None:
        self.stack.append(Record(".".join(str(arg).split(" "))))

    def on_stack_global(self, arg: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Record(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"))

    def on_inst(self, arg: Any) -> None:
        self.stack.append(Record(".".join(str(arg).split(" ")), tuple(self.items())))

    def on_obj(self, arg: Any) -> None:
        kind, *args = self.items()
        self.stack.append(Record(_named(kind), tuple(args)))

    def on_newobj(self, arg: Any) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(kind, args))

    def on_newobj_ex(self, arg: Any) -> None:
        _, args, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(_called(kind, args))

    on_reduce = on_newobj

    def on_build(self, arg: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def on_persid(self, arg: Any) -> None:
        self.stack.append(self.persistent(arg))

    def on_binpersid(self, arg: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Record) else target).extend(values)

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, Record):
                target.items.append((key, value))
            else:
                target[_key(key)] = value


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_FRESH: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Record("set"),
}
_LITERALS = frozenset(
    f"{size}{kind}"
    for kind, sizes in {
        "INT": ("", "BIN"),
        "INT1": ("BIN",),
        "INT2": ("BIN",),
        "LONG": ("",),
        "LONG1": ("",),
        "LONG4": ("",),
        "FLOAT": ("", "BIN"),
        "STRING": ("", "BIN", "SHORT_BIN"),
        "UNICODE": ("", "BIN", "SHORT_BIN"),
        "UNICODE8": ("BIN",),
        "BYTES": ("BIN", "SHORT_BIN"),
        "BYTES8": ("BIN",),
        "BYTEARRAY8": ("",),
    }.items()
    for size in sizes
)


def _key(key: Any) -> Any:
    """A dictionary key that is cheap to hash; anything but plain values and short tuples of them becomes a text."""
    plain = (str, int, float, bool, bytes, type(None))
    if isinstance(key, plain) or (isinstance(key, tuple) and len(key) < 16 and all(isinstance(x, plain) for x in key)):
        return key
    return f"<{_named(key)}>"


def _named(kind: Any) -> str:
    return kind.name if isinstance(kind, Record) else type(kind).__name__


def _called(kind: Any, args: Any) -> Any:
    """What calling a global means here: tensors and ordered dictionaries come to be, all else stays a record."""
    args = args if isinstance(args, tuple) else (args,)
    name = _named(kind)
    if name == "collections.OrderedDict":
        pairs = args[0] if args and isinstance(args[0], list | tuple) else []
        return {_key(key): value for key, value in pairs}
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v3"):
        storage, offset, shape, stride = args[:4]
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without storage")
        given = args[6] if name.endswith("v3") else None
        dtype = (
            _DTYPES.get(given.name.removeprefix("torch."), storage.dtype)
            if isinstance(given, Record)
            else storage.dtype
        )
        shape, stride = (tuple(int(number) for number in numbers) for numbers in (shape, stride))
        return LazyTensor(storage, dtype, int(offset), shape, stride)
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return args[0]
    if name.startswith("torch.jit._pickle.") and args:
        return args[0]
    return Record(name, args)


# ---------------------------------------------------------------------------------------------------- outer forms


def read_inert(path: Path) -> Any:
    """The object of a PyTorch file as plain data: tensors are :class:`LazyTensor`, foreign objects :class:`Record`."""
    data = map_file(path)
    try:
        if bytes(data[:4]) == b"PK\x03\x04":
            return _read_zip(path)
        return _read_plain(path, data)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile file provokes in decoding is one fact: it cannot be read
        raise damaged(path, f"its pickle cannot be read: {type(error).__name__}") from error


def _read_zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)  # stays open for the lazy tensors
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise damaged(path, "the archive holds no single data.pkl")
    prefix = roots[0].removesuffix("data.pkl")

    def storage(persistent: Any) -> Any:
        dtype, key, numel = _storage_of(persistent)
        info = entries.get(f"{prefix}data/{key}")
        n_bytes = numel * dtype.itemsize
        if info is None or numel < 0 or n_bytes > info.file_size:
            raise damaged(path, f"the storage {key} is missing or short")
        return Storage(dtype, numel, lambda: memoryview(_read_entry(path, archive, info, n_bytes)))

    program = _read_entry(path, archive, entries[roots[0]], MAX_PICKLE)
    return _Machine(path, storage).run(io.BytesIO(program))


def _read_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """At most ``limit`` bytes of one archive member, whatever size it claims."""
    # Deflate cannot shrink below a thousandth, so a larger claim is a bomb or damage.
    if info.compress_size > path.stat().st_size or info.file_size > 1100 * max(info.compress_size, 1):
        raise damaged(path, f"{info.filename} claims an absurd size")
    try:
        with archive.open(info) as member:
            return member.read(limit)
    except Exception as error:  # zipfile, zlib and lzma each raise their own kinds
        raise damaged(path, f"{info.filename} cannot be unpacked") from error


def _storage_of(persistent: Any) -> tuple[torch.dtype, str, int]:
    kind, storage_type, key, _, numel, *_ = persistent
    name = _named(storage_type).rpartition(".")[2]
    if kind != "storage" or name not in _STORAGES:
        raise ValueError(f"unknown storage {name}")
    return _STORAGES[name], str(key), int(numel)


def _read_plain(path: Path, data: memoryview) -> Any:
    """The older form: magic, protocol, system, object, storage keys, then storages one after another; or one pickle."""
    file = io.BytesIO(data)
    places: dict[str, tuple[int, int]] = {}

    def storage(persistent: Any) -> Any:
        dtype, key, numel = _storage_of(persistent)
        view = persistent[5] if len(persistent) > 5 else None
        skip = int(view[1]) if view is not None else 0
        count = int(view[2]) if view is not None else numel

        def read() -> memoryview:
            start, length = places[key]
            if skip < 0 or count < 0 or skip + count > length:
                raise damaged(path, f"the storage {key} is short")
            return data[start + skip * dtype.itemsize : start + (skip + count) * dtype.itemsize]

        return Storage(dtype, count, read)

    first = _Machine(path, storage).run(file)
    if first != LEGACY_MAGIC:
        return first
    _Machine(path, storage).run(file)
    _Machine(path, storage).run(file)
    dtypes: dict[str, torch.dtype] = {}

    def noted(persistent: Any) -> Any:
        dtype, key, _ = _storage_of(persistent)
        dtypes[key] = dtype
        return storage(persistent)

    root = _Machine(path, noted).run(file)
    keys = _Machine(path, storage).run(file)
    _place_storages(path, data, file.tell(), keys, dtypes, places)
    return root


def _place_storages(
    path: Path,
    data: memoryview,
    start: int,
    keys: Iterable[Any],
    dtypes: dict[str, torch.dtype],
    places: dict[str, tuple[int, int]],
) -> None:
    cursor = Cursor(data, path, start)
    for key in keys:
        dtype = dtypes[str(key)]
        length = cursor.count("q", dtype.itemsize)
        places[str(key)] = (cursor.position, length)
        cursor.take(length * dtype.itemsize)
