"""Boxes around masks and their overlaps, so that only few masks must be compared pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask


def boxed(mask: NDArray[np.bool_]) -> BoxMask:
    """A mask, bool (H, W), cropped to the box around it."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    bottom, right = top + height, left + width
    size = (mask.shape[0], mask.shape[1])
    return BoxMask(size, (top, left, bottom, right), mask[top:bottom, left:right].copy())


def boxes(masks: Sequence[BoxMask]) -> NDArray[np.int64]:
    """(N, 4): top, left, bottom, right, the last two exclusive."""
    return np.array([mask.box for mask in masks], np.int64).reshape(-1, 4)


def box_areas(of: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) pixels of boxes (N, 4)."""
    return np.asarray((of[:, 2:] - of[:, :2]).prod(1))


def box_intersections(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, M) pixels that boxes (N, 4) and (M, 4) have in common."""
    return np.asarray(_common(a, b).prod(2))


def box_ious(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, M): the IoU of the boxes' rows times the IoU of their columns, each within [0, 1] (released converter)."""
    ends = np.maximum(a[:, None, 2:], b[None, :, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])
    return np.asarray((_common(a, b) / np.maximum(ends, 1)).prod(2))


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, M, 2): rows and columns in common."""
    ends = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.asarray(np.maximum(ends, 0))
