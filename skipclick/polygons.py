"""Masks as polygons, simplified as far as an IoU floor allows, and back.

Coordinates are (x, y) in pixels of the photo; the pixel in row r and column c covers [c, c + 1] x [r, r + 1]. A pixel
belongs to a polygon where its centre does, by the even-odd rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask

Ring = NDArray[np.float64]
"""(N, 2) corners of a closed line, N at least 3; the last is joined to the first."""

MIN_IOU = 0.99
MAX_CROSSINGS = 4_000_000
"""Rows that all edges of rings may run through together. Outlines of objects have a few times the photo's rows; a
zigzag of a hundred thousand corners over a large photo would take a hundred gigabytes."""
_CROSSINGS_AT_ONCE = 1_000_000
_SEARCH_STEPS = 8  # of the binary search for the tolerance, on a logarithmic scale
_MIN_TOLERANCE = 0.25  # pixels; simplification with less saves hardly any corners


@dataclass(frozen=True, eq=False)
class Polygon:
    """One part of a mask: its outer ring and its holes, which run the other way round."""

    outer: Ring
    holes: tuple[Ring, ...] = ()

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The outer ring, then the holes."""
        return self.outer, *self.holes

    def with_bridges(self) -> Ring:
        """The part as a single ring, see `bridged`. For formats that know no holes."""
        return bridged(self.rings)


@dataclass(frozen=True, eq=False)
class Outline:
    """A mask's polygons, largest first, and their IoU with it."""

    polygons: tuple[Polygon, ...]
    iou: float


def outline(
    mask: BoxMask,
    min_iou: float = MIN_IOU,
    max_points: int | None = None,
    held: NDArray[np.int64] | None = None,
) -> Outline:
    """The polygons of a mask, with as few corners as possible for an IoU of at least `min_iou` with it.

    Args:
        min_iou: in [0, 1]; 1 gives the mask's exact polygons.
        max_points: maximum of a ring, at least 3; takes precedence over `min_iou`, and `Outline.iou` is what is left.
        held: (N, 2), rows and columns of pixels of the photo that must stay inside or outside as in the mask, as far as
            `max_points` allows.

    An empty mask has no polygons, and an IoU of 1. Raises `ValueError` for arguments out of range.
    """
    if not 0 <= min_iou <= 1:
        raise ValueError(f"the IoU floor is {min_iou}; give a number from 0 to 1")
    if max_points is not None and max_points < 3:
        raise ValueError(f"a polygon has at least 3 points; {max_points} are too few")
    if mask.empty:
        return Outline((), 1.0)
    size = (mask.pixels.shape[0], mask.pixels.shape[1])
    rings, parents = _exact_rings(mask.pixels)
    exact = _crossings(rings, size)
    keys = _keys(held, mask)
    kept = _are_enclosed(keys, exact)
    coarsest = float(max(size))
    low, high, simple = np.log(_MIN_TOLERANCE), np.log(max(coarsest, 2 * _MIN_TOLERANCE)), rings
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        candidate = [_simplified(ring, float(np.exp(middle))) for ring in rings]
        crossings = _crossings(candidate, size)
        if _iou(exact, crossings) >= min_iou and np.array_equal(_are_enclosed(keys, crossings), kept):
            low, simple = middle, candidate
        else:
            high = middle
    if max_points is not None:
        simple = [_with_at_most(ring, max_points) for ring in simple]
    iou = _iou(exact, _crossings(simple, size))
    corner = np.array([mask.box[1], mask.box[0]])
    moved = [ring + corner for ring in simple]
    polygons = [
        Polygon(moved[index], tuple(moved[hole] for hole, of in enumerate(parents) if of == index))
        for index, parent in enumerate(parents)
        if parent < 0
    ]
    return Outline(tuple(sorted(polygons, key=lambda polygon: -abs(signed_area(polygon.outer)))), iou)


def bridged(rings: Sequence[Ring]) -> Ring:
    """One ring that encloses what several enclose: each is connected to the first by a line that is followed in both
    directions and so encloses nothing."""
    ring, remaining = rings[0], list(rings[1:])
    while remaining:
        links = [_nearest_corners(ring, other) for other in remaining]
        nearest = min(range(len(links)), key=lambda index: links[index][2])
        here, there, _ = links[nearest]
        other = np.roll(remaining.pop(nearest), -there, axis=0)
        ring = np.concatenate([ring[: here + 1], other, other[:1], ring[here:]])
    return ring


def rasterize(rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, bool (H, W), that rings enclose together by the even-odd rule; what lies outside the photo is cut off.

    Raises `ValueError` for rings of the wrong shape, with coordinates that are not finite, or whose edges run through
    more rows, each counted, than `MAX_CROSSINGS`.
    """
    height, width = size
    for ring in rings:
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError(f"a ring needs at least 3 points (x, y) of finite numbers; got shape {ring.shape}")
    edges = _Edges.of(rings, height)
    if (num_crossings := int(edges.num_rows.sum())) > MAX_CROSSINGS:
        raise ValueError(f"the rings' edges run through {num_crossings} rows, more than {MAX_CROSSINGS}")
    changes = np.zeros((height, width + 1), np.uint8)
    for part in edges.parts(_CROSSINGS_AT_ONCE):
        np.bitwise_xor.at(changes.reshape(-1), part.crossings(width), np.uint8(1))
    return np.bitwise_xor.accumulate(changes, axis=1)[:, :width].astype(np.bool_)


def signed_area(ring: Ring) -> float:
    """Area in square pixels; positive where the ring runs clockwise on the screen (y down)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _exact_rings(pixels: NDArray[np.bool_]) -> tuple[list[Ring], list[int]]:
    """Rings that enclose exactly these pixels, and for each hole the index of its outer ring, for all others -1.

    OpenCV's contours run through the centres of pixels. On a grid of half pixels, on which each pixel also has its
    corners, they run along the borders; the corners that they cut off contain no pixel's centre.
    """
    height, width = pixels.shape
    grid = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    grid[1::2, 1::2] = pixels
    grid = cv2.dilate(grid, np.ones((3, 3), np.uint8)).astype(np.uint8)
    contours, hierarchy = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour[:, 0].astype(np.float64) / 2 for contour in contours]
    parents = [int(parent) for parent in hierarchy[0, :, 3]]
    clockwise = [parent < 0 for parent in parents]
    turned = [
        ring if (signed_area(ring) > 0) == wanted else ring[::-1] for ring, wanted in zip(rings, clockwise, strict=True)
    ]
    return turned, parents


def _simplified(ring: Ring, tolerance: float) -> Ring:
    """A ring simplified by Douglas-Peucker, which deviates by at most `tolerance` pixels; unchanged if it would
    collapse."""
    simple: Ring = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
    return simple if len(simple) >= 3 and signed_area(simple) * signed_area(ring) > 0 else ring


def _with_at_most(ring: Ring, num_points: int) -> Ring:
    """A ring of at most this many points: simplified with a growing tolerance or, if that does not suffice, every n-th
    corner of it."""
    tolerance, simple = _MIN_TOLERANCE, ring
    while len(simple) > num_points and tolerance < np.ptp(ring, axis=0).max():
        tolerance *= 1.25
        simple = _simplified(ring, tolerance)
    if len(simple) > num_points:
        simple = ring[np.linspace(0, len(ring), num_points, endpoint=False).astype(int)]
    return simple


def _crossings(rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where each row's line of pixel centres enters or leaves what the rings enclose, sorted: row * (W + 1) + column of
    the first pixel behind the crossing."""
    return np.sort(_Edges.of(rings, size[0]).crossings(size[1]))


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges of rings: their ends, float (N, 2), and the rows whose line of pixel centres they cross."""

    upper: NDArray[np.float64]
    lower: NDArray[np.float64]
    first: NDArray[np.int64]
    num_rows: NDArray[np.int64]

    @classmethod
    def of(cls, rings: Sequence[Ring], height: int) -> _Edges:
        """All edges of rings on a photo of this height."""
        starts = np.concatenate([np.zeros((0, 2)), *rings])
        ends = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, -1, axis=0) for ring in rings)])
        upper, lower = np.where((starts[:, 1] <= ends[:, 1])[:, None], (starts, ends), (ends, starts))
        first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
        return cls(upper, lower, first, np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64) - first)

    def parts(self, num_crossings: int) -> Iterator[_Edges]:
        """The same edges in groups with about so many crossings each, which take 100 bytes each."""
        group = np.cumsum(self.num_rows) // num_crossings
        for place in np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1):
            yield _Edges(self.upper[place], self.lower[place], self.first[place], self.num_rows[place])

    def crossings(self, width: int) -> NDArray[np.int64]:
        """See `_crossings`; not sorted."""
        edge = np.repeat(np.arange(len(self.first)), self.num_rows)
        before = np.cumsum(self.num_rows) - self.num_rows
        row = np.arange(len(edge)) - np.repeat(before, self.num_rows) + self.first[edge]
        upper, lower = self.upper[edge], self.lower[edge]
        slope = (lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1])
        x = upper[:, 0] + (row + 0.5 - upper[:, 1]) * slope
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        return np.asarray(row * (width + 1) + column)


def _keys(pixels: NDArray[np.int64] | None, mask: BoxMask) -> NDArray[np.int64]:
    """Those pixels (N, 2) of the photo that lie in the mask's box, numbered as in `_crossings`. Simplified rings
    have no new corners, so pixels outside the box stay outside."""
    if pixels is None:
        return np.zeros(0, np.int64)
    height, width = mask.pixels.shape
    row, column = pixels[:, 0] - mask.box[0], pixels[:, 1] - mask.box[1]
    inner = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    keys: NDArray[np.int64] = (row * (width + 1) + column)[inner]
    return keys


def _are_enclosed(keys: NDArray[np.int64], crossings: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether pixels are enclosed, which is whether an odd number of crossings precedes them: those of earlier rows are
    even in number."""
    return np.asarray(np.searchsorted(crossings, keys, side="right") % 2 == 1)


def _enclosed(crossings: NDArray[np.int64]) -> int:
    """The number of enclosed pixels: those between each odd crossing and the next one."""
    return int((crossings[1::2] - crossings[::2]).sum())


def _iou(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """IoU of what two sets of rings enclose; by the even-odd rule, all crossings together enclose the symmetric
    difference."""
    areas, different = _enclosed(one) + _enclosed(other), _enclosed(np.sort(np.concatenate([one, other])))
    return (areas - different) / (areas + different) if areas else 1.0


def _nearest_corners(ring: Ring, hole: Ring) -> tuple[int, int, float]:
    """Indices of the corners of two rings that are nearest to each other, and the square of their distance."""
    distances = ((ring[:, None] - hole[None]) ** 2).sum(axis=2)
    here, there = np.unravel_index(int(distances.argmin()), distances.shape)
    return int(here), int(there), float(distances[here, there])
