"""Files of a shared folder, where anything may be found under their names: a pipe, a folder, a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_MAX_BYTES = 1 << 20


class NotAFileError(OSError, ValueError):
    """Something else has the name of a file."""


def open_file(path: Path, flags: int) -> int:
    """The descriptor of a regular file, opened with these flags of `os.open`, without ever blocking; with `os.O_CREAT`
    everybody may read a new one. Raises `OSError`, which for anything else of this name, such as a pipe, is a
    `NotAFileError`."""
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise NotAFileError(f"{path} is not a file")


def read_small(path: Path, max_bytes: int = _MAX_BYTES) -> bytes:
    """The content of a file of at most `max_bytes`, without ever blocking. Raises `OSError`, and `ValueError` for a
    larger one or anything else that has this name."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size >> 20} MB")
        return file.read(max_bytes)


def read_end(path: Path, num_bytes: int) -> bytes:
    """The last bytes of a file, however large it is. Raises `OSError`."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
        return file.read(num_bytes)


def new_file(path: Path) -> BinaryIO:
    """A file for writing, emptied if it exists; its folder is created. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")


def is_file_or_missing(path: Path) -> bool:
    """Whether a name is free, or that of a regular file, also through symbolic links."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a circle of links, a folder that may not be searched
        return False
