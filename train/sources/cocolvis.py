"""The combination of COCO and LVIS that RITM published and SkipClick was trained on, as `build-cocolvis` writes it too.

    ROOT/train/images/ID.jpg
    ROOT/train/masks/ID.pickle      ([PNG of a layer, ...], [(layer, value) of a mask, ...])
    ROOT/train/hannotation.pickle   {ID: {"num_instance_masks": n, "hierarchy": {i: None | {"parent": ..., ...}}}}

and ROOT/val, which is held out; without it one photo in twenty is. Masks from n on are stuff. The pickles are read as
data: nothing in them is executed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.left_out import Listing
from skipclick.evaluation.datasets.sample import read_photo
from skipclick.safe_unpickle import read_plain_pickle
from train.scene import Scene, SceneObject
from train.sources.photo import Photo, Split, belongs_to

ANNOTATIONS = "hannotation.pickle"
NO_PARENT = -1


def list_cocolvis(root: Path, split: Split) -> Listing[Photo]:
    """The photos by id. Raises ValueError if an annotation file is missing or has another format."""
    train, val = root / "train", root / "val"
    if not (val / ANNOTATIONS).is_file():
        return Listing([photo for photo in _list(train) if belongs_to(split, photo.name)])
    folders = {"train": [train], "held_out": [val], "all": [train, val]}[split]
    return Listing([photo for folder in folders for photo in _list(folder)])


def _list(folder: Path) -> list[Photo]:
    file = folder / ANNOTATIONS
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    content = read_plain_pickle(file)
    try:
        return [
            Photo(
                str(name),
                partial(_read, folder / f"images/{name}.jpg", folder / f"masks/{name}.pickle", _parents(entry)),
            )
            for name, entry in sorted(content.items())
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is not an annotation of the combined COCO and LVIS") from None


def _parents(entry: dict[str, Any]) -> NDArray[np.int32]:
    """Parent of each instance mask, or NO_PARENT, in a thousandth of the memory of the file's dictionaries."""
    parents = np.full(entry["num_instance_masks"], NO_PARENT, np.int32)
    for index, node in entry["hierarchy"].items():
        if node is not None and node["parent"] is not None:
            parents[index] = node["parent"]
    if ((parents < NO_PARENT) | (parents >= len(parents))).any():
        raise ValueError("a parent is not an instance mask")
    return parents


def _read(image: Path, masks: Path, parents: NDArray[np.int32]) -> tuple[NDArray[np.uint8], Scene]:
    return read_photo(image), read_scene(masks, parents)


def read_scene(masks: Path, parents: NDArray[np.int32]) -> Scene:
    """One photo's masks; the first len(parents) are instances, the others stuff. Raises ValueError naming the file."""
    try:
        pngs, mapping = read_plain_pickle(masks)
        layers = np.stack([_decoded(png) for png in pngs])
        parts = [(int(layer), int(value)) for layer, value in mapping]
    except OSError as error:
        raise ValueError(f"{masks} cannot be read ({error.strerror})") from None
    except (TypeError, ValueError, cv2.error) as error:
        raise ValueError(f"{masks} does not hold the masks of a photo ({error})") from None
    if len(parts) < len(parents) or any(layer >= len(layers) or not 0 < value < 256 for layer, value in parts):
        raise ValueError(f"{masks}: its masks do not agree with {ANNOTATIONS}")
    objects = (
        SceneObject(layer, value, None if parent == NO_PARENT else int(parent))
        for (layer, value), parent in zip(parts, parents, strict=False)
    )
    stuff = (SceneObject(layer, value) for layer, value in parts[len(parents) :])
    return Scene(layers, tuple(objects), tuple(stuff))


def _decoded(png: Any) -> NDArray[np.uint8]:
    layer = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if layer is None or layer.ndim != 2 or layer.dtype != np.uint8:
        raise ValueError("a layer is not an 8-bit PNG of one channel")
    return np.asarray(layer)
