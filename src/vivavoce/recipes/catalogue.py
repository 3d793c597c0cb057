"""The table of recipes that ``viva train`` runs: strings only, so that listing them imports nothing heavy.

A recipe's module holds ``Options``, a frozen dataclass whose ``name`` is that of the run, and
``open(corpus, options, report, device)``, which gives what :func:`vivavoce.train.loop.train` takes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vivavoce.config import from_dict
from vivavoce.errors import ConfigError, UnknownNameError, nearest

RUNS = "~/viva-runs"
CORPUS = f"{RUNS}/corpus"


@dataclass(frozen=True)
class RecipeRow:
    """What it makes, its module, and what must be there first; ``corpus``: whether it learns from one."""

    name: str
    makes: str
    module: str
    needs: str
    corpus: bool = True


RECIPES = {
    row.name: row
    for row in (
        RecipeRow(
            "glm4_tokenizer", "speech to codes, from Whisper's lower layers",
            "vivavoce.recipes.glm4_tokenizer", "a corpus; viva pull whisper-base",
        ),
        RecipeRow(
            "hift", "mel to sound, in one voice", "vivavoce.recipes.hift", "a corpus; the extra train"
        ),
        RecipeRow(
            "glm4_decoder", "codes to mel, in one voice", "vivavoce.recipes.glm4_decoder",
            "a corpus; the model of glm4_tokenizer",
        ),
        RecipeRow(
            "vita_audio", "spoken answers to spoken questions, in 4 stages", "vivavoce.recipes.vita_audio",
            "a corpus; the model of glm4_tokenizer; the stage before",
        ),
        RecipeRow(
            "vita_audio_finetune", "a VITA-Audio tuned on your records (viva finetune)",
            "vivavoce.recipes.vita_audio_finetune", "a VITA-Audio; a JSONL file of records", corpus=False,
        ),
    )
}  # fmt: skip


def recipe(name: str) -> RecipeRow:
    """A row; UnknownNameError names the nearest."""
    if name not in RECIPES:
        raise UnknownNameError(f"there is no recipe {name!r}{nearest(name, RECIPES)}; use {', '.join(RECIPES)}")
    return RECIPES[name]


def options_class(row: RecipeRow) -> type:
    """The dataclass of what ``--set`` takes; imports the recipe."""
    return importlib.import_module(row.module).Options


def options(row: RecipeRow, pairs: Iterable[str]) -> Any:
    """``name=value`` pairs to the recipe's options; ConfigError for anything unknown or impossible."""
    kind = options_class(row)
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found:
            raise ConfigError(f"--set takes name=value, not {pair!r}; for example --set steps=500")
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(f"{row.name} has no option {name!r}{near}; `viva train {row.name} --options` lists them")
        values[name] = read(name, value, known[name])
    return from_dict(kind, values)


def read(name: str, text: str, hint: Any) -> Any:
    """The text of an option as its type: a number (never negative), a word, one of some words, or words with commas."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        for choice in inner:
            if str(choice) == text:
                return choice
        raise ConfigError(f"{name} must be one of {', '.join(map(str, inner))}, not {text!r}")
    if origin is tuple:
        return [read(name, piece, inner[0]) for piece in text.split(",") if piece]
    if hint not in (int, float):
        return text
    try:
        number = hint(text)
    except ValueError:
        raise ConfigError(f"{name} must be a {'whole ' * (hint is int)}number, not {text!r}") from None
    if not 0 <= number < 2**32 or math.isnan(number):
        raise ConfigError(f"{name} must lie between 0 and 2 to the power of 32, not {text}")
    return number


class Described(NamedTuple):
    """What ``--set`` takes: (name, kind, default) of each, and a text about those that need one."""

    fields: list[tuple[str, str, Any]]
    text: str


def described(row: RecipeRow) -> Described:
    """The options of a recipe, for a person."""
    kind = options_class(row)
    hints = typing.get_type_hints(kind)
    fields = [(field.name, _words(hints[field.name]), _plain(field.default)) for field in dataclasses.fields(kind)]
    return Described(fields, " ".join(inspect.cleandoc(kind.__doc__ or "").replace("``", "").split()))


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "words with commas"
    return {int: "whole number", float: "number"}.get(hint, "text")


def _plain(default: Any) -> Any:
    return ",".join(default) if isinstance(default, tuple) else default


def opened(
    row: RecipeRow, corpus: Path, options: Any, report: Callable[[str, float, float], None], device: Any = None
) -> Any:
    """The recipe on a device (default: the processor), ready for :func:`vivavoce.train.loop.train`."""
    return importlib.import_module(row.module).open(corpus, options, report, device)
