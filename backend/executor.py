"""The one owner of the device: a thread that runs the model's work, the most urgent first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from threading import Condition, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Priority(IntEnum):
    """Lower runs earlier: an annotator waits for a click, then for a first look at an image; nobody for a
    prefetch."""

    CLICK = 0
    ENCODE = 1
    PREFETCH = 2


@dataclass(frozen=True, eq=False)
class _Job:
    priority: Callable[[], Priority]
    number: int
    work: Callable[[], Any]
    future: Future[Any]


class DeviceExecutor:
    """Runs work in one thread, by priority, then in order of arrival.

    The priority is asked for when the next job is chosen, not when it is submitted: a prefetch that
    somebody has begun to wait for moves forward by itself. The queue is never longer than the request
    threads and the prefetches that feed it, so a scan is cheap.
    """

    def __init__(self) -> None:
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, priority: Callable[[], Priority], work: Callable[[], T]) -> Future[T]:
        """The future of `work()`. Raises `RuntimeError` after `close`."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the device executor is closed")
            self._jobs.append(_Job(priority, next(self._numbers), work, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish the job that runs, cancel those that wait, stop the thread. May be called twice."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                result = job.work()
            except BaseException as error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
            del job  # an idle executor holds no image and no features

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return None
            job = min(self._jobs, key=lambda job: (job.priority(), job.number))
            self._jobs.remove(job)
            return job
