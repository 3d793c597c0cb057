"""The wire format of protocol buffers, which ONNX files and sentencepiece models are written in: fields, no schema."""

from __future__ import annotations

from collections.abc import Iterator

from vivavoce.checkpoints.binary import Cursor, damaged


def varint(cursor: Cursor) -> int:
    """A number of up to 64 bits, seven to a byte."""
    value = 0
    for shift in range(0, 70, 7):
        byte = cursor.take(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1
    raise damaged(cursor.path, "a number is too long")


def fields(cursor: Cursor) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) pairs of one message; fixed-size values come as their bytes."""
    while cursor.left:
        number, wire = divmod(varint(cursor), 8)
        if wire == 0:
            yield number, varint(cursor)
        elif wire == 2:
            yield number, cursor.take(varint(cursor))
        elif wire in (1, 5):
            yield number, cursor.take(8 if wire == 1 else 4)
        else:
            raise damaged(cursor.path, f"the wire type {wire} is unknown")
