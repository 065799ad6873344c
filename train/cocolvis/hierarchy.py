"""Which mask is a part of which: a shirt of a person, a wheel of a car."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skipclick.masks import BoxMask, num_shared
from train.cocolvis.overlap import box_areas, box_intersections, boxes

PART_BOX = 0.7  # at least this share of a part's box lies in the box of the whole (released converter)
PART = 0.8  # more than this share of its pixels lies in the whole


@dataclass(frozen=True)
class Node:
    """A mask's place in the hierarchy; other masks are given by their index."""

    parent: int | None
    """The mask that this one is a part of; None for a root."""
    children: tuple[int, ...]
    """Its parts, in the order in which they were found."""
    level: int
    """Steps up to the root."""

    @property
    def alone(self) -> bool:
        """Whether it is neither a part nor has any."""
        return self.parent is None and not self.children


def build_hierarchy(masks: Sequence[BoxMask]) -> list[Node]:
    """A node for each mask; none of the masks may be empty.

    From the largest on, each mask takes in the smaller ones inside it that have no parent yet. Such a part goes to the
    deepest descendant that contains it: children are tried before their parent, in the order in which they were found.
    """
    areas = [mask.area for mask in masks]
    inside = _inside(masks, areas)
    parents: list[int | None] = [None] * len(masks)
    children: list[list[int]] = [[] for _ in masks]
    levels = [0] * len(masks)

    def deepest(whole: int, part: int) -> int | None:
        for child in children[whole]:
            if areas[child] >= areas[part] and (found := deepest(child, part)) is not None:
                return found
        return whole if part in inside[whole] else None

    order = largest_first(areas)
    for position, whole in enumerate(order):
        for part in order[position + 1 :]:
            if parents[part] is None and part in inside[whole] and (parent := deepest(whole, part)) is not None:
                parents[part] = parent
                children[parent].append(part)
                levels[part] = levels[parent] + 1
    return [Node(*of_one) for of_one in zip(parents, map(tuple, children), levels, strict=True)]


def largest_first(areas: Sequence[int]) -> list[int]:
    """Indices by descending area; of equal ones the later comes first (released converter)."""
    return sorted(range(len(areas)), key=areas.__getitem__)[::-1]


def _inside(masks: Sequence[BoxMask], areas: Sequence[int]) -> list[set[int]]:
    """For each mask the masks of at most its size that lie in it."""
    corners, sizes = boxes(masks), np.array(areas)
    candidates = (box_intersections(corners, corners) / box_areas(corners) >= PART_BOX) & (sizes[:, None] >= sizes)
    np.fill_diagonal(candidates, False)
    inside: list[set[int]] = [set() for _ in masks]
    for whole, part in np.argwhere(candidates).tolist():
        if num_shared(masks[whole], masks[part]) / areas[part] > PART:
            inside[whole].add(part)
    return inside
