"""Masks that may overlap, packed into few images of ids: in each image, no two masks share a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skipclick.masks import BoxMask
from train.cocolvis.hierarchy import largest_first

VALUES_PER_LAYER = 255


def pack_layers(
    masks: Sequence[BoxMask], size: tuple[int, int]
) -> tuple[list[NDArray[np.uint8]], list[tuple[int, int]]]:
    """Layers, each uint8 (H, W) of `size`, and for each mask its (layer, value).

    Largest first, each mask goes to the first layer that is 0 under it and has a value left (released converter).
    """
    layers: list[NDArray[np.uint8]] = []
    counts: list[int] = []
    places = [(0, 0)] * len(masks)
    for index in largest_first([mask.area for mask in masks]):
        pixels = masks[index].pixels
        top, left, bottom, right = masks[index].box
        under = (slice(top, bottom), slice(left, right))
        free = (
            number
            for number, layer in enumerate(layers)
            if counts[number] < VALUES_PER_LAYER and not layer[under][pixels].any()
        )
        number = next(free, len(layers))
        if number == len(layers):
            layers.append(np.zeros(size, np.uint8))
            counts.append(0)
        counts[number] += 1
        layers[number][under][pixels] = counts[number]
        places[index] = (number, counts[number])
    return layers, places
