"""The one owner of the device: its threads run the model's work, the most urgent first."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")


MAX_OVERTAKING_CLICKS = 8
"""Clicks in a row that may overtake an encode somebody is waiting for: a busy team must not shut out an annotator who
opens a new photo. After so many, a click waits for one encode."""


class Priority(IntEnum):
    """Lower runs earlier: annotators wait for clicks, then for the first look at an image; nobody waits for a
    prefetch."""

    CLICK = 0
    ENCODE = 1
    PREFETCH = 2


Urgency = Callable[[], Priority | None]
"""Called when the next work is chosen, not when it is submitted: a prefetch that somebody is now waiting for moves
forward, and work that nobody wants any more (None) is cancelled."""


@dataclass(frozen=True)
class Lane:
    """A thread of the executor: what it runs, and the context that it runs in.

    The context yields a function that returns when the device has finished all submitted work.
    """

    name: str
    priorities: frozenset[Priority]
    context: Callable[[], AbstractContextManager[Callable[[], None]]]


ONE_LANE = (Lane("device", frozenset(Priority), lambda: nullcontext(lambda: None)),)
"""For the CPU: one thing at a time, so that two never compete for the cores."""


def cuda_lanes(device: torch.device) -> tuple[Lane, Lane]:
    """For a GPU: clicks have a stream of high priority, beside a running encode."""

    import torch  # here, so that simulations of fleets need not import torch

    @contextmanager
    def stream(priority: int) -> Iterator[Callable[[], None]]:
        own = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device), torch.cuda.stream(own):
            yield own.synchronize  # the result may be read on any stream

    return (
        Lane("clicks", frozenset({Priority.CLICK}), lambda: stream(-1)),
        Lane("encodes", frozenset({Priority.ENCODE, Priority.PREFETCH}), lambda: stream(0)),
    )


@dataclass(frozen=True, eq=False)
class _Job:
    urgency: Urgency
    number: int
    run: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    future: Future[Any]


class DeviceExecutor:
    """Runs work in one thread per lane, by priority, then in order of arrival.

    The queue is never longer than the request threads and the prefetches that feed it, so a scan is cheap.
    """

    def __init__(self, lanes: Sequence[Lane] = ONE_LANE, batch: int = 1) -> None:
        """`batch`: how much of one kind may run together, see `submit_together`."""
        self._batch = batch
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._overtaking = 0  # clicks in a row that went before an encode
        self._changed = Condition()
        self._closed = False
        self._ended = ""  # in words, that a thread has ended
        self._threads = [Thread(target=self._serve, args=(lane,), name=lane.name, daemon=True) for lane in lanes]
        for thread in self._threads:
            thread.start()

    def submit(self, urgency: Urgency, work: Callable[[], A]) -> Future[A]:
        """The future of `work()`. Raises `CancelledError` after `close`."""
        return self.submit_together(urgency, lambda _: [work()], None)

    def submit_together(self, urgency: Urgency, run: Callable[[Sequence[Q]], Sequence[A]], item: Q) -> Future[A]:
        """The future of `run([item])[0]`. Items that wait for the same `run` share one call of it.

        If a shared call fails, each item is run alone, so that a bad one fails nobody else's. Raises
        `CancelledError` after `close`, and where a thread has ended, see `check`.
        """
        future: Future[A] = Future()
        with self._changed:
            if self._closed:
                raise CancelledError("the device executor is closed")
            if self._ended:
                raise CancelledError(self._ended)
            self._jobs.append(_Job(urgency, next(self._numbers), run, item, future))
            self._changed.notify_all()
        return future

    def waiting(self) -> dict[str, int]:
        """Length of the queue, by priority's name."""
        with self._changed:
            found = Counter(_urgency(job) for job in self._jobs)
        return {priority.name.lower(): found[priority] for priority in Priority}

    def check(self) -> None:
        """Raises `RuntimeError` if a thread has ended unexpectedly: its work would wait for ever."""
        if self._ended and not self._closed:
            raise RuntimeError(self._ended)

    def close(self) -> None:
        """Finish what runs, cancel what waits, stop the threads. May be called twice."""
        with self._changed:
            self._closed = True
            self._cancel_all()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, lane: Lane) -> None:
        try:
            with lane.context() as finish:
                while jobs := self._next(lane.priorities):
                    for job, outcome in zip(jobs, _outcomes(jobs, finish), strict=True):
                        _settle(job.future, outcome)
                    del jobs, job, outcome  # an idle executor holds no image and no features
        except BaseException:
            logger.critical("the thread for %s ends", lane.name, exc_info=True)
        finally:
            with self._changed:  # nobody may wait for what nobody works on any more
                self._ended = f"the thread for {lane.name} has ended; restart the server"
                self._cancel_all()

    def _next(self, priorities: frozenset[Priority]) -> list[_Job]:
        """What to run now; empty when the executor is closed."""
        with self._changed:
            while not self._closed:
                ready = self._fair(self._ready(priorities))
                together = [job for job in ready if _are_together(job, ready[0])][: self._batch]
                self._jobs = [job for job in self._jobs if job not in together]
                begun = [job for job in together if job.future.set_running_or_notify_cancel()]
                if begun:
                    return begun
                if not together:
                    self._changed.wait()
            return []

    def _cancel_all(self) -> None:
        """Cancel what waits, while `_changed` is held."""
        for job in self._jobs:
            _cancel(job.future)
        self._jobs.clear()

    def _fair(self, ready: Sequence[tuple[Priority, _Job]]) -> list[_Job]:
        """The jobs in the given order, but with an encode in front once enough clicks in a row have overtaken it."""
        jobs = [job for _, job in ready]
        encode = next((job for priority, job in ready if priority == Priority.ENCODE), None)
        if encode is None or encode is jobs[0]:
            self._overtaking = 0
        elif self._overtaking < MAX_OVERTAKING_CLICKS:
            self._overtaking += 1
        else:
            self._overtaking = 0
            return [encode, *(job for job in jobs if job is not encode)]
        return jobs

    def _ready(self, priorities: frozenset[Priority]) -> list[tuple[Priority, _Job]]:
        """Jobs for a lane, the most urgent first. Cancels those that nobody wants any more."""
        ranked = [(_urgency(job), job) for job in self._jobs]
        for urgency, job in ranked:
            if urgency is None:
                _cancel(job.future)
        ranked = [(urgency, job) for urgency, job in ranked if not job.future.cancelled()]
        self._jobs = [job for _, job in ranked]
        found = [(urgency, job) for urgency, job in ranked if urgency is not None and urgency in priorities]
        return sorted(found, key=lambda entry: (entry[0], entry[1].number))


def _urgency(job: _Job) -> Priority | None:
    """How urgent a job is; None if nobody wants it any more, or if that cannot be determined: the thread must
    survive, whatever is raised."""
    try:
        urgency = job.urgency()
        return None if urgency is None else Priority(urgency)
    except BaseException:
        logger.exception("work for the device is cancelled: its urgency cannot be determined")
        return None


def _are_together(one: _Job, first: _Job) -> bool:
    """Whether a job may share a call with the first."""
    if one is first:
        return True
    try:
        return bool(one.run == first.run)
    except BaseException:
        logger.exception("work for the device runs alone: it cannot be compared")
        return False


def _settle(future: Future[Any], outcome: Any) -> None:
    """Tell a caller the result, or the exception. What the caller does on hearing of it must not end the thread, nor
    must an exception that ends threads end the caller's."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        outcome = RuntimeError(f"the work ended with {type(outcome).__name__}: {outcome}")
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except BaseException:
        logger.exception("whoever waited for the device failed on its answer")


def _cancel(future: Future[Any]) -> None:
    """Cancel a future, whatever its callbacks raise."""
    try:
        future.cancel()
    except BaseException:
        logger.exception("whoever waited for the device failed on hearing that the work is cancelled")


def _outcomes(jobs: Sequence[_Job], finish: Callable[[], None]) -> list[Any]:
    """A result or an exception for each job."""
    try:
        results = list(jobs[0].run([job.item for job in jobs]))
        finish()
        assert len(results) == len(jobs), "a run must answer each of its items"
        return results
    except BaseException as error:
        if len(jobs) == 1:
            return [error]
    return [outcome for job in jobs for outcome in _outcomes([job], finish)]
