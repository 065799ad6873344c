"""File locks between processes, with a limit on waiting."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.small_files import open_file

_LOOK = 0.01  # seconds between two attempts


class BusyError(OSError):
    """Another process has held a lock for too long."""


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Holds the lock file exclusively among all threads and processes; the system releases it when a process dies.
    Raises `BusyError` if it is not free within `patience` seconds, `OSError` if there cannot be such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + patience
        while not _is_taken(lock):
            if time.monotonic() >= deadline:
                raise BusyError(f"another process has held {path} for {patience:.0f} seconds; try again")
            time.sleep(_LOOK)
        yield
    finally:
        os.close(lock)


def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
