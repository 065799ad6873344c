"""Work distributed over processes, whose results come in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

import cv2

AHEAD = 16  # pieces of work in progress per process, so that none is idle while the order is kept

Work = TypeVar("Work")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Work], Result], works: Iterable[Work], jobs: int) -> Iterator[Result]:
    """`map` in `jobs` processes, for a module's function; only few works are taken in advance, which bounds the memory.

    The processes end when it ends, also if this process is killed. Raises what `function`
    raises, and BrokenProcessPool if a process died.
    """
    # One process is started and imports the module; the others are forked from it and share that memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    pool = ProcessPoolExecutor(jobs, context, _start_process)
    try:
        pending: deque[Future[Result]] = deque()
        for work in works:
            pending.append(pool.submit(function, work))
            if len(pending) >= AHEAD * jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends it at once and without a traceback
    cv2.setNumThreads(1)
    end_with_parent()


def end_with_parent() -> None:
    """From now on, this process ends when the one that started it ends, even if that one is killed."""
    threading.Thread(target=_await_end_of_parent, daemon=True).start()


def _await_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
