"""How many pixels may be decoded at once: photos wait for the device as pixels, 40 times the size of their files."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition


class PixelBudget:
    """A number of pixels that all photos in memory share. Any thread may call it."""

    def __init__(self, total: int, patience: float) -> None:
        """patience: seconds that a photo waits for its pixels."""
        self._free = self._total = total
        self._patience = patience
        self._changed = Condition()

    def take(self, count: int) -> Callable[[], None]:
        """Wait until so many pixels are free; call what is returned to give them back, once or more often.

        More than there are at all counts as all. Raises `MemoryError` after `patience` seconds.
        """
        count = min(count, self._total)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= count, self._patience):
                raise MemoryError("too many large photos at once")
            self._free -= count
        taken = [count]

        def give_back() -> None:
            with self._changed:
                self._free += taken.pop() if taken else 0
                self._changed.notify_all()

        return give_back
