"""Protects the sharing of work: results in order, little read in advance, no process left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest

from train.cocolvis.workers import AHEAD, map_in_processes


def slower_at_first(number: int) -> int:
    time.sleep(0.05 if number < 4 else 0)
    return 10 * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise OSError("no space")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def test_results_come_in_the_order_of_the_works_and_few_works_are_taken_in_advance() -> None:
    taken = 0

    def works() -> Iterator[int]:
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    for number, result in enumerate(map_in_processes(slower_at_first, works(), jobs=2)):
        assert result == 10 * number
        assert taken <= number + 2 * AHEAD
    assert number == 199


def test_what_a_work_raises_is_raised() -> None:
    with pytest.raises(OSError, match="no space"):
        list(map_in_processes(fail_at_three, range(100), jobs=2))


def test_a_process_that_dies_is_said() -> None:
    with pytest.raises(BrokenProcessPool):
        list(map_in_processes(die_at_three, range(100), jobs=2))
