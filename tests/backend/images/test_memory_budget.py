"""Protects the server's memory from many large photos at once."""

from __future__ import annotations

import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from backend.images.decode import UndecodableError, decode_image
from backend.images.memory_budget import MemoryBudget


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_who_needs_memory_waits_until_there_is_room() -> None:
    budget = MemoryBudget(100, patience=60)
    first = budget.take(80)
    came = threading.Event()

    def second() -> None:
        budget.take(25)
        came.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not came.wait(0.2)
    first.shrink(75)
    assert came.wait(60)
    waiting.join()


def test_giving_back_twice_counts_once() -> None:
    budget = MemoryBudget(10, patience=0)
    first, second = budget.take(5), budget.take(5)
    first.release()
    first.release()
    budget.take(5)
    with pytest.raises(MemoryError):
        budget.take(1)
    second.release()


def test_more_than_there_is_at_all_is_not_waited_for() -> None:
    with pytest.raises(MemoryError):
        MemoryBudget(10, patience=600).take(11)


def test_a_decoded_photo_holds_its_pixels_and_no_more() -> None:
    budget = MemoryBudget(64 << 20, patience=0)
    photo = decode_image(BytesIO(png(100, 80)), 10_000, budget=budget)
    rest = budget.take((64 << 20) - 100 * 80 * 3)
    photo.release()
    budget.take(100 * 80 * 3)
    rest.release()


def test_a_photo_that_needs_more_than_all_of_it_is_refused_with_the_setting() -> None:
    with pytest.raises(UndecodableError, match=r"takes 2 MB, more than IMAGE_MEMORY_BYTES=1MB"):
        decode_image(BytesIO(png(200, 200)), 40_000, budget=MemoryBudget(1 << 20, patience=600))


def test_a_damaged_photo_leaves_no_debt() -> None:
    budget = MemoryBudget(64 << 20, patience=0)
    for _ in range(3):
        with pytest.raises(UndecodableError):
            decode_image(BytesIO(png(8, 8)[:45]), 100, budget=budget)
    budget.take(64 << 20)
