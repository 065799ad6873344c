"""Caches with budgets in bytes: in memory, in another device's memory, in files; and the cache over all of them."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Generic, Protocol, TypeVar

from skipclick.atomic_io import atomic_write

_MAX_COPYING = 8  # values being copied to slower tiers; each occupies the fastest tier's memory until it is copied
_ABANDONED = 3600.0  # seconds after which an unfinished file is abandoned

logger = logging.getLogger(__name__)


class Sized(Protocol):
    """Anything that knows how many bytes it holds: `ImageFeatures`, NumPy arrays, tensors."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True)
class CacheStats:
    """What a cache did since its creation, and what it contains now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class Tier(Protocol[T]):
    """One place where values are stored. Thread-safe."""

    def get(self, key: Hashable) -> T | None: ...

    def put(self, key: Hashable, value: T) -> None: ...

    def clear(self) -> None: ...

    def __contains__(self, key: Hashable) -> bool: ...

    def stats(self) -> CacheStats: ...


class ByteLru(Generic[T]):
    """Values by key within `budget_bytes`; the least recently used are evicted first. Thread-safe.

    A value larger than the whole budget is not stored. Eviction only drops the cache's own reference, so a value that a
    caller still uses stays alive until the caller releases it.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"a cache cannot have {budget_bytes} bytes; give 0 to keep nothing")
        self.budget_bytes = budget_bytes
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> T | None:
        """The value of `key`, now the most recently used, or None."""
        with self._lock:
            if key not in self._values:
                self._misses += 1
                return None
            self._hits += 1
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: T) -> None:
        """Store `value` under `key`, replacing the previous one."""
        size = value.nbytes
        with self._lock:
            if key in self._values:
                self._bytes -= self._values.pop(key)[1]
            if size > self.budget_bytes:
                return
            while self._bytes + size > self.budget_bytes:
                self._bytes -= self._values.popitem(last=False)[1][1]
                self._evictions += 1
            self._values[key] = (value, size)
            self._bytes += size

    def peek(self, key: Hashable) -> T | None:
        """The value of `key` or None. Counts neither as a request nor as a use."""
        with self._lock:
            return self._values[key][0] if key in self._values else None

    def drop(self, key: Hashable) -> None:
        """Remove the value of `key`, if there is one."""
        with self._lock:
            self._bytes -= self._values.pop(key, (None, 0))[1]

    def clear(self) -> None:
        """Remove everything; counts as evictions."""
        with self._lock:
            self._evictions += len(self._values)
            self._values.clear()
            self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values

    def stats(self) -> CacheStats:
        """Counters since the start; entries and bytes now."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._values), self._bytes)


class MovedLru(ByteLru[T]):
    """A `ByteLru` whose values are stored elsewhere, such as in host memory for a GPU.

    `away` copies a value there, `back` returns a copy to work with.
    """

    def __init__(self, budget_bytes: int, away: Callable[[T], T], back: Callable[[T], T]) -> None:
        super().__init__(budget_bytes)
        self._away = away
        self._back = back

    def get(self, key: Hashable) -> T | None:
        """A copy of the value of `key` to work with, or None."""
        value = super().get(key)
        return None if value is None else self._back(value)

    def put(self, key: Hashable, value: T) -> None:
        """Store a copy of `value`, unless there is one."""
        if key not in self:
            super().put(key, self._away(value))


class FileLru(Generic[T]):
    """Values as files in one folder within `budget_bytes`, which outlive the process; the least recently read are
    removed first.

    Several processes may share a folder. A file that cannot be read is dropped and counts as a miss.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, write: Callable[[Path, T], None], read: Callable[[Path], T]
    ) -> None:
        """Raises `ValueError` if the folder cannot be written to."""
        self.budget_bytes = budget_bytes
        self._folder = folder
        self._write = write
        self._read = read
        self._lock = Lock()
        self._hits = self._misses = self._evictions = 0
        try:
            with atomic_write(folder / "writable"):
                pass
        except OSError as error:
            raise ValueError(f"features cannot be kept in {folder}: {error.strerror}; choose another folder") from None
        (folder / "writable").unlink(missing_ok=True)

    def get(self, key: Hashable) -> T | None:
        """The value in `key`'s file, now the most recently used, or None."""
        path = self._path(key)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
                raise ValueError("it is not a file")
            value = self._read(path)
            os.utime(path)
        except Exception as error:
            if not isinstance(error, FileNotFoundError):  # whatever a damaged file makes its reader raise
                logger.warning("dropped the damaged file %s: %s", path.name, error)
                _remove(path)
            with self._lock:
                self._misses += 1
            return None
        with self._lock:
            self._hits += 1
        return value

    def put(self, key: Hashable, value: T) -> None:
        """Write `value`, unless there is a file; then remove the oldest until the budget is met. Raises `OSError`."""
        path = self._path(key)
        if value.nbytes > self.budget_bytes or path.exists():
            return
        with atomic_write(path) as temporary:
            self._write(temporary, value)
        self._trim(self.budget_bytes)

    def clear(self) -> None:
        """Remove all files."""
        self._trim(0)

    def __contains__(self, key: Hashable) -> bool:
        return self._path(key).exists()

    def stats(self) -> CacheStats:
        """Counters of this process; files and bytes of the folder now."""
        files = self._files()
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(files), sum(size for _, size, _ in files))

    def _path(self, key: Hashable) -> Path:
        return self._folder / f"{hashlib.sha256(str(key).encode()).hexdigest()}.safetensors"

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of each file, the longest unread first."""
        found = []
        for path in self._folder.glob("*.safetensors"):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _trim(self, budget_bytes: int) -> None:
        files = self._files()
        excess = sum(size for _, size, _ in files) - budget_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            _remove(path)
            excess -= size
            with self._lock:
                self._evictions += 1
        for path in self._folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED:
                    _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # another process was faster, or the file is not ours to remove
        path.unlink()


class SharedCache(Generic[T]):
    """Values by key, computed once however many threads ask, and stored in tiers, the fastest first.

    A new value enters the first tier at once and is copied to the others in the background, so that eviction from a
    faster tier costs nothing. A value found in a slower tier is copied back to the faster ones.
    """

    def __init__(self, name: str, first: ByteLru[T], slower: Mapping[str, Tier[T]] | None = None) -> None:
        """`slower`: further tiers by name, the fastest first. The names are those of `stats`."""
        self._name = name
        self._first = first
        self._slower = dict(slower or {})
        self._in_flight: dict[Hashable, Future[T]] = {}
        self._lock = Lock()
        self._copying = BoundedSemaphore(_MAX_COPYING)
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="cache-copy")

    def get_or_make(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value stored under `key`, otherwise what `make` returns.

        While one thread computes it, others that ask for the same key wait for its result. What `make` raises is
        raised in all of them and not stored: the next caller tries again. If the first caller was cancelled, one of
        the others computes the value instead.
        """
        while True:
            with self._lock:
                running = self._in_flight.get(key)
                if running is None:
                    kept = self._first.get(key)
                    if kept is not None:
                        return kept
                    mine: Future[T] = Future()
                    self._in_flight[key] = mine
            if running is None:
                return self._find_or_make(key, mine, make)
            try:
                return running.result()
            except CancelledError:
                continue

    def _find_or_make(self, key: Hashable, mine: Future[T], make: Callable[[], T]) -> T:
        """Find or compute the value, for all that wait for `mine`."""
        try:
            value = self._find_slower(key)
            if value is None:
                value = make()
                self._copy_down(key, value)
            self._first.put(key, value)
        except BaseException as error:
            self._remove_in_flight(key)
            mine.set_exception(error)
            raise
        self._remove_in_flight(key)
        mine.set_result(value)
        return value

    def find(self, key: Hashable) -> T | None:
        """The value stored under `key` in any tier, or None. A miss is not counted here but in
        `get_or_make`."""
        if key not in self._first and not any(key in tier for tier in self._slower.values()):
            return None
        kept = self._first.get(key)
        if kept is None:
            kept = self._find_slower(key)
            if kept is not None:
                self._first.put(key, kept)
        return kept

    def peek(self, key: Hashable) -> T | None:
        """The value if the first tier has it, or None. Counts neither as a request nor as a use."""
        return self._first.peek(key)

    def replace(self, key: Hashable, value: T) -> None:
        """Store `value` in the first tier, replacing the previous one; the other tiers stay as they are."""
        self._first.put(key, value)

    def free(self) -> None:
        """Empty the first tier; the other tiers stay as they are."""
        self._first.clear()

    def close(self) -> None:
        """Finish the running copies."""
        self._copier.shutdown(cancel_futures=True)

    def __contains__(self, key: Hashable) -> bool:
        """Whether `key` is in the first tier or on its way there."""
        with self._lock:
            return key in self._in_flight or key in self._first

    def stats(self) -> dict[str, CacheStats]:
        """Statistics by tier; a request that waited for another's value is neither hit nor miss."""
        slower = {f"{self._name}_{name}": tier.stats() for name, tier in self._slower.items()}
        return {self._name: self._first.stats()} | slower

    def _find_slower(self, key: Hashable) -> T | None:
        """The value in a slower tier. A tier that fails, for lack of memory or a disk, counts as empty."""
        tiers = list(self._slower.values())
        for place, tier in enumerate(tiers):
            try:
                value = tier.get(key)
                if value is not None:
                    for faster in tiers[:place]:
                        faster.put(key, value)
                    return value
            except Exception as error:
                logger.warning("could not read a stored value back: %s", error)
        return None

    def _copy_down(self, key: Hashable, value: T) -> None:
        """Start copying to the slower tiers; if they cannot keep up, no copy is made."""
        if not self._slower or not self._copying.acquire(blocking=False):
            return

        def copy() -> None:
            try:
                for tier in self._slower.values():
                    tier.put(key, value)
            except Exception as error:  # a full disk costs the copy, not the answer
                logger.warning("could not store a copy of a value: %s", error)
            finally:
                self._copying.release()

        try:
            self._copier.submit(copy)
        except RuntimeError:  # closed
            self._copying.release()

    def _remove_in_flight(self, key: Hashable) -> None:
        with self._lock:
            del self._in_flight[key]
