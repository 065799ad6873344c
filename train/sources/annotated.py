"""Annotation files, read as the benchmark reads them (`skipclick/evaluation/datasets`): COCO, Label Studio.

Objects may overlap: each keeps all its pixels, in layers. COCO's crowds are ignored except under an object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets import LAYOUTS, sample
from skipclick.evaluation.datasets.left_out import Listing, count_by_reason
from train.scene import Scene, scene_of_masks
from train.sources.photo import Photo, Split, belongs_to


def list_layout(name: str) -> Callable[[Path, Split], Listing[Photo]]:
    """A function that lists a data set of the benchmark, a key of its `LAYOUTS`, for training."""
    return partial(_list, name)


def _list(name: str, given: Path, split: Split) -> Listing[Photo]:
    listing = LAYOUTS[name].list_photos(given)
    photos = [training_photo(photo) for photo in listing.photos if belongs_to(split, photo.name)]
    return Listing(photos, listing.left_out)


def training_photo(photo: sample.Photo) -> Photo:
    """A photo of an evaluation set as a training photo."""
    return Photo(photo.name, partial(_read, photo), photo.category)


def _read(photo: sample.Photo) -> tuple[NDArray[np.uint8], Scene]:
    loaded = photo.load()
    scene = scene_of_targets(loaded.targets, loaded.image.shape[:2])
    return loaded.image, replace(scene, left_out=tuple(count_by_reason(loaded.left_out)))


def scene_of_targets(targets: sample.Targets, size: tuple[int, ...]) -> Scene:
    """Targets of a photo of `size` (H, W) as a scene; what any of them ignores is ignored, except under an object."""
    masks = [target == 1 for target in targets.values()]
    ignored = np.any([target == -1 for target in targets.values()], axis=0) if targets else np.False_
    return scene_of_masks(masks, (size[0], size[1]), np.asarray(ignored) if ignored.any() else None)
