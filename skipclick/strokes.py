"""Strokes as clicks: a network that has learnt from clicks is given a few points of what was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.prompts import Click

MAX_CLICKS = 4
"""Of one stroke: each costs the network's time, and training gave an object few."""

_SPACING = 1 / 10
"""The least distance of a stroke's clicks, as a share of the photo's shorter side."""


@dataclass(frozen=True, eq=False)
class Stroke:
    """What was painted over: pixels that are the object's, or that are not."""

    mask: NDArray[np.bool_]
    """Bool (H, W) of the photo."""
    positive: bool

    def clicks(self) -> tuple[Click, ...]:
        """At most `MAX_CLICKS` clicks that stand for the stroke; none if it has no pixel.

        The first lies at the deepest pixel, each further one as far as it can from those before, along the stroke's
        middle. So a dot is one click, and a line has them at its middle, its ends and in between.
        """
        left, top, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        if width == 0:
            return ()
        # City-block distances are whole numbers, so that ties do not depend on rounding.
        padded = np.pad(self.mask[top : top + height, left : left + width].view(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L1, cv2.DIST_MASK_3)
        middle = np.argwhere(2 * depth > depth.max())  # (N, 2): row, column; in row-major order
        chosen = [middle[int(np.argmax(depth[middle[:, 0], middle[:, 1]]))]]
        distance = _squared(middle, chosen[0])
        limit = (_SPACING * min(self.mask.shape)) ** 2
        while len(chosen) < MAX_CLICKS and distance.max() >= limit:
            chosen.append(middle[int(distance.argmax())])
            distance = np.minimum(distance, _squared(middle, chosen[-1]))
        return tuple(Click(float(left + column - 1), float(top + row - 1), self.positive) for row, column in chosen)


def _squared(points: NDArray[np.int64], point: NDArray[np.int64]) -> NDArray[np.int64]:
    """Squared distances (N,) of points (N, 2) from one."""
    return np.asarray(((points - point) ** 2).sum(axis=1))
