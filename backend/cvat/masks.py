"""CVAT's masks: run lengths inside the object's box, and the rows of a whole picture for servers before 2.60.

The points of a mask shape are the lengths of its runs along the rows of its box, background first (0 where the first
pixel is the object's), then the box: left, top, right and bottom, the last two inclusive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask


def run_lengths(mask: BoxMask) -> list[int]:
    """The points of a mask shape. Raises `ValueError` for an empty mask, which has none."""
    if mask.empty:
        raise ValueError("an empty mask has no box")
    top, left, bottom, right = mask.box
    pixels = mask.pixels.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [*([0] if pixels[0] else []), *lengths, left, top, right - 1, bottom - 1]


def rows(mask: BoxMask) -> NDArray[np.uint8]:
    """The whole picture, uint8 (H, W): 1 where it is the object's, 0 elsewhere."""
    return mask.full().view(np.uint8)
