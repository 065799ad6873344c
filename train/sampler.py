"""Which object is a training sample's target, and the random clicks it starts from (released: multi-point sampler)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.simulation import chamfer_distance
from train.scene import Scene

NUM_SLOTS = 24  # click slots for each polarity
_KERNEL = np.ones((3, 3), np.uint8)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Defaults are the released code's, whose names stand in brackets, unless it says "ours"."""

    stuff_prob: float = 0.30  # regions such as sky may be targets in this share of the photos (stuff_prob)
    keep_background_prob: float = 0.05  # a view without objects is kept so often at each draw (keep_background_prob)
    max_draws: int = 20  # then it is kept anyway; ours: released redraws without end
    min_object_area: int = 1000  # pixels in the view; smaller ones are never targets (min_object_area)
    small_as_others: bool = False  # may "other objects" be small ones? Released: yes; ours: they are background
    merge_prob: float = 0.15  # several objects become one target (merge_objects_prob)
    max_merged: int = 2  # maximum (max_num_merged_objects)
    count_decay: float = 0.8  # k extra clicks have probability ~ decay^k (prob_gamma)
    erode_prob: float = 0.9  # positive clicks fall into the eroded object (positive_erode_prob)
    erode_iterations: int = 3  # by this many pixels (positive_erode_iters)
    border_ratio: float = 0.1  # width of the border, relative to the square root of the object's area (expand_ratio)
    # Where a negative click falls: background, other objects, border (negative_{bg,other,border}_prob).
    negative_regions: tuple[float, float, float] = (0.1, 0.4, 0.5)
    single_centre_prob: float = 0.0  # start from one click at the object's centre, as an annotator does; ours


@dataclass(frozen=True)
class ObjectSample:
    """A target and what its clicks are drawn from."""

    target: NDArray[np.int8]  # (H, W): 1 object, 0 background, -1 ignored
    parts: tuple[Mask, ...]  # the objects merged into the target; empty for a background sample
    others: Mask  # (H, W): pixels of other objects; the whole background if there are none


@dataclass(frozen=True)
class Points:
    """Clicks in slots: (NUM_SLOTS, 2) float32 as (row, column), padded with -1."""

    positives: NDArray[np.float32]
    negatives: NDArray[np.float32]


def with_stuff(scene: Scene, config: SamplerConfig, rng: np.random.Generator) -> Scene:
    """The scene, with a probability of `stuff_prob` with its stuff as root objects, otherwise without it."""
    if scene.stuff and rng.random() < config.stuff_prob:
        return replace(scene, objects=scene.objects + scene.stuff, stuff=())
    return replace(scene, stuff=())


def sample_object(scene: Scene, config: SamplerConfig, rng: np.random.Generator) -> ObjectSample:
    """Choose a target among the roots of a scene's objects; without objects, a background sample is returned.

    Parts of objects are never targets, unless the object itself is too small: then they take its place.
    """
    areas = scene.areas
    kept = [index for index, area in enumerate(areas) if area >= config.min_object_area]
    roots = [index for index, parent in surviving_parents(scene, kept).items() if parent is None]
    num_parts = min(len(roots), 1)
    if len(roots) > 1 and rng.random() < config.merge_prob:
        num_parts = int(rng.integers(2, min(len(roots), config.max_merged) + 1))
    chosen = rng.choice(len(roots), size=num_parts, replace=False).tolist() if num_parts else []
    parts = tuple(scene.mask(scene.objects[roots[index]]) for index in chosen)
    is_target = np.zeros(scene.layers.shape[1:], np.bool_)
    for part in parts:
        is_target |= part
    target = is_target.astype(np.int8)
    if scene.ignored is not None:
        target[scene.ignored & ~is_target] = -1
    others = ~is_target
    if len(kept) > num_parts:
        others &= scene.covered(range(len(areas)) if config.small_as_others else kept)
    return ObjectSample(target, parts, others)


def surviving_parents(scene: Scene, kept: Collection[int]) -> dict[int, int | None]:
    """By index of each kept object its nearest ancestor that is kept too; None: it is a root."""
    survivors = set(kept)
    parents = {}
    for index in kept:
        parent = scene.objects[index].parent
        while parent is not None and parent not in survivors:
            parent = scene.objects[parent].parent
        parents[index] = parent
    return parents


def sample_points(sample: ObjectSample, config: SamplerConfig, rng: np.random.Generator) -> Points:
    """The clicks a sample starts from."""
    if sample.parts and rng.random() < config.single_centre_prob:
        return Points(_slots([_centre(sample.target == 1)]), _slots([]))
    return Points(_slots(_sample_positives(sample, config, rng)), _slots(_sample_negatives(sample, config, rng)))


def count_probabilities(num_counts: int, decay: float) -> NDArray[np.float64]:
    """Probabilities of 0, 1, ..., num_counts - 1 extra clicks: geometric, normalised."""
    weights = decay ** np.arange(num_counts, dtype=np.float64)
    return np.asarray(weights / weights.sum())


def eroded(mask: Mask, iterations: int = 3) -> Mask:
    """The eroded mask, or the mask itself if 10 pixels or fewer would be left."""
    inside = cv2.erode(mask.astype(np.uint8), _KERNEL, iterations=iterations).astype(bool)
    return inside if inside.sum() > 10 else mask


def border_width(mask: Mask, ratio: float = 0.1) -> int:
    """Width in pixels of the region around an object where negative clicks are drawn."""
    return math.ceil(ratio * math.sqrt(float(mask.sum())))


def border(mask: Mask, ratio: float = 0.1) -> Mask:
    """That region: the dilated object minus the object."""
    grown = cv2.dilate(mask.astype(np.uint8), _KERNEL, iterations=border_width(mask, ratio)).astype(bool)
    return grown & ~mask


def _sample_positives(sample: ObjectSample, config: SamplerConfig, rng: np.random.Generator) -> list[tuple[int, int]]:
    if not sample.parts:
        return []
    regions = [
        eroded(part, config.erode_iterations) if rng.random() < config.erode_prob else part for part in sample.parts
    ]
    if len(regions) == 1:
        count = 1 + rng.choice(NUM_SLOTS, p=count_probabilities(NUM_SLOTS, config.count_decay))
        return _draw(regions[0], int(count), rng)
    # Each of several merged objects gets one click; further ones fall on any of them.
    firsts = [point for region in regions for point in _draw(region, 1, rng)]
    count = int(rng.choice(NUM_SLOTS + 1, p=count_probabilities(NUM_SLOTS + 1, config.count_decay)))
    extra = [_draw(regions[rng.integers(len(regions))], 1, rng) for _ in range(min(count, NUM_SLOTS - len(firsts)))]
    return firsts + [point for points in extra for point in points]


def _sample_negatives(sample: ObjectSample, config: SamplerConfig, rng: np.random.Generator) -> list[tuple[int, int]]:
    count = int(rng.choice(NUM_SLOTS + 1, p=count_probabilities(NUM_SLOTS + 1, config.count_decay)))
    per_region = rng.multinomial(count, config.negative_regions)
    target = sample.target == 1
    background = ~target
    points: list[tuple[int, int]] = []
    if per_region[0]:
        points += _draw(background, int(per_region[0]), rng)
    if per_region[1]:
        points += _draw(sample.others, int(per_region[1]), rng)
    if per_region[2]:
        # A background sample has no border: its negatives fall anywhere.
        points += _draw(border(target, config.border_ratio) if sample.parts else background, int(per_region[2]), rng)
    return points


def _draw(region: Mask, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Uniform pixels with replacement; none from an empty region."""
    indices = np.flatnonzero(region)
    if len(indices) == 0:
        return []
    rows, columns = np.divmod(indices[rng.integers(len(indices), size=count)], region.shape[1])
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _centre(mask: Mask) -> tuple[int, int]:
    """The pixel farthest from the outside."""
    row, column = divmod(int(chamfer_distance(mask).argmax()), mask.shape[1])
    return row, column


def _slots(points: list[tuple[int, int]]) -> NDArray[np.float32]:
    slots = np.full((NUM_SLOTS, 2), -1, np.float32)
    if points:
        slots[: len(points)] = points
    return slots
