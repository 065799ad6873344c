"""Who waits for proposals: a few requests at a time, and for each task one, whose answer Label Studio stores."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Event, Lock

PROPOSING_THREADS = 4
"""Of all threads those that may wait for proposals: clicks need theirs."""

SAVING = 0.25
"""Seconds that Label Studio takes to store an answer, generously."""

TWICE = 3.0
"""Seconds within which Label Studio's second request for an opened task comes, generously."""


class Proposing:
    """The requests that wait for proposals, each for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.slots = BoundedSemaphore(PROPOSING_THREADS)
        self._running: dict[str, Event] = {}
        self._answered: OrderedDict[str, float] = OrderedDict()  # tasks by the monotonic time of their answer
        self._lock = Lock()

    @contextmanager
    def only(self, task: str) -> Iterator[bool]:
        """Whether this is the one request for a task now.

        Label Studio's data manager asks twice when a task is opened, and would store both answers. So the second
        waits until the first answer should be stored, which Label Studio looks for again afterwards. It may also come
        when the first was answered already, with what was known, and is not stored yet.
        """
        with self._lock:
            running = self._running.get(task)
            is_answered = self._was_answered(task)
            if running is None and not is_answered:
                mine = self._running[task] = Event()
        if is_answered:
            time.sleep(SAVING)
            yield False
            return
        if running is not None:
            if running.wait(self.seconds):
                time.sleep(SAVING)
            yield False
            return
        try:
            yield True
            with self._lock:
                self._answered[task] = time.monotonic()
        finally:
            with self._lock:
                del self._running[task]
            mine.set()

    def _was_answered(self, task: str) -> bool:
        """Whether a task was answered a moment ago; forgets all that were answered earlier."""
        now = time.monotonic()
        while self._answered and next(iter(self._answered.values())) < now - TWICE:
            self._answered.popitem(last=False)
        return task in self._answered
