"""Small files of a shared folder, in which anything may lie under their names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MOST_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """The content of a file of at most 1 MB, which is never waited for. Raises `OSError`, and `ValueError` for anything
    else that has this name, such as a pipe."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no file")
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"{path} has {status.st_size >> 20} MB")
        return file.read(_MOST_BYTES)
