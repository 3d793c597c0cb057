"""A lock between processes, by the name of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """One holder of ``path`` at a time; others wait, and a holder that dies lets go. The file goes away at the end.

    Where the system or the disk has no such locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _hold(path)
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)  # while it is still held: who waits for it sees that the name is gone
            os.close(held)


def _hold(path: Path) -> int | None:
    """The open file that holds the lock; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(held), path.stat()):
                return held
        except FileNotFoundError:  # the holder before us has taken the name away: begin again
            pass
        except OSError:
            os.close(held)
            path.unlink(missing_ok=True)
            return None
        except BaseException:
            os.close(held)
            raise
        os.close(held)
