"""Small files of a shared folder, where anything may be found under their names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MAX_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """The content of a file of at most 1 MB, without ever blocking. Raises `OSError`, and `ValueError` for anything
    else that has this name, such as a pipe."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        if status.st_size > _MAX_BYTES:
            raise ValueError(f"{path} has {status.st_size >> 20} MB")
        return file.read(_MAX_BYTES)
