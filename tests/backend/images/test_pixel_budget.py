"""Protects the server's memory from many large photos at once."""

from __future__ import annotations

import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from backend.images.decode import UndecodableError, decode_image
from backend.images.pixel_budget import PixelBudget


def png(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_photo_waits_until_there_is_room() -> None:
    budget = PixelBudget(100, patience=60)
    release = decode_image(BytesIO(png(10, 8)), 100, budget=budget).release
    came = threading.Event()

    def second() -> None:
        decode_image(BytesIO(png(5, 5)), 100, budget=budget)
        came.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not came.wait(0.2)
    release()
    assert came.wait(60)
    waiting.join()


def test_giving_back_twice_counts_once() -> None:
    budget = PixelBudget(10, patience=0)
    first, second = budget.take(5), budget.take(5)
    first()
    first()
    budget.take(5)
    with pytest.raises(MemoryError):
        budget.take(1)
    second()


def test_the_largest_photo_alone_always_fits() -> None:
    budget = PixelBudget(10, patience=0)
    release = budget.take(1000)
    with pytest.raises(MemoryError):
        budget.take(1)
    release()
    budget.take(10)


def test_a_damaged_photo_leaves_no_debt() -> None:
    budget = PixelBudget(64, patience=0)
    for _ in range(3):
        with pytest.raises(UndecodableError):
            decode_image(BytesIO(png(8, 8)[:45]), 100, budget=budget)
    budget.take(64)
