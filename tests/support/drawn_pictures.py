"""A small photo and masks that tests of data sets write to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 6, 8

PHOTO = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
PHOTO[0, 0] = (255, 0, 0)  # red, to catch swapped channels


def blank(*shape: int) -> NDArray[np.uint8]:
    return np.zeros(shape or (HEIGHT, WIDTH), np.uint8)


def save(path: Path, pixels: NDArray[np.generic] = PHOTO) -> None:
    """Write a picture in the format of the name's suffix, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_palette(path: Path, ids: NDArray[np.uint8], colours: NDArray[np.uint8]) -> None:
    """Write ids, (H, W), as a picture with a palette, (256, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids, "P")
    picture.putpalette(colours.tobytes())
    picture.save(path)


def voc_palette() -> NDArray[np.uint8]:
    """PASCAL's colours: bit 3k, 3k + 1, 3k + 2 of an id are bit 7 - k of red, green, blue."""
    ids = np.arange(256)[:, None]
    bits = ids >> (3 * np.arange(3)[None] + np.arange(3)[:, None, None]) & 1
    return np.asarray((bits << (7 - np.arange(3))).sum(axis=2).T, np.uint8)
