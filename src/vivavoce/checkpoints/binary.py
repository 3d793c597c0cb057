"""Ground for the readers of binary files: a bounds-checked cursor over a memory map, and a mapping of lazy tensors."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError

MAX_RANK = 8
MAX_NAME = 65_535


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file that does not hold what its format promises."""
    # Names in a damaged file may hold anything: one short printable line is shown.
    plain = "".join(character if character.isprintable() else "?" for character in what[:160])
    return CheckpointError(f"{path.name} is damaged or not a weight file ({plain}); fetch it again")


def map_file(path: Path) -> memoryview:
    """A read-only memory map of a whole file; nothing is read until it is looked at."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:  # an empty file cannot be mapped
        raise damaged(path, "it is empty") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


class Cursor:
    """Reads little-endian values one after another; running past the end is a :class:`CheckpointError`."""

    def __init__(self, data: memoryview, path: Path, position: int = 0) -> None:
        self.data, self.path, self.position = data, path, position

    @property
    def left(self) -> int:
        """Bytes between here and the end."""
        return len(self.data) - self.position

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, not copied."""
        if count < 0 or count > self.left:
            raise damaged(self.path, "it ends too early")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> int | float:
        """One number in :mod:`struct` notation, such as "I" or "q"."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def integer(self, form: str) -> int:
        """One whole number in :mod:`struct` notation."""
        return int(self.number(form))

    def count(self, form: str, at_least: int) -> int:
        """A number of items to come, refused when they could not fit at ``at_least`` bytes each."""
        found = self.integer(form)
        if found < 0 or found * at_least > self.left:
            raise damaged(self.path, f"{found} items cannot fit")
        return found

    def text(self, length: int) -> str:
        """UTF-8 text; bytes that are not UTF-8 are replaced."""
        return bytes(self.take(length)).decode("utf-8", "replace")


def element_count(shape: tuple[int, ...], path: Path, limit: int) -> int:
    """The number of elements of a shape, refused above ``limit`` or ``MAX_RANK`` dimensions."""
    total = 1
    for size in shape:
        total *= size
    if len(shape) > MAX_RANK or any(not 0 <= size <= limit for size in shape) or total > limit:
        raise damaged(path, f"a tensor of shape {list(shape)[:MAX_RANK]} cannot fit")
    return total


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each made when asked for and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


def owned(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> LazyTensors:
    """The same tensors, each made anew: floats of ``dtype``, in memory of their own, so that no file stays mapped."""

    def one(name: str) -> Tensor:
        tensor = tensors[name]
        return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    return LazyTensors({name: partial(one, name) for name in tensors})
