"""Features of an image, computed once, and the cache that keeps them within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from skipclick.model import PreparedFeatures


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """All that the network computes from an image alone.

    `blocks` belong to the backbone and serve every head; `prepared` belongs to one head's weights.
    """

    blocks: tuple[Tensor, ...]
    prepared: PreparedFeatures
    image_size: tuple[int, int]
    """(H, W) of the original image in pixels."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, on whichever device; a storage that several tensors share counts once."""
        tensors = (*self.blocks, self.prepared.fused, *self.prepared.skips)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())


class Sized(Protocol):
    """Anything that knows how many bytes it holds: `ImageFeatures`, NumPy arrays, tensors."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True)
class CacheStats:
    """What a cache did since it was made, and what it holds now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class ByteLru(Generic[T]):
    """Values by key within `budget_bytes`; the least recently used leave first. Thread-safe.

    A value larger than the whole budget is not kept. Eviction only drops the cache's own reference, so a
    value that a caller still holds stays alive until that caller lets go of it.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"a cache cannot have {budget_bytes} bytes; give 0 to keep nothing")
        self.budget_bytes = budget_bytes
        self._values: OrderedDict[object, tuple[T, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: object) -> T | None:
        """The value of `key`, now the most recently used, or None."""
        with self._lock:
            if key not in self._values:
                self._misses += 1
                return None
            self._hits += 1
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: object, value: T) -> None:
        """Keep `value` under `key`, in place of what was there."""
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

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._values

    def stats(self) -> CacheStats:
        """Counters since the start; entries and bytes now."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._evictions, len(self._values), self._bytes)


class FeatureCache(Generic[T]):
    """A `ByteLru` that encodes what it lacks: once, however many threads ask for it together."""

    def __init__(self, budget_bytes: int) -> None:
        self._kept: ByteLru[T] = ByteLru(budget_bytes)
        self._in_flight: dict[str, Future[T]] = {}
        self._lock = Lock()

    def get_or_encode(self, key: str, encode: Callable[[], T]) -> T:
        """The value kept under `key`, or else what `encode` returns.

        While one thread encodes, others that ask for the same key wait for its result. What `encode` raises
        is raised in all of them and not kept: the next one to ask tries again.
        """
        with self._lock:
            running = self._in_flight.get(key)
            if running is None:
                kept = self._kept.get(key)
                if kept is not None:
                    return kept
                mine: Future[T] = Future()
                self._in_flight[key] = mine
        if running is not None:
            return running.result()
        try:
            value = encode()
        except BaseException as error:
            self._land(key)
            mine.set_exception(error)
            raise
        self._kept.put(key, value)
        self._land(key)
        mine.set_result(value)
        return value

    def _land(self, key: str) -> None:
        with self._lock:
            del self._in_flight[key]

    def __contains__(self, key: str) -> bool:
        """Whether `key` is kept or being encoded."""
        with self._lock:
            return key in self._in_flight or key in self._kept

    def stats(self) -> CacheStats:
        """See `ByteLru.stats`; a request that waited for another's encoding is neither hit nor miss."""
        return self._kept.stats()
