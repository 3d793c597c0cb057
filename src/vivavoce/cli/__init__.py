"""The command ``viva``: one file a verb, parsing and printing only. Nothing heavy is imported before a verb runs.

Exit codes: 0 done; 1 a fault of the program (``-v`` shows where); 2 something the user can mend, said in one sentence.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from vivavoce.cli.options import Settings
from vivavoce.errors import ConfigError, VivaError

VERBS = (
    "transcribe", "speak", "talk", "pull", "ls", "rm", "verify", "models", "inspect", "doctor", "plot", "train",
    "finetune", "bench",
)  # fmt: skip
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF)
_HELP = """Speech to text, text to speech and spoken conversation on your own machine.

First run  viva pull starter  (0.4 GB, once). Every verb explains itself:  viva VERB --help
"""


def make_app() -> typer.Typer:
    """The command with every verb whose file is there."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global)
    for name in VERBS:
        if importlib.util.find_spec(f"vivavoce.cli.{name}") is not None:
            verb = importlib.import_module(f"vivavoce.cli.{name}")
            app.command(name)(getattr(verb, name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from vivavoce import __version__

        typer.echo(__version__)
        raise typer.Exit()


def _global(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show where an error came from."),
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print the version."),
) -> None:
    Settings.verbose = Settings.verbose or verbose


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """SIGTERM leaves as an exception does, so that scratch files go away."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be asked for
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flush() -> None:
    """Write out what was printed while a fault can still be told; a reader that has gone is no fault."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # so that the interpreter does not try, and complain, again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(1)
        raise _unwritten(error) from error


def _unwritten(error: OSError) -> ConfigError:
    return ConfigError(f"the output cannot be written ({error.strerror}); free some space, or write elsewhere")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves through ``SystemExit``."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    Settings.verbose = False
    try:
        if sys.stdout is None:
            raise ConfigError("standard output is closed; leave it open, or send it to a file")
        with _ended_by_a_signal():
            try:
                make_app()(args=given, prog_name="viva")
            except OSError as error:
                if error.errno in _NO_ROOM and error.filename is None:
                    raise _unwritten(error) from error
                raise
            finally:
                _flush()
    except VivaError as error:
        if Settings.verbose:
            raise
        print(f"viva: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print(
            "viva: there is not enough memory for this; close other programs or take a smaller model", file=sys.stderr
        )
        sys.exit(2)
    except Exception as error:
        if Settings.verbose:
            raise
        kind = type(error).__name__
        print(
            f"viva: a fault of this program ({kind}: {str(error)[:200]}); -v shows where it happened", file=sys.stderr
        )
        sys.exit(1)
