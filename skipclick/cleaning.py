"""Post-processing of masks: they agree with all clicks and strokes, and have no specks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.strokes import Stroke

_CORRECTED_RADIUS = 1 / 200
"""Radius, as a share of the photo's shorter side, of the disk that is set around a click which the mask contradicts."""


def clean(mask: BoxMask, marks: Sequence[Click | Stroke], smallest: float) -> BoxMask:
    """The mask, corrected such that each clicked or painted pixel has the sign it was given (the later one if there are
    two), without islands and holes smaller than `smallest`, a share of the mask's area.

    The largest island always stays, and so does one with a clicked or painted pixel; so does a hole with one. marks: in
    pixels of the photo, oldest first.
    """
    clicks = [mark for mark in marks if isinstance(mark, Click)]
    if len(clicks) == len(marks):
        return _without_specks(_with_clicks_followed(mask, clicks), clicks, smallest)
    signs = np.zeros(mask.size, np.int8)
    for mark in marks:
        signs[_pixel(mark, mask.size) if isinstance(mark, Click) else mark.mask] = 1 if mark.positive else -1
    effective = [click for click in clicks if (signs[_pixel(click, mask.size)] > 0) == click.positive]
    full_mask = _without_specks(_with_clicks_followed(mask, effective), effective, smallest).full()
    return BoxMask.of((full_mask | (signs > 0)) & (signs >= 0))


def marked_pixels(marks: Sequence[Click | Stroke], size: tuple[int, int]) -> NDArray[np.int64]:
    """(N, 2): rows and columns of all pixels of a photo of `size` (H, W) that were clicked or painted."""
    clicked = np.array([_pixel(mark, size) for mark in marks if isinstance(mark, Click)], np.int64).reshape(-1, 2)
    return np.concatenate([clicked, *(np.argwhere(mark.mask) for mark in marks if isinstance(mark, Stroke))])


def _with_clicks_followed(mask: BoxMask, clicks: Sequence[Click]) -> BoxMask:
    """The mask with the sign of each click that it contradicts, set in a disk around the click except where a click of
    the other sign is as near."""
    signs = {_pixel(click, mask.size): click.positive for click in clicks}
    wrong = [(pixel, sign) for pixel, sign in signs.items() if _contains(mask, pixel) != sign]
    if not wrong:
        return mask
    full_mask = mask.full()
    radius = max(1, round(_CORRECTED_RADIUS * min(mask.size)))
    for (row, column), sign in wrong:
        top, left = max(row - radius, 0), max(column - radius, 0)
        y, x = np.ogrid[top : min(row + radius + 1, mask.size[0]), left : min(column + radius + 1, mask.size[1])]
        distance = (y - row) ** 2 + (x - column) ** 2
        disk = distance <= radius**2
        for other, other_sign in signs.items():
            if other_sign != sign:
                disk &= distance < (y - other[0]) ** 2 + (x - other[1]) ** 2
        full_mask[top : top + disk.shape[0], left : left + disk.shape[1]][disk] = sign
    return BoxMask.of(full_mask)


def _without_specks(mask: BoxMask, clicks: Sequence[Click], smallest: float) -> BoxMask:
    limit = smallest * int(np.count_nonzero(mask.pixels))
    if limit <= 1:
        return mask
    # A border joins all background that reaches the edge of the box.
    pixels = np.pad(mask.pixels, 1).astype(np.uint8)
    top, left = mask.box[0] - 1, mask.box[1] - 1
    inside = [
        (row - top, column - left)
        for row, column in (_pixel(click, mask.size) for click in clicks)
        if 0 <= row - top < pixels.shape[0] and 0 <= column - left < pixels.shape[1]
    ]
    # Holes are 4-connected because islands are 8-connected: one is the complement of the other.
    small_holes = _small(1 - pixels, 4, limit, inside)
    if small_holes is not None:
        pixels[small_holes] = 1
    small_islands = _small(pixels, 8, limit, inside)
    if small_islands is not None:
        pixels[small_islands] = 0
    if small_holes is None and small_islands is None:
        return mask
    return BoxMask.of(pixels[1:-1, 1:-1].astype(np.bool_)).placed(mask.size, *mask.box[:2])


def _small(
    pixels: NDArray[np.uint8], connectivity: int, limit: float, kept: Sequence[tuple[int, int]]
) -> NDArray[np.bool_] | None:
    """The pixels of components with an area below `limit`, except the largest one and those with a `kept` pixel; None
    if there are none."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=connectivity)
    areas = stats[:, cv2.CC_STAT_AREA]
    small = areas < limit
    small[0] = False  # not a component
    if count > 1:
        small[1 + int(areas[1:].argmax())] = False
    for row, column in kept:
        small[components[row, column]] = False
    return np.asarray(small[components]) if small.any() else None


def _pixel(click: Click, size: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the pixel that a click lies in; the far edge belongs to the last pixel."""
    return min(int(click.y), size[0] - 1), min(int(click.x), size[1] - 1)


def _contains(mask: BoxMask, pixel: tuple[int, int]) -> bool:
    row, column = pixel[0] - mask.box[0], pixel[1] - mask.box[1]
    height, width = mask.pixels.shape
    return 0 <= row < height and 0 <= column < width and bool(mask.pixels[row, column])
