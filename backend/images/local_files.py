"""Files of Label Studio's local storage, read directly from the folder if this server has it too."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

from backend.images.decode import ImageError

ROUTE = "/data/local-files/"
"""Label Studio's path for local storage; the file is named by the query's `d`, relative to the storage's root."""


def local_name(address: str, label_studio: str) -> str | None:
    """What `{label_studio}/data/local-files/?d=set1/one%20two.png` names, or None if it is another path."""
    parts = urlsplit(address)
    names = parse_qs(parts.query).get("d")
    is_local = parts.path.rstrip("/") == urlsplit(label_studio).path + ROUTE.rstrip("/")
    return names[0] if is_local and names else None


@contextmanager
def opened_below(root: Path, name: str, max_bytes: int) -> Iterator[tuple[BinaryIO, Path, os.stat_result]]:
    """The file `name` below `root`, after following all symbolic links; its path and state.

    Raises `ImageError` for everything else: files elsewhere, folders, devices, and more than `max_bytes`.
    """
    try:
        path = (root / name.lstrip("/")).resolve(strict=True)
        if not path.is_relative_to(root.resolve()):
            raise ImageError(f"{name[:200]} does not lie below LOCAL_FILES_ROOT")
        # O_NONBLOCK: opening a named pipe would wait for its other end; O_NOFOLLOW: the path was just resolved
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb")  # noqa: SIM115
    except ImageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # also null bytes and loops of links
        raise ImageError(
            f"{name[:200]} below LOCAL_FILES_ROOT cannot be read ({type(error).__name__}); LOCAL_FILES_ROOT must "
            "be the folder that Label Studio calls LOCAL_FILES_DOCUMENT_ROOT"
        ) from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name[:200]} below LOCAL_FILES_ROOT is not a file")
        if status.st_size > max_bytes:
            raise ImageError(f"{name[:200]} is larger than IMAGE_MAX_BYTES={max_bytes} allows")
        yield file, path, status
