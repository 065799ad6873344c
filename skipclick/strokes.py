"""Strokes as clicks: a network trained on clicks gets a few points of each stroke."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.prompts import Click

MAX_CLICKS = 4
"""Maximum for one stroke: each takes computing time, and in training objects have few."""

_MAX_BOX_PIXELS = 1 << 22
"""A stroke's box with more pixels is searched in squares of several: the search takes fifty times the bytes of the
box."""

_SPACING = 1 / 10
"""The least distance between a stroke's clicks, as a share of the photo's shorter side."""


@dataclass(frozen=True, eq=False)
class Stroke:
    """A painted stroke: pixels that belong to the object, or that do not."""

    mask: NDArray[np.bool_]
    """Bool (H, W) of the photo."""
    positive: bool

    def clicks(self) -> tuple[Click, ...]:
        """At most `MAX_CLICKS` clicks that stand for the stroke; none if it has no pixel.

        The first lies at the deepest pixel, each further one as far as possible from those before, along the
        stroke's middle. So a dot becomes one click, and a line gets them at its middle, its ends and in between.
        """
        left, top, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        if width == 0:
            return ()
        box = self.mask[top : top + height, left : left + width].view(np.uint8)
        step = math.isqrt((width * height - 1) // _MAX_BOX_PIXELS) + 1
        squares = box if step == 1 else _squares(box, step)
        chosen = _spread(squares, (_SPACING * min(self.mask.shape) / step) ** 2)
        pixels = (_central(box, row * step, column * step, step) for row, column in chosen)
        return tuple(Click(float(left + column), float(top + row), self.positive) for row, column in pixels)


def _spread(painted: NDArray[np.uint8], limit: float) -> list[tuple[int, int]]:
    """Places (row, column) along the middle of what is not 0, at most `MAX_CLICKS`, with squared distances of at least
    `limit`."""
    # City-block distances are whole numbers, so that ties do not depend on rounding.
    depth = cv2.distanceTransform(np.pad(painted, 1), cv2.DIST_L1, cv2.DIST_MASK_3)
    middle = np.argwhere(2 * depth > depth.max())  # (N, 2): row, column; in row-major order
    chosen = [middle[int(np.argmax(depth[middle[:, 0], middle[:, 1]]))]]
    distance = _squared(middle, chosen[0])
    while len(chosen) < MAX_CLICKS and distance.max() >= limit:
        chosen.append(middle[int(distance.argmax())])
        distance = np.minimum(distance, _squared(middle, chosen[-1]))
    return [(int(row) - 1, int(column) - 1) for row, column in chosen]


def _squares(box: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Whether squares of `step` times `step` pixels contain anything: 0 or 1, (H / step, W / step) rounded up."""
    rows = np.maximum.reduceat(box, np.arange(0, box.shape[0], step), axis=0)
    return np.asarray(np.maximum.reduceat(rows, np.arange(0, box.shape[1], step), axis=1), np.uint8)


def _central(box: NDArray[np.uint8], row: int, column: int, step: int) -> tuple[int, int]:
    """The painted pixel that is nearest to the middle of a square."""
    painted = np.argwhere(box[row : row + step, column : column + step])
    nearest = painted[int(_squared(2 * painted, np.array([step - 1, step - 1])).argmin())]
    return row + int(nearest[0]), column + int(nearest[1])


def _squared(points: NDArray[np.int64], point: NDArray[np.int64]) -> NDArray[np.int64]:
    """Squared distances (N,) of points (N, 2) from one."""
    return np.asarray(((points - point) ** 2).sum(axis=1))
