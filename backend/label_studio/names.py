"""The names of one Label Studio: this server's LABEL_STUDIO_URL, and what Label Studio calls itself.

Label Studio writes its own HOST into tasks (local files, imported uploads) and sends it with every /setup. From here
that name may not resolve, or may mean another machine: in a container `localhost` is the container. So an address under
such a name is requested from LABEL_STUDIO_URL instead.

Anyone who can reach this server can send a /setup, so such a name is trusted little: it only ever leads to
LABEL_STUDIO_URL, where a task could name any path anyway; it never replaces a host listed in IMAGE_HOSTS; only the last
few are kept, and only for some days.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

import orjson

from backend.label_studio.auth import as_called
from backend.small_files import read_small
from skipclick.atomic_io import atomic_write

FILE = "label-studio-names.json"

_MAX_NAMES = 8
_MAX_LENGTH = 200
_LIFE = 7 * 86400.0
"""Seconds that a name is kept; Label Studio sends it whenever somebody opens a page."""
_WRITE_EVERY = 3600.0
"""Seconds after which a name received again is saved again."""

logger = logging.getLogger(__name__)


class ToldNames:
    """What Label Studio called itself recently. Thread-safe; `folder` is shared with other processes and later
    starts."""

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._file = None if folder is None else folder / FILE
        self._clock = clock
        self._lock = Lock()
        self._told: dict[str, float] = {}
        self._read_at = 0

    def tell(self, hostname: str) -> None:
        """Record what /setup says; anything but an http address with a host is ignored."""
        name = _proper_name(hostname)
        if name is None:
            return
        with self._lock:
            self._read()
            now = self._clock()
            if now - self._told.get(name, 0.0) < _WRITE_EVERY:
                return
            self._told.pop(name, None)
            self._told[name] = now
            self._told = dict(list(self._told.items())[-_MAX_NAMES:])
            self._write()

    def names(self) -> list[str]:
        """The names that are valid now, the latest first."""
        with self._lock:
            self._read()
            now = self._clock()
            return [name for name, told in reversed(self._told.items()) if now - told < _LIFE]

    def _read(self) -> None:
        """Load what another process wrote."""
        if self._file is None:
            return
        try:
            written = self._file.stat().st_mtime_ns
            if written == self._read_at:
                return
            found = orjson.loads(read_small(self._file))
            told = {
                name: float(moment)
                for text, moment in found.items()
                if (name := _proper_name(text)) is not None and isinstance(moment, (int, float))
            }
        except (OSError, ValueError, AttributeError):
            return
        self._read_at = written
        latest = {name: max(told.get(name, 0.0), self._told.get(name, 0.0)) for name in told | self._told}
        self._told = dict(sorted(latest.items(), key=lambda one: one[1])[-_MAX_NAMES:])

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            with atomic_write(self._file) as temporary:
                temporary.write_bytes(orjson.dumps(self._told))
            self._read_at = self._file.stat().st_mtime_ns
        except OSError as error:
            logger.warning("cannot save Label Studio's name for other processes: %s", error)


def _proper_name(hostname: object) -> str | None:
    """An address that can be a name of Label Studio, without a trailing slash; None for any other value."""
    if not isinstance(hostname, str) or not 0 < len(hostname) <= _MAX_LENGTH:
        return None
    try:
        name = as_called(hostname.strip())
        parts = urlsplit(name)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        return None
    return name.partition("#")[0].rstrip("/")
