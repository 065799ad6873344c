"""Protects the feature cache: one encoding for many askers, a bound in bytes that always holds, honest statistics."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipclick.features import ByteLru, FeatureCache, ImageFeatures
from skipclick.model import PreparedFeatures


@dataclass(frozen=True)
class Thing:
    name: str
    nbytes: int


def test_bytes_of_shared_storages_count_once() -> None:
    block = torch.zeros(1, 8, 4, 4)
    tokens = block.flatten(2).transpose(1, 2)  # a view
    skip = torch.zeros(10, dtype=torch.bfloat16)
    features = ImageFeatures((block, block[:, :4]), PreparedFeatures(tokens, (skip,)), (30, 40))
    assert features.nbytes == 8 * 16 * 4 + 20


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


def test_threads_that_ask_together_encode_once() -> None:
    cache: FeatureCache[Thing] = FeatureCache(1000)
    encodings = []
    begun = threading.Barrier(8)

    def encode() -> Thing:
        encodings.append(1)
        time.sleep(0.05)
        return Thing("a", 10)

    def ask() -> Thing:
        begun.wait()
        return cache.get_or_encode("a", encode)

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert len(encodings) == 1
    assert all(answer is answers[0] for answer in answers)
    assert "a" in cache


def test_a_failure_reaches_all_who_wait_and_is_forgotten() -> None:
    cache: FeatureCache[Thing] = FeatureCache(1000)
    begun = threading.Barrier(4)

    def fail() -> Thing:
        time.sleep(0.05)
        raise ValueError("no such image")

    def ask() -> str:
        begun.wait()
        try:
            cache.get_or_encode("a", fail)
        except ValueError as error:
            return str(error)
        return "no error"

    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert answers == ["no such image"] * 4
    assert "a" not in cache
    assert cache.get_or_encode("a", lambda: Thing("a", 1)).name == "a"


def test_other_keys_do_not_wait() -> None:
    cache: FeatureCache[Thing] = FeatureCache(1000)
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Thing:
        inside.set()
        go_on.wait(5)
        return Thing("slow", 1)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cache.get_or_encode, "slow", slow)
        inside.wait(5)
        assert cache.get_or_encode("quick", lambda: Thing("quick", 1)).name == "quick"
        go_on.set()
        assert running.result().name == "slow"


def test_the_least_recently_used_leave_and_the_oversized_never_enter() -> None:
    cache: FeatureCache[Thing] = FeatureCache(100)
    held = cache.get_or_encode("a", lambda: Thing("a", 60))
    cache.get_or_encode("b", lambda: Thing("b", 30))
    cache.get_or_encode("a", lambda: pytest.fail("a is kept"))
    cache.get_or_encode("c", lambda: Thing("c", 40))  # "b" is the oldest now
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert cache.get_or_encode("huge", lambda: Thing("huge", 101)).nbytes == 101
    assert "huge" not in cache
    assert held.name == "a"
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.evictions) == (1, 4, 1)
    assert (stats.entries, stats.bytes) == (2, 100)
