"""A budget of bytes shared by everything that needs much memory for a moment."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Condition


class MemoryBudget:
    """Thread-safe."""

    def __init__(self, total: int, patience: float) -> None:
        """patience: seconds to wait for free bytes."""
        self.total = total
        self._free = total
        self._patience = patience
        self._changed = Condition()

    def take(self, count: int) -> Lease:
        """Reserve `count` bytes, waiting until they are free. Raises `MemoryError` after `patience` seconds, and at
        once for more than the whole budget."""
        with self._changed:
            if count > self.total or not self._changed.wait_for(lambda: self._free >= count, self._patience):
                raise MemoryError(f"no room for {count >> 20} MB besides what is in memory now")
            self._free -= count
        return Lease(count, self._give_back)

    def _give_back(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()


class Lease:
    """Reserved bytes of a budget. Not thread-safe."""

    def __init__(self, count: int, give_back: Callable[[int], None]) -> None:
        self._held = count
        self._give_back = give_back

    def shrink(self, count: int) -> None:
        """Give back all but `count` bytes."""
        left = min(count, self._held)
        self._give_back(self._held - left)
        self._held = left

    def release(self) -> None:
        """Give back what is left; may be called again."""
        self.shrink(0)


def return_free_memory() -> None:
    """Return freed memory to the system; glibc would keep it for later allocations."""
    trim = getattr(
        ctypes.CDLL(None), "malloc_trim", None
    )  # other systems' C libraries have no such function, and need none
    if trim is not None:
        trim(0)
