"""Masks at the size that the annotator sees, stored as the object's bounding box.

The network's output has its own resolution. `enlarge` interpolates it to the photo's size where it can be foreground,
and nowhere else: an interpolated pixel exceeds the threshold only if one of its source pixels does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MASK_THRESHOLD = 0.5  # a pixel belongs to the object if its probability exceeds this (released demo)
Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels of the photo, the last two exclusive."""

NOTHING: Box = (0, 0, 0, 0)
"""The box of an empty mask."""

ROWS_IN_CACHE = 64  # rows of the photo enlarged at a time on a CPU, so that they stay in its cache


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A mask of which only the box around the object is stored."""

    size: tuple[int, int]
    """(H, W) of the photo in pixels."""
    box: Box
    """Around the object; `NOTHING` for an empty mask."""
    pixels: NDArray[np.bool_]
    """bool (bottom - top, right - left); nothing outside the box belongs to the object."""

    @staticmethod
    def of(mask: NDArray[np.bool_]) -> BoxMask:
        """A whole mask, bool (H, W), reduced to its bounding box."""
        whole = torch.from_numpy(mask)
        return Enlarged(whole, 0, 0, (mask.shape[0], mask.shape[1]), torch.zeros(())).fetch()[0]

    @property
    def empty(self) -> bool:
        """Whether no pixel belongs to the object."""
        return self.pixels.size == 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.pixels.nbytes

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

    def full(self) -> NDArray[np.bool_]:
        """The whole mask, bool (H, W)."""
        return self.within((0, 0, *self.size))

    def within(self, view: Box) -> NDArray[np.bool_]:
        """The part of the mask in a view of the photo, bool of the view's size."""
        seen = np.zeros((view[2] - view[0], view[3] - view[1]), np.bool_)
        common = intersection(self.box, view)
        seen[slices(common, view)] = self.pixels[slices(common, self.box)]
        return seen

    def clipped(self, area: NDArray[np.bool_]) -> BoxMask:
        """The part of the mask in an area of the photo, bool (H, W)."""
        if self.empty:
            return self
        top, left, bottom, right = self.box
        return BoxMask.of(self.pixels & area[top:bottom, left:right]).placed(self.size, top, left)

    def placed(self, size: tuple[int, int], top: int, left: int) -> BoxMask:
        """This mask as part of a larger photo of `size` (H, W), with its upper left corner at (top, left)."""
        if self.empty:
            return _empty(size)
        down, right = self.box[2] + top, self.box[3] + left
        return BoxMask(size, (self.box[0] + top, self.box[1] + left, down, right), self.pixels)


def replace_within(mask: BoxMask, view: Box, inner: BoxMask) -> BoxMask:
    """A mask whose part in a view of the photo is replaced by `inner`, which has the view's size."""
    placed = inner.placed(mask.size, view[0], view[1])
    if intersection(mask.box, view) == mask.box:  # all of it is replaced
        return placed
    around = union(mask.box, placed.box)
    pixels = mask.within(around)
    common = intersection(around, view)
    pixels[slices(common, around)] = placed.within(common)
    return BoxMask.of(pixels).placed(mask.size, around[0], around[1])


def overlap(one: BoxMask, other: BoxMask) -> float:
    """Intersection over union of two masks of one photo, 0 to 1; of two empty ones 1."""
    shared = num_shared(one, other)
    together = one.area + other.area - shared
    return shared / together if together else 1.0


def num_shared(one: BoxMask, other: BoxMask) -> int:
    """Number of pixels that two masks of one photo have in common."""
    common = intersection(one.box, other.box)
    return int(np.count_nonzero(one.pixels[slices(common, one.box)] & other.pixels[slices(common, other.box)]))


def intersection(one: Box, other: Box) -> Box:
    """The pixels of both boxes; `NOTHING` if there are none."""
    top, left, bottom, right = (
        max(one[0], other[0]),
        max(one[1], other[1]),
        min(one[2], other[2]),
        min(one[3], other[3]),
    )
    return (top, left, bottom, right) if top < bottom and left < right else NOTHING


def union(one: Box, other: Box) -> Box:
    """The smallest box that holds both."""
    if NOTHING in (one, other):
        return other if one == NOTHING else one
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def slices(box: Box, frame: Box) -> tuple[slice, slice]:
    """The rows and columns of a box in an array that holds the pixels of another box around it."""
    if box == NOTHING:
        return slice(0), slice(0)
    return slice(box[0] - frame[0], box[2] - frame[0]), slice(box[1] - frame[1], box[3] - frame[1])


@dataclass(frozen=True, eq=False)
class Enlarged:
    """A mask still on the device, cropped to what can be foreground."""

    pixels: Tensor
    """bool (h, w), a part of the photo."""
    top: int
    left: int
    size: tuple[int, int]
    """(H, W) of the photo in pixels."""
    total: Tensor
    """float32 (), the sum of the probabilities inside the mask."""

    def fetch(self) -> tuple[BoxMask, float]:
        """The mask and its score, the mean probability inside it (0 if empty). Waits for the device."""
        if self.pixels.numel() == 0:
            return _empty(self.size), 0.0
        height, width = self.pixels.shape
        rows, columns = (self.pixels.view(torch.uint8).amax(dim) for dim in (1, 0))
        ends = torch.stack([rows.argmax(), rows.flip(0).argmax(), columns.argmax(), columns.flip(0).argmax()])
        *skipped, total, found = torch.cat([ends, torch.stack([self.total, rows.amax()])]).tolist()
        if not found:
            return _empty(self.size), 0.0
        above, below, before, after = map(int, skipped)
        pixels = self.pixels[above : height - below, before : width - after].contiguous().cpu().numpy()
        top, left = self.top + above, self.left + before
        box = (top, left, top + pixels.shape[0], left + pixels.shape[1])
        return BoxMask(self.size, box, pixels), total / int(np.count_nonzero(pixels))


def enlarge(probability: Tensor, size: tuple[int, int], *, antialias: bool) -> Enlarged:
    """The mask of a photo of `size` (H, W) from the object's probability at the network's resolution.

    The same pixels as `F.interpolate(probability, size, mode="bilinear") > MASK_THRESHOLD`, up to the last bit of the
    interpolation. A GPU enlarges everything, because asking what can be foreground would mean waiting for it.

    Args:
        probability: float32 (h, w) in [0, 1].
        antialias: as in `F.interpolate`; without it corners are aligned (released code).
    """
    height, width = probability.shape
    down, across = _taps(height, size[0], antialias), _taps(width, size[1], antialias)
    rows, columns = slice(0, size[0]), slice(0, size[1])
    if probability.device.type == "cpu":
        foreground: NDArray[np.bool_] = (probability > MASK_THRESHOLD).numpy()
        rows, columns = (taps.reached(np.any(foreground, axis=axis)) for taps, axis in ((down, 1), (across, 0)))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        nothing = torch.zeros(0, 0, dtype=torch.bool, device=probability.device)
        return Enlarged(nothing, 0, 0, size, probability.new_zeros(()))
    # Columns first, for the few rows of the network; then rows, which are contiguous in memory.
    sources = down.sources(rows)
    wide = _wider(probability[sources], size[1], antialias)[:, columns].contiguous()
    first, weights = _row_taps(height, size[0], antialias, wide.device)
    first, weights = first[rows] - sources.start, weights[rows]
    step = ROWS_IN_CACHE if wide.device.type == "cpu" else len(first)
    pixels = torch.empty(len(first), wide.shape[1], dtype=torch.bool, device=wide.device)
    total = wide.new_zeros(())
    for begin in range(0, len(first), step):
        here = slice(begin, begin + step)
        block = weighted_rows(wide, first[here], weights[here])
        torch.gt(block, MASK_THRESHOLD, out=pixels[here])
        total += F.threshold(block, MASK_THRESHOLD, 0.0, inplace=True).sum()
    return Enlarged(pixels, rows.start, columns.start, size, total)


def _empty(size: tuple[int, int]) -> BoxMask:
    return BoxMask(size, NOTHING, np.zeros((0, 0), np.bool_))


def _wider(rows: Tensor, width: int, antialias: bool) -> Tensor:
    """Rows (n, w) interpolated to (n, width)."""
    options = {"antialias": True, "align_corners": False} if antialias else {"align_corners": True}
    return F.interpolate(rows[None, None], size=(rows.shape[0], width), mode="bilinear", **options)[0, 0]


def weighted_rows(rows: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Sums of `weights.shape[1]` neighbouring rows, beginning with those at `first`; (len(first), w)."""
    total = rows.index_select(0, first).mul_(weights[:, :1])
    for k in range(1, weights.shape[1]):
        total.addcmul_(rows.index_select(0, (first + k).clamp_(max=len(rows) - 1)), weights[:, k : k + 1])
    return total


@dataclass(frozen=True, eq=False)
class _Taps:
    """Bilinear interpolation along one axis: output i is the sum over k of weights[i, k] * source[first[i] + k].

    A source beyond the last one has weight 0.
    """

    first: NDArray[np.int64]  # (outputs,), never decreasing
    weights: NDArray[np.float32]  # (outputs, K)
    num_sources: int

    def reached(self, sources: NDArray[np.bool_]) -> slice:
        """The outputs between the first and the last that these sources reach."""
        marked = np.flatnonzero(sources)
        if not marked.size:
            return slice(0, 0)
        last_tap = self.first + self.weights.shape[1] - 1
        return slice(int(np.searchsorted(last_tap, marked[0])), int(np.searchsorted(self.first, marked[-1], "right")))

    def sources(self, outputs: slice) -> slice:
        """The sources that these outputs are made of."""
        last = int(self.first[outputs.stop - 1]) + self.weights.shape[1]
        return slice(int(self.first[outputs.start]), min(last, self.num_sources))


@lru_cache(maxsize=256)
def _taps(num_sources: int, num_outputs: int, antialias: bool) -> _Taps:
    """PyTorch's weights: aligned corners, or half-pixel centres with a triangle filter that widens when shrinking."""
    outputs = np.arange(num_outputs, dtype=np.float32)
    if not antialias:
        scale = np.float32((num_sources - 1) / max(1, num_outputs - 1)) if num_outputs > 1 else np.float32(0)
        position = outputs * scale
        first = position.astype(np.int64)
        fraction = position - first.astype(np.float32)
        return _Taps(first, np.stack([1 - fraction, fraction], axis=1), num_sources)
    scale = np.float32(num_sources / num_outputs)
    support = max(scale, np.float32(1))
    centre = scale * (outputs + np.float32(0.5))
    first = np.maximum((centre - support + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((centre + support + np.float32(0.5)).astype(np.int64), num_sources)
    sources = first[:, None] + np.arange(math.ceil(2 * support) + 1)
    distance = np.abs(sources.astype(np.float32) - centre[:, None] + np.float32(0.5)) / support
    weights = np.where(sources < last[:, None], np.maximum(1 - distance, 0), 0).astype(np.float32)
    weights = weights[:, : int(np.flatnonzero(weights.any(axis=0))[-1]) + 1]
    return _Taps(first, weights / weights.sum(axis=1, keepdims=True), num_sources)


@lru_cache(maxsize=256)
def _row_taps(num_sources: int, num_outputs: int, antialias: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_Taps.first` and `weights` on a device: copying them there for each mask would mean waiting for it."""
    taps = _taps(num_sources, num_outputs, antialias)
    return torch.from_numpy(taps.first).to(device), torch.from_numpy(taps.weights).to(device)
