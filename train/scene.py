"""The common form of all training data: one photo's objects as layers of ids.

Overlapping masks are in different layers, so each mask is complete: a person's mask includes the pixels of the shirt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.left_out import LeftOut

NUM_VALUES = 256
VALUES_PER_LAYER = NUM_VALUES - 1


@dataclass(frozen=True)
class SceneObject:
    """One mask: the pixels of `layers[layer]` that equal `value`."""

    layer: int
    value: int
    """At least 1."""
    parent: int | None = None
    """Index of the object that this one is a part of (a shirt of a person), in the scene's `objects`; None: a root."""


@dataclass(frozen=True)
class Scene:
    """The masks of one photo of height H and width W."""

    layers: NDArray[np.uint8]
    """(L, H, W); 0 is nothing."""
    objects: tuple[SceneObject, ...]
    """Things, roots and their descendants."""
    stuff: tuple[SceneObject, ...] = ()
    """Uncountable regions such as sky, which are rarely targets."""
    ignored: NDArray[np.bool_] | None = None
    """(H, W): pixels that do not count."""
    left_out: tuple[LeftOut, ...] = ()
    """Of the photo's annotations, those that are not objects."""

    def mask(self, part: SceneObject) -> NDArray[np.bool_]:
        """bool (H, W): all pixels of an object, its descendants' too."""
        return np.asarray(self.layers[part.layer] == part.value)

    @cached_property
    def areas(self) -> tuple[int, ...]:
        """Pixels of each of `objects`, exact up to 24 bits."""
        counts = [cv2.calcHist([layer], [0], None, [NUM_VALUES], [0, NUM_VALUES])[:, 0] for layer in self.layers]
        return tuple(int(counts[part.layer][part.value]) for part in self.objects)

    def covered(self, indices: Iterable[int]) -> NDArray[np.bool_]:
        """bool (H, W): the pixels of any of these objects."""
        listed = np.zeros((len(self.layers), NUM_VALUES), np.uint8)
        for index in indices:
            listed[self.objects[index].layer, self.objects[index].value] = 1
        covered = np.zeros(self.layers.shape[1:], np.uint8)
        for layer, values in zip(self.layers, listed, strict=True):
            if values.any():
                covered |= np.asarray(cv2.LUT(layer, values), np.uint8)
        return covered.view(np.bool_)


def scene_of_masks(
    masks: Sequence[NDArray[np.bool_]], size: tuple[int, int], ignored: NDArray[np.bool_] | None = None
) -> Scene:
    """Masks, each bool (H, W) of `size`, that may overlap, as root objects; each goes to the first layer with room."""
    layers: list[NDArray[np.uint8]] = []
    counts: list[int] = []  # objects of each layer
    objects = []
    for mask in masks:
        free = (i for i, layer in enumerate(layers) if counts[i] < VALUES_PER_LAYER and not layer[mask].any())
        index = next(free, len(layers))
        if index == len(layers):
            layers.append(np.zeros(size, np.uint8))
            counts.append(0)
        counts[index] += 1
        layers[index][mask] = counts[index]
        objects.append(SceneObject(index, counts[index]))
    return Scene(np.stack(layers) if layers else np.zeros((1, *size), np.uint8), tuple(objects), ignored=ignored)
