"""Drawn objects that the bundled model takes for something else, and that a head learns in a few steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from train.finetune import Example


def fixed(value: NDArray[np.generic]) -> Callable[[], NDArray[np.generic]]:
    return lambda: value


def drawn_example(number: int, key: str | None = None) -> Example:
    """A bright square with a darker stripe through it on a noisy ground: the object is the square with its stripe."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
    top, left = rng.integers(8, 40, 2)
    target = np.zeros((96, 128), np.int8)
    target[top : top + 44, left : left + 52] = 1
    image[target == 1] += 140
    image[top + 18 : top + 26, left : left + 52] //= 3
    return Example(key or f"drawn-{number}", fixed(image), fixed(target))  # type: ignore[arg-type]
