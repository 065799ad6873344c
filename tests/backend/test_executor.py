"""Protects the order in which the device works, what runs together, and that a failing job never stops it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from backend.executor import MAX_OVERTAKING_CLICKS, DeviceExecutor, Lane, Priority, cuda_lanes


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
        assert self.running.wait(60)

    def _wait(self) -> None:
        self.running.set()
        self.released.wait(60)


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
        future.result(60)
    assert done == ["click 1", "click 2", "encode 1", "encode 2", "prefetch"]


def test_a_crowd_of_clicks_does_not_shut_out_an_encode(executor: DeviceExecutor) -> None:
    """Otherwise whoever opens a new photo waits until the rest of the team stops clicking."""
    blocker = Blocker(executor)
    done: list[str] = []
    waiting = [Priority.PREFETCH, Priority.ENCODE, Priority.ENCODE] + [Priority.CLICK] * 3 * MAX_OVERTAKING_CLICKS
    futures = [executor.submit(lambda p=p: p, lambda p=p: done.append(p.name)) for p in waiting]
    blocker.released.set()
    for future in futures:
        future.result(60)
    block = ["CLICK"] * MAX_OVERTAKING_CLICKS
    assert done == [*block, "ENCODE", *block, "ENCODE", *block, "PREFETCH"]


def test_a_prefetch_that_somebody_waits_for_moves_forward(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    done: list[str] = []
    wanted = [Priority.PREFETCH]
    first = executor.submit(lambda: Priority.PREFETCH, lambda: done.append("other"))
    second = executor.submit(lambda: wanted[0], lambda: done.append("wanted"))
    wanted[0] = Priority.ENCODE
    blocker.released.set()
    first.result(60)
    second.result(60)
    assert done == ["wanted", "other"]


def test_an_error_reaches_the_caller_and_the_thread_goes_on(executor: DeviceExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: Priority.CLICK, lambda: 1 // 0).result(60)
    assert executor.submit(lambda: Priority.CLICK, lambda: 7).result(60) == 7


def test_all_work_runs_in_one_thread(executor: DeviceExecutor) -> None:
    names = {
        executor.submit(lambda: Priority.CLICK, lambda: threading.current_thread().name).result(60) for _ in range(5)
    }
    assert names == {"device"}


def test_closing_cancels_what_waits_and_refuses_more(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    waiting = executor.submit(lambda: Priority.CLICK, lambda: 1)
    threading.Timer(0.05, blocker.released.set).start()
    executor.close()
    assert waiting.cancelled()
    with pytest.raises(CancelledError, match="closed"):
        executor.submit(lambda: Priority.CLICK, lambda: 1)


def test_what_nobody_wants_any_more_is_cancelled(executor: DeviceExecutor) -> None:
    blocker = Blocker(executor)
    done: list[str] = []
    wanted: list[Priority | None] = [Priority.CLICK]
    dropped = executor.submit(lambda: wanted[0], lambda: done.append("dropped"))
    kept = executor.submit(lambda: Priority.PREFETCH, lambda: done.append("kept"))
    wanted[0] = None
    blocker.released.set()
    kept.result(60)
    with pytest.raises(CancelledError):
        dropped.result(60)
    assert done == ["kept"]


def test_the_queue_is_counted_by_priority(executor: DeviceExecutor) -> None:
    assert executor.waiting() == {"click": 0, "encode": 0, "prefetch": 0}
    blocker = Blocker(executor)
    futures = [executor.submit(lambda: Priority.CLICK, lambda: 1) for _ in range(2)]
    futures.append(executor.submit(lambda: Priority.PREFETCH, lambda: 1))
    assert executor.waiting() == {"click": 2, "encode": 0, "prefetch": 1}
    blocker.released.set()
    assert [future.result(60) for future in futures] == [1, 1, 1]


class Doubler:
    """Doubles what comes together and remembers it; refuses odd numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def run(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        if any(number % 2 for number in numbers):
            raise ValueError(f"{numbers} are not all even")
        return [2 * number for number in numbers]


@pytest.fixture
def batching() -> Iterator[DeviceExecutor]:
    executor = DeviceExecutor(batch=3)
    yield executor
    executor.close()


def test_items_that_wait_for_the_same_run_share_it(batching: DeviceExecutor) -> None:
    doubler, other = Doubler(), Doubler()
    blocker = Blocker(batching)
    futures = [batching.submit_together(lambda: Priority.CLICK, doubler.run, number) for number in (2, 4)]
    futures += [batching.submit_together(lambda: Priority.CLICK, other.run, 6)]
    futures += [batching.submit_together(lambda: Priority.CLICK, doubler.run, number) for number in (8, 10)]
    blocker.released.set()
    assert [future.result(60) for future in futures] == [4, 8, 12, 16, 20]
    assert doubler.batches == [[2, 4, 8], [10]]
    assert other.batches == [[6]]


def test_a_bad_item_fails_nobody_else(batching: DeviceExecutor) -> None:
    doubler = Doubler()
    blocker = Blocker(batching)
    good, bad, last = (batching.submit_together(lambda: Priority.CLICK, doubler.run, n) for n in (2, 3, 4))
    blocker.released.set()
    assert (good.result(60), last.result(5)) == (4, 8)
    with pytest.raises(ValueError, match=r"\[3\] are not all even"):
        bad.result(60)
    assert doubler.batches == [[2, 3, 4], [2], [3], [4]]


def test_a_run_that_answers_too_little_is_an_error_of_all_and_the_thread_goes_on(batching: DeviceExecutor) -> None:
    blocker = Blocker(batching)
    futures = [batching.submit_together(lambda: Priority.CLICK, lambda items: [], n) for n in (1, 2)]
    blocker.released.set()
    for future in futures:
        with pytest.raises(AssertionError):
            future.result(60)
    assert batching.submit(lambda: Priority.CLICK, lambda: 7).result(60) == 7


def test_with_a_lane_of_their_own_clicks_do_not_wait_for_an_encode() -> None:
    """As on a GPU; the contexts tell the lanes apart and see that each finishes what it began."""
    finished: list[str] = []

    def lane(name: str, *priorities: Priority) -> Lane:
        return Lane(name, frozenset(priorities), lambda: nullcontext(lambda: finished.append(name)))

    lanes = (lane("clicks", Priority.CLICK), lane("encodes", Priority.ENCODE, Priority.PREFETCH))
    executor = DeviceExecutor(lanes)
    released = threading.Event()
    encode = executor.submit(lambda: Priority.ENCODE, lambda: released.wait(60))
    assert executor.submit(lambda: Priority.CLICK, lambda: threading.current_thread().name).result(60) == "clicks"
    assert not encode.done()
    released.set()
    assert encode.result(60)
    executor.close()
    assert finished == ["clicks", "encodes"]


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_each_lane_has_a_stream() -> None:
    executor = DeviceExecutor(cuda_lanes(torch.device("cuda")))

    def stream() -> tuple[int, int]:
        current = torch.cuda.current_stream()
        return current.cuda_stream, current.priority

    clicks = executor.submit(lambda: Priority.CLICK, stream).result(60)
    encodes = executor.submit(lambda: Priority.ENCODE, stream).result(60)
    executor.close()
    assert clicks[0] != encodes[0]
    assert clicks[1] < encodes[1]


def test_an_error_in_an_urgency_gives_up_that_work_alone() -> None:
    def broken() -> Priority:
        raise RuntimeError("urgency")

    executor = DeviceExecutor()
    lost = executor.submit(broken, lambda: 1)
    assert executor.submit(lambda: Priority.CLICK, lambda: 2).result(10) == 2
    with pytest.raises(CancelledError):
        lost.result(10)
    executor.close()


@pytest.mark.parametrize(
    "kind", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError, MemoryError]
)
def test_no_exception_of_a_callback_ends_the_thread(kind: type[BaseException]) -> None:
    """Of an urgency, of the work itself, of comparing it with other work, and of whoever hears of its end."""

    def fail(*_: object) -> Any:
        raise kind("a callback")

    class Unequal:
        __eq__ = fail
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, items: Sequence[int]) -> Sequence[int]:
            return items

    executor = DeviceExecutor(batch=2)
    blocker = Blocker(executor)
    lost = executor.submit(fail, lambda: 1)
    strange = executor.submit(lambda: "soon", lambda: 1)  # type: ignore[arg-type,return-value]
    broken = executor.submit(lambda: Priority.CLICK, fail)
    alone = [executor.submit_together(lambda: Priority.CLICK, Unequal(), number) for number in (3, 4)]
    told = executor.submit(lambda: Priority.CLICK, lambda: 5)
    given_up = executor.submit(lambda: None, lambda: 6)
    for future in (told, given_up):
        future.add_done_callback(fail)
    blocker.released.set()
    assert [future.result(10) for future in (*alone, told)] == [3, 4, 5]
    for future in (lost, strange, given_up):
        with pytest.raises(CancelledError):
            future.result(10)
    with pytest.raises(Exception, match="a callback"):  # never one that would end the caller's thread too
        broken.result(10)
    assert executor.waiting() == {"click": 0, "encode": 0, "prefetch": 0}
    executor.check()
    executor.close()


def test_where_a_thread_has_ended_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = DeviceExecutor()
    blocker = Blocker(executor)
    waiting = executor.submit(lambda: Priority.CLICK, lambda: 1)
    monkeypatch.setattr(executor, "_next", lambda priorities: 1 / 0)
    blocker.released.set()
    with pytest.raises(CancelledError):
        waiting.result(10)
    with pytest.raises(CancelledError, match="has ended"):
        executor.submit(lambda: Priority.CLICK, lambda: 1)
    executor.close()


def test_a_thread_that_has_ended_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever: then nothing is worked off any more, and load balancers must not send clicks here."""

    def broken(self: DeviceExecutor, priorities: frozenset[Priority]) -> list[object]:
        raise SystemExit  # of a thread, which ends without a word

    healthy = DeviceExecutor()
    healthy.check()
    healthy.close()
    healthy.check()  # it was told to
    monkeypatch.setattr(DeviceExecutor, "_next", broken)
    executor = DeviceExecutor()
    executor._threads[0].join(60)
    with pytest.raises(RuntimeError, match="device has ended; restart the server"):
        executor.check()
    executor.close()
