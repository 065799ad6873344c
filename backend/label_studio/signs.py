"""Signs of clicks by keypoint id, for clicks that the editor restores without theirs.

A memory, but not a session: the sign of a keypoint never changes, so it cannot matter who asks, or in which
order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

from backend.prompts import SmartClick


class SignMemory:
    """The last `capacity` signs seen. Thread-safe."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._signs: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._lock = Lock()

    def remember(self, task: str, clicks: Iterable[SmartClick]) -> None:
        """Note the clicks of a task."""
        with self._lock:
            for click in clicks:
                self._signs[task, click.id] = click.positive
                self._signs.move_to_end((task, click.id))
            while len(self._signs) > self._capacity:
                self._signs.popitem(last=False)

    def recall(self, task: str, keypoint_id: str) -> bool | None:
        """The sign of a keypoint, None if it was not seen or was forgotten."""
        with self._lock:
            return self._signs.get((task, keypoint_id))
