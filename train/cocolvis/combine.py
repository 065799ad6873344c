"""COCO's and LVIS's annotations of one photo combined: duplicates dropped, parts found, stuff where no object is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask, overlap
from train.cocolvis.hierarchy import Node, build_hierarchy
from train.cocolvis.overlap import box_ious, boxed, boxes

MIN_AREA = 80  # pixels of the smallest object (this and all below: released converter)
MIN_STUFF_AREA = 501  # pixels of the smallest stuff region that no object covers
SAME_BOX_IOU = 0.7  # masks are compared if their boxes have more than this
SAME_IOU = 0.7  # a COCO object with more than this is the LVIS object
SAME_LVIS_IOU = 0.85  # two LVIS objects with more than this are one

Outline = Sequence[float] | NDArray[np.float64]
"""x, y, x, y, ... in pixels."""
Polygons = Sequence[Outline]
"""The outlines that together make one object."""


@dataclass(frozen=True)
class CombineCounts:
    """What became of the masks of one photo, or of many."""

    coco_kept: int = 0
    coco_small: int = 0
    coco_duplicate: int = 0
    """COCO objects that LVIS has too."""
    lvis_kept: int = 0
    lvis_small: int = 0
    lvis_duplicate: int = 0
    """LVIS objects that are repeated later in the same photo."""
    stuff_kept: int = 0
    stuff_small: int = 0
    parts: int = 0
    """Objects kept that are a part of another one."""


@dataclass(frozen=True)
class Combined:
    """The masks of one photo: the kept objects of COCO, then those of LVIS, then stuff."""

    masks: list[BoxMask]
    nodes: list[Node]
    """Of the objects, which are the first masks; the rest is stuff."""
    counts: CombineCounts


def combine(
    ids: NDArray[np.uint32], segments: Mapping[int, int], things: Set[int], lvis: Sequence[Polygons]
) -> Combined:
    """Combine the annotations of one photo.

    Args:
        ids: (H, W), COCO's panoptic map.
        segments: category of each id that counts, crowds included.
        things: the categories of objects; all others are stuff.
        lvis: one entry for each object.

    Raises ValueError if an outline of LVIS is not a polygon.
    """
    size = (ids.shape[0], ids.shape[1])
    all_lvis = [fill(polygons, size) for polygons in lvis]
    all_coco = [boxed(ids == segment) for segment, category in segments.items() if category in things]
    large_lvis = [mask for mask in all_lvis if mask.area >= MIN_AREA]
    large_coco = [mask for mask in all_coco if mask.area >= MIN_AREA]
    kept_coco = without_duplicates(large_coco, large_lvis)
    kept_lvis = without_repeats(large_lvis)
    objects = kept_coco + kept_lvis
    if not objects:
        # The release leaves such a photo out, its stuff too: there would be nothing to click on.
        return Combined([], [], CombineCounts(coco_small=len(all_coco), lvis_small=len(all_lvis)))
    free = ~union(objects, size)
    all_stuff = [boxed((ids == segment) & free) for segment, category in segments.items() if category not in things]
    stuff = [mask for mask in all_stuff if mask.area >= MIN_STUFF_AREA]
    nodes = build_hierarchy(objects)
    counts = CombineCounts(
        coco_kept=len(kept_coco),
        coco_small=len(all_coco) - len(large_coco),
        coco_duplicate=len(large_coco) - len(kept_coco),
        lvis_kept=len(kept_lvis),
        lvis_small=len(all_lvis) - len(large_lvis),
        lvis_duplicate=len(large_lvis) - len(kept_lvis),
        stuff_kept=len(stuff),
        stuff_small=len(all_stuff) - len(stuff),
        parts=sum(node.parent is not None for node in nodes),
    )
    return Combined(objects + stuff, nodes, counts)


def fill(polygons: Polygons, size: tuple[int, int]) -> BoxMask:
    """The pixels inside an object's outlines, in a photo of `size` (H, W).

    Corners are rounded to whole pixels and each outline is filled on its own, so that holes are not left open (released
    converter). Raises ValueError if an outline is not a polygon.
    """
    outlines = [_outline(polygon) for polygon in polygons]
    if not outlines:
        return boxed(np.zeros(size, np.bool_))
    corners = np.concatenate(outlines)
    left, top = np.clip(corners.min(0), 0, (size[1] - 1, size[0] - 1)).tolist()
    right, bottom = (np.clip(corners.max(0), 0, (size[1] - 1, size[0] - 1)) + 1).tolist()
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [outline], 1, offset=(-left, -top))
    return boxed(canvas.view(np.bool_)).placed(size, top, left)


def _outline(polygon: Outline) -> NDArray[np.int32]:
    """(N, 2): x, y."""
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or corners.size == 0 or corners.size % 2 or not (np.abs(corners) < 1e6).all():
        raise ValueError("an outline is not a list of coordinates x, y, x, y, ... within the photo")
    return np.round(corners.reshape(-1, 2)).astype(np.int32)


def without_duplicates(masks: Sequence[BoxMask], others: Sequence[BoxMask]) -> list[BoxMask]:
    """Those masks of COCO that LVIS does not have too."""
    near = box_ious(boxes(masks), boxes(others)) > SAME_BOX_IOU
    return [
        mask
        for mask, row in zip(masks, near, strict=True)
        if not any(overlap(mask, others[other]) > SAME_IOU for other in np.flatnonzero(row))
    ]


def without_repeats(masks: Sequence[BoxMask]) -> list[BoxMask]:
    """Those masks of LVIS that are not repeated later: of several the last one stays."""
    near = np.triu(box_ious(boxes(masks), boxes(masks)) > SAME_BOX_IOU, k=1)
    return [
        mask
        for mask, row in zip(masks, near, strict=True)
        if not any(overlap(mask, masks[later]) > SAME_LVIS_IOU for later in np.flatnonzero(row))
    ]


def union(masks: Sequence[BoxMask], size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W) of `size`: the pixels of any of the masks."""
    covered = np.zeros(size, np.bool_)
    for mask in masks:
        top, left, bottom, right = mask.box
        covered[top:bottom, left:right] |= mask.pixels
    return covered
