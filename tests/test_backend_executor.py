"""Protects the order in which the device works, and that a failing or cancelled job never stops it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from backend.executor import DeviceExecutor, Priority


@pytest.fixture
def executor() -> Iterator[DeviceExecutor]:
    executor = DeviceExecutor()
    yield executor
    executor.close()


class Blocker:
    """Keeps the device busy until released, so that a queue can form."""

    def __init__(self, executor: DeviceExecutor) -> None:
        self.running, self.released = threading.Event(), threading.Event()
        executor.submit(lambda: Priority.CLICK, self._wait)
        assert self.running.wait(5)

    def _wait(self) -> None:
        self.running.set()
        self.released.wait(5)


def test_clicks_go_before_encodes_before_prefetches(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    done: list[str] = []
    futures = [
        executor.submit(lambda p=priority: p, lambda n=name: done.append(n))
        for priority, name in [
            (Priority.PREFETCH, "prefetch"),
            (Priority.ENCODE, "encode 1"),
            (Priority.CLICK, "click 1"),
            (Priority.ENCODE, "encode 2"),
            (Priority.CLICK, "click 2"),
        ]
    ]
    blocker.released.set()
    for future in futures:
        future.result(5)
    assert done == ["click 1", "click 2", "encode 1", "encode 2", "prefetch"]


def test_a_prefetch_that_somebody_waits_for_moves_forward(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    done: list[str] = []
    wanted = [Priority.PREFETCH]
    first = executor.submit(lambda: Priority.PREFETCH, lambda: done.append("other"))
    second = executor.submit(lambda: wanted[0], lambda: done.append("wanted"))
    wanted[0] = Priority.ENCODE
    blocker.released.set()
    first.result(5)
    second.result(5)
    assert done == ["wanted", "other"]


def test_an_error_reaches_the_caller_and_the_thread_goes_on(executor: DeviceExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: Priority.CLICK, lambda: 1 // 0).result(5)
    assert executor.submit(lambda: Priority.CLICK, lambda: 7).result(5) == 7


def test_all_work_runs_in_one_thread(executor: DeviceExecutor) -> None:
    names = {
        executor.submit(lambda: Priority.CLICK, lambda: threading.current_thread().name).result(5) for _ in range(5)
    }
    assert names == {"device"}


def test_closing_cancels_what_waits_and_refuses_more(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    waiting = executor.submit(lambda: Priority.CLICK, lambda: 1)
    threading.Timer(0.05, blocker.released.set).start()
    executor.close()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(lambda: Priority.CLICK, lambda: 1)
