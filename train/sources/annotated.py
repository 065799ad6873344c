"""Annotation files, read as the benchmark reads them (`bench/datasets`): COCO instance JSON, Label Studio exports.

Objects may overlap: each keeps all its pixels, in layers. COCO's crowds are ignored except under an object.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets import coco, label_studio, sample
from train.scene import Scene, scene_of_masks
from train.sources.photo import Photo, Split, belongs_to


def list_coco(given: Path, split: Split) -> list[Photo]:
    """The photos with objects: `FILE.json:IMAGES`, the file, or a folder with both. Raises ValueError."""
    return [training_photo(photo) for photo in coco.list_coco(given) if belongs_to(split, photo.name)]


def list_label_studio(given: Path, split: Split) -> list[Photo]:
    """The tasks with brush regions: `FILE.json:IMAGES`, the file, or a folder with both. Raises ValueError."""
    return [training_photo(photo) for photo in label_studio.list_label_studio(given) if belongs_to(split, photo.name)]


def training_photo(photo: sample.Photo) -> Photo:
    """A photo of an evaluation set as one to train on."""
    return Photo(photo.name, partial(_read, photo), photo.category)


def _read(photo: sample.Photo) -> tuple[NDArray[np.uint8], Scene]:
    loaded = photo.load()
    return loaded.image, scene_of_targets(loaded.targets, loaded.image.shape[:2])


def scene_of_targets(targets: sample.Targets, size: tuple[int, ...]) -> Scene:
    """Targets of a photo of `size` (H, W) as a scene; what any of them ignores is ignored except under an object."""
    masks = [target == 1 for target in targets.values()]
    ignored = np.any([target == -1 for target in targets.values()], axis=0) if targets else np.False_
    return scene_of_masks(masks, (size[0], size[1]), np.asarray(ignored) if ignored.any() else None)
