"""The errors a user can mend. Each message is one sentence that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VivaError(Exception):
    """Something the user can mend; commands print the sentence and leave with exit code 2."""


class AudioError(VivaError):
    """A sound file or wave that cannot be used."""


class CheckpointError(VivaError):
    """A weight file that is damaged, foreign, or does not fit the model."""


class ConfigError(VivaError):
    """A configuration that names an unknown field or holds an impossible value."""


class UnknownNameError(VivaError):
    """A model, language, voice or format that does not exist."""


class MissingWeightsError(VivaError):
    """A known model whose weights have not been pulled yet."""


class MissingExtraError(VivaError):
    """An optional dependency that is not installed."""


class PullError(VivaError):
    """Weights that could not be fetched or failed their check."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest known name, or an empty string when nothing is close.

    It stands behind a clause, so that the sentence may go on.
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def require(module: str, extra: str, why: str):
    """Import an optional module or raise :class:`MissingExtraError` with the line that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{why} needs {module}: run  pip install 'vivavoce[{extra}]'") from error
