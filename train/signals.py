"""Ending a run early: a signal asks for it, and the loop ends after the step in hand."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A run that is to be taken up again was asked to stop before its last step; its checkpoint is written."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A block in which SIGTERM and Ctrl+C are remembered and nothing else; yields whether one has come.

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
    """For the loader's processes, which end with the loop: a signal to the whole group must not end them before."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
