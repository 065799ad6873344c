"""Clicks as seeds: what the methods without a network share. They work on a reduced photo and grow from discs."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import Click


def reduced(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """The photo, uint8 RGB (H, W, 3), shrunk until its longer side is at most `max_side` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def enlarged(mask: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A mask of the reduced photo, float32 in [0, 1], at the photo's `size` (H, W), with soft edges."""
    return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR))


def disc(click: Click, image_size: tuple[int, int], size: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """The pixels around a click, bool (h, w).

    The click is in pixels of the photo, whose size is `image_size` (H, W); the disc is drawn at `size` (h, w). radius:
    in parts of the shorter side.
    """
    height, width = size
    centre = (int(click.x * width / image_size[1]), int(click.y * height / image_size[0]))
    canvas = np.zeros(size, np.uint8)
    cv2.circle(canvas, centre, max(1, round(radius * min(size))), (1,), cv2.FILLED)
    return canvas.astype(np.bool_)
