"""A folder of `images/NAME.jpg` and `masks/NAME.png`: one channel of 8 or 16 bits, one id per object.

0 is background; 128 of 8 bits, 65535 of 16 bits is ignored (`folder` in `skipclick/evaluation/datasets`; other image
formats will do). An optional `index.csv` with columns `name` and `kind` lets a run leave out kinds of photos.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.image_mask_folders import IGNORED_ID, IGNORED_ID_16_BIT, files_by_stem
from skipclick.evaluation.datasets.left_out import LeftOut, Listing
from skipclick.evaluation.datasets.sample import read_ids, read_photo
from train.scene import VALUES_PER_LAYER, Scene, SceneObject
from train.sources.photo import Photo, Split, belongs_to

NO_MASK = "the photo has no mask"
NO_PHOTO = "the mask has no photo"


def list_folder(folder: Path, split: Split) -> Listing[Photo]:
    """The photos that have a mask, by name. Raises ValueError if there is no such folder."""
    images, masks = files_by_stem(folder / "images"), files_by_stem(folder / "masks")
    kinds = _kinds(folder / "index.csv")
    photos = [
        Photo(name, partial(_read, images[name], mask), kinds.get(name))
        for name, mask in masks.items()
        if name in images and belongs_to(split, name)
    ]
    left_out = [LeftOut(NO_MASK, str(images[name])) for name in images if name not in masks]
    left_out += [LeftOut(NO_PHOTO, str(masks[name])) for name in masks if name not in images]
    return Listing(photos, left_out)


def _kinds(index: Path) -> dict[str, str]:
    if not index.exists():
        return {}
    with index.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        rows = csv.DictReader(file)
        if missing := {"name", "kind"} - set(rows.fieldnames or ()):
            raise ValueError(f"{index} lacks the column {', '.join(sorted(missing))}")
        return {row["name"]: row["kind"] for row in rows}


def _read(image: Path, mask: Path) -> tuple[NDArray[np.uint8], Scene]:
    ids = read_ids(mask)
    return read_photo(image, mask_sizes=[ids.shape]), scene_of_ids(ids)


def scene_of_ids(ids: NDArray[np.uint8] | NDArray[np.uint16]) -> Scene:
    """A map of ids, (H, W), as a scene: an object for each id, in ascending order; 128 or 65535 is ignored.

    More than 255 objects, which need 16 bits, take several layers.
    """
    num_values = np.iinfo(ids.dtype).max + 1
    ignored_id = IGNORED_ID if ids.dtype == np.uint8 else IGNORED_ID_16_BIT
    found = np.bincount(ids.ravel(), minlength=num_values) > 0
    ignored = np.asarray(ids == ignored_id) if found[ignored_id] else None
    found[[0, ignored_id]] = False
    values = np.flatnonzero(found)
    num_layers = max(1, -(-len(values) // VALUES_PER_LAYER))
    new_values = np.zeros((num_layers, num_values), np.uint8)
    objects = []
    for index, value in enumerate(values):
        layer, rank = divmod(index, VALUES_PER_LAYER)
        new_values[layer, value] = rank + 1
        objects.append(SceneObject(layer, rank + 1))
    return Scene(new_values[:, ids], tuple(objects), ignored=ignored)
