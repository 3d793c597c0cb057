"""Strict configurations: frozen dataclasses that refuse unknown fields and name the nearest known one."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vivavoce.errors import ConfigError, nearest

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a (nested) config dataclass from plain data; an unknown field, missing field or wrong type raises
    ConfigError.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{cls.__name__} has no field {key!r}{nearest(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs the field {missing[0]!r}, which the configuration leaves out")
    return cls(**{key: _coerce(f"{cls.__name__}.{key}", hints[key], value) for key, value in values.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """The plain (JSON-ready) form of a config dataclass; the inverse of :func:`from_dict`."""
    return dataclasses.asdict(config)


def _coerce(where: str, hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)  # pyright: ignore[reportArgumentType]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors: list[ConfigError] = []
        for option in args:
            if option is type(None):
                continue
            try:
                return _coerce(where, option, value)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where} must have {len(inner)} entries, not {len(value)}")
        return tuple(
            _coerce(f"{where}[{i}]", kind, item) for i, (kind, item) in enumerate(zip(inner, value, strict=True))
        )
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


def check_seed(seed: int | None) -> None:
    """ConfigError unless a random number generator takes the seed: whole, in 64 bits."""
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ConfigError(f"a seed must fit into 64 bits, and this one has {seed.bit_length()}; take a smaller one")
