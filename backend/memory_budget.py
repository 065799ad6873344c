"""A number of bytes that all who need much memory for a moment share, so that together they stay within it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Condition


class MemoryBudget:
    """Any thread may call it."""

    def __init__(self, total: int, patience: float) -> None:
        """patience: seconds that anybody waits for bytes."""
        self.total = total
        self._free = total
        self._patience = patience
        self._changed = Condition()

    def take(self, count: int) -> Lease:
        """Wait until so many bytes are free. Raises `MemoryError` after `patience` seconds, and at once for more than
        there are at all."""
        with self._changed:
            if count > self.total or not self._changed.wait_for(lambda: self._free >= count, self._patience):
                raise MemoryError(f"no room for {count >> 20} MB beside what is in memory now")
            self._free -= count
        return Lease(count, self._give_back)

    def _give_back(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()


class Lease:
    """Bytes of a budget that somebody holds. One thread at a time."""

    def __init__(self, count: int, give_back: Callable[[int], None]) -> None:
        self._held = count
        self._give_back = give_back

    def shrink(self, count: int) -> None:
        """Give back all but so many bytes."""
        left = min(count, self._held)
        self._give_back(self._held - left)
        self._held = left

    def release(self) -> None:
        """Give back what is left; may be called again."""
        self.shrink(0)


def return_free_memory() -> None:
    """Hand memory that was freed back to the system, which glibc otherwise keeps for large blocks that come later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other systems' C libraries have none, and do not keep it
    if trim is not None:
        trim(0)
