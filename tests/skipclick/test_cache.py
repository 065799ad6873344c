"""Protects the caches: one making for many askers, bounds in bytes that always hold, tiers that give back the same,
damaged and foreign files that harm nobody, honest statistics."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipclick.cache import ByteLru, CacheStats, FileLru, MovedLru, SharedCache


@dataclass(frozen=True)
class Thing:
    name: str
    nbytes: int
    place: str = "fast"


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.sampled_from(["get", "put"]), st.sampled_from("abcdef"), st.integers(0, 40))),
)
def test_lru_behaves_like_a_plain_ordered_dict(budget: int, operations: list[tuple[str, str, int]]) -> None:
    cache: ByteLru[Thing] = ByteLru(budget)
    model: OrderedDict[str, int] = OrderedDict()
    for operation, key, size in operations:
        if operation == "put":
            cache.put(key, Thing(key, size))
            model.pop(key, None)
            if size <= budget:
                while sum(model.values()) + size > budget:
                    model.popitem(last=False)
                model[key] = size
        else:
            found = cache.get(key)
            assert (found is not None) == (key in model)
            if found is not None:
                model.move_to_end(key)
        stats = cache.stats()
        assert stats.bytes == sum(model.values()) <= budget
        assert stats.entries == len(model)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        ByteLru(-1)


def test_threads_that_ask_together_make_it_once() -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(1000))
    makings = []
    begun = threading.Barrier(8)

    def make() -> Thing:
        makings.append(1)
        time.sleep(0.05)
        return Thing("a", 10)

    def ask() -> Thing:
        begun.wait()
        return cache.get_or_make("a", make)

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert len(makings) == 1
    assert all(answer is answers[0] for answer in answers)
    assert "a" in cache


def test_a_failure_reaches_all_who_wait_and_is_forgotten() -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(1000))
    begun = threading.Barrier(4)

    def fail() -> Thing:
        time.sleep(0.05)
        raise ValueError("no such image")

    def ask() -> str:
        begun.wait()
        try:
            cache.get_or_make("a", fail)
        except ValueError as error:
            return str(error)
        return "no error"

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert answers == ["no such image"] * 4
    assert "a" not in cache
    assert cache.get_or_make("a", lambda: Thing("a", 1)).name == "a"


def test_other_keys_do_not_wait() -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(1000))
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Thing:
        inside.set()
        go_on.wait(5)
        return Thing("slow", 1)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cache.get_or_make, "slow", slow)
        inside.wait(5)
        assert cache.get_or_make("quick", lambda: Thing("quick", 1)).name == "quick"
        go_on.set()
        assert running.result().name == "slow"


def test_the_least_recently_used_leave_and_the_oversized_never_enter() -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(100))
    held = cache.get_or_make("a", lambda: Thing("a", 60))
    cache.get_or_make("b", lambda: Thing("b", 30))
    cache.get_or_make("a", lambda: pytest.fail("a is kept"))
    cache.get_or_make("c", lambda: Thing("c", 40))  # "b" is the oldest now
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert cache.get_or_make("huge", lambda: Thing("huge", 101)).nbytes == 101
    assert "huge" not in cache
    assert held.name == "a"
    stats = cache.stats()["things"]
    assert (stats.hits, stats.misses, stats.evictions) == (1, 4, 1)
    assert (stats.entries, stats.bytes) == (2, 100)


def test_peeking_leaves_no_trace() -> None:
    cache: ByteLru[Thing] = ByteLru(100)
    cache.put("a", Thing("a", 60))
    cache.put("b", Thing("b", 40))
    assert cache.peek("a") == Thing("a", 60)
    assert cache.peek("c") is None
    cache.put("c", Thing("c", 10))  # "a" is still the oldest
    assert ("a" in cache, "b" in cache) == (False, True)
    assert cache.stats() == CacheStats(hits=0, misses=0, evictions=1, entries=2, bytes=50)


def test_clearing_counts_as_evictions() -> None:
    cache: ByteLru[Thing] = ByteLru(100)
    cache.put("a", Thing("a", 60))
    cache.clear()
    assert cache.stats() == CacheStats(hits=0, misses=0, evictions=1, entries=0, bytes=0)
    cache.put("b", Thing("b", 100))
    assert "b" in cache


def test_who_waited_for_a_cancelled_making_makes_it_in_its_place() -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(1000))
    inside, go_on = threading.Event(), threading.Event()

    def cancelled() -> Thing:
        inside.set()
        go_on.wait(5)
        raise CancelledError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_make, "a", cancelled)
        inside.wait(5)
        second = pool.submit(cache.get_or_make, "a", lambda: Thing("a", 1))
        time.sleep(0.02)
        go_on.set()
        assert second.result(5) == Thing("a", 1)
        with pytest.raises(CancelledError):
            first.result(5)


def write(path: Path, thing: Thing) -> None:
    path.write_text(thing.name + "." * (thing.nbytes - len(thing.name)))


def read(path: Path) -> Thing:
    text = path.read_text()
    if not text.endswith("."):
        raise ValueError("damaged")
    return Thing(text.rstrip("."), len(text))


def files(folder: Path, budget: int = 1000) -> FileLru[Thing]:
    return FileLru(folder, budget, write, read)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_tiers_give_back_what_faster_ones_have_dropped(tmp_path: Path) -> None:
    host: MovedLru[Thing] = MovedLru(200, lambda t: replace(t, place="host"), lambda t: replace(t, place="fast"))
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(100), {"host": host, "files": files(tmp_path)})
    for name in "abc":  # 80 bytes each: one fits the first tier, two the second, all the third
        cache.get_or_make(name, lambda name=name: Thing(name, 80))  # type: ignore[misc]
        wait_for(lambda: cache.stats()["things_files"].entries == "abc".index(name) + 1)  # noqa: B023
    assert [name in host for name in "abc"] == [False, True, True]
    for name in "bacb":
        found = cache.get_or_make(name, lambda: pytest.fail("it is kept in a slower tier"))
        assert found == Thing(name, 80)
    stats = cache.stats()
    assert stats["things_host"].hits == 1  # "b"; then the files brought back what pushed the rest out
    assert stats["things_files"].hits == 3
    assert stats["things"].bytes <= 100
    assert stats["things_host"].bytes <= 200
    cache.free()
    assert cache.stats()["things"].bytes == 0
    assert cache.get_or_make("b", lambda: pytest.fail("freeing empties the first tier alone")).name == "b"
    cache.close()


def test_a_slower_tier_that_fails_is_as_good_as_empty(tmp_path: Path) -> None:
    def fail(*_: object) -> Thing:
        raise MemoryError

    host: MovedLru[Thing] = MovedLru(1000, lambda thing: thing, fail)
    host.put("a", Thing("a", 10))
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(100), {"host": host})
    assert cache.get_or_make("a", lambda: Thing("made anew", 10)).name == "made anew"
    cache.close()
    broken: MovedLru[Thing] = MovedLru(1000, fail, lambda thing: thing)
    cache = SharedCache("things", ByteLru(100), {"host": broken})
    for name in "abcdefghijkl":  # more than may be on their way at once
        assert cache.get_or_make(name, lambda: Thing("a", 10)).nbytes == 10
    cache.close()


def test_after_closing_the_cache_still_makes(tmp_path: Path) -> None:
    cache: SharedCache[Thing] = SharedCache("things", ByteLru(100), {"files": files(tmp_path)})
    cache.close()
    assert cache.get_or_make("a", lambda: Thing("a", 10)).name == "a"


def test_files_outlive_the_process_and_the_longest_unread_leave_first(tmp_path: Path) -> None:
    first = files(tmp_path / "new" / "folder")
    for age, name in enumerate("cba"):
        first.put(name, Thing(name, 300))
        os.utime(first._path(name), (age, age))
    again = files(tmp_path / "new" / "folder")
    assert again.get("c") == Thing("c", 300)  # the oldest, and now the most recently used
    again.put("d", Thing("d", 300))
    assert [name in again for name in "abcd"] == [True, False, True, True]
    assert again.stats() == CacheStats(hits=1, misses=0, evictions=1, entries=3, bytes=900)
    again.put("huge", Thing("huge", 1001))
    assert "huge" not in again
    again.clear()
    assert again.stats().entries == 0


def test_a_damaged_file_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tier = files(tmp_path)
    tier.put("a", Thing("a", 30))
    tier._path("a").write_text("half of it")
    assert tier.get("a") is None
    assert "damaged" in caplog.text
    assert list(tmp_path.iterdir()) == []
    tier.put("a", Thing("a", 30))
    assert tier.get("a") == Thing("a", 30)


def test_leftovers_of_a_process_that_died_while_writing_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".a.safetensors.x1.tmp", tmp_path / ".b.safetensors.x2.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    files(tmp_path).put("c", Thing("c", 10))
    assert [old.exists(), young.exists()] == [False, True]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"features cannot be kept in .*choose another folder"):
        files(tmp_path / "file" / "folder")


def test_a_full_disk_costs_the_copy_and_not_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, thing: Thing) -> None:
        raise OSError(28, "No space left on device")

    cache: SharedCache[Thing] = SharedCache("things", ByteLru(100), {"files": FileLru(tmp_path, 1000, full, read)})
    assert cache.get_or_make("a", lambda: Thing("a", 10)).name == "a"
    wait_for(lambda: "No space left" in caplog.text)
    cache.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_a_miss_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    cache: FileLru[Thing] = FileLru(
        tmp_path, 1000, lambda path, thing: path.write_text(thing.name), lambda path: Thing(path.read_text(), 10)
    )
    path = cache._path("a")
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert cache.get("a") is None
    cache.put("b", Thing("b", 10))
    found = cache.get("b")
    assert found is not None
    assert found.name == "b"
    if kind == "pipe":
        cache.put("a", Thing("a", 10))
        assert cache.get("a") is not None
