"""Stopping a run early: a signal requests it, and the loop ends after the current step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """An elastic run was asked to stop before its last step; its checkpoint has been written."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A block in which SIGTERM and Ctrl+C are only recorded; yields a function that tells whether one has come.

    A second one acts as usual.
    """
    received = False
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.signal(number, before[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_requests(worker: int) -> None:
    """For the loader's processes, which end with the loop: a signal to the process group must not end them earlier."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
