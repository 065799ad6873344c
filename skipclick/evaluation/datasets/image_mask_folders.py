"""Data sets with a folder of photos and a folder of masks: a photo and its mask have the same stem.

A photo without a mask, or a mask without a photo, is found when it is read: its partner is a missing file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from skipclick.evaluation.datasets.left_out import Listing
from skipclick.evaluation.datasets.sample import (
    Content,
    Photo,
    Targets,
    instance_targets,
    read_colours,
    read_ids,
    read_photo,
)

IGNORED_ID = 128
IGNORED_ID_16_BIT = 65535

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# Part of HQSeg-44k's validation set: folder of photos, folder of masks; in the order of the released code.
HQSEG_PARTS = {
    "DIS5K-VD": ("DIS5K/DIS-VD/im", "DIS5K/DIS-VD/gt"),
    "ThinObject5K-TE": (
        "thin_object_detection/ThinObject5K/images_test",
        "thin_object_detection/ThinObject5K/masks_test",
    ),
    "COIFT": ("thin_object_detection/COIFT/images", "thin_object_detection/COIFT/masks"),
    "HRSOD": ("thin_object_detection/HRSOD/images", "thin_object_detection/HRSOD/masks_max255"),
}


def trimap(mask: Path) -> Targets:
    """One object where the blue channel is above 128; 128 is ignored (GrabCut, Berkeley)."""
    blue = read_colours(mask)[:, :, 2]
    target = (blue > IGNORED_ID).astype(np.int8)
    target[blue == IGNORED_ID] = -1
    return {1: target}


def any_colour(mask: Path) -> Targets:
    """One object where any channel is above 0; nothing is ignored (DAVIS, COCO_MVal, HQSeg-44k)."""
    return {1: np.asarray(read_colours(mask).any(axis=2), np.int8)}


def instance_ids(mask: Path) -> Targets:
    """One object per value; 0 is background, and 128 of 8 bits or 65535 of 16 bits is ignored."""
    ids = read_ids(mask)
    return instance_targets(ids, IGNORED_ID if ids.dtype == np.uint8 else IGNORED_ID_16_BIT)


def list_pairs(images: str, masks: str, read_targets: Callable[[Path], Targets]) -> Callable[[Path], Listing[Photo]]:
    """How to list a set whose folder has these two folders."""
    return partial(_list_pairs, images=images, masks=masks, read_targets=read_targets)


def list_hqseg(folder: Path) -> Listing[Photo]:
    """The four parts one after the other; a name begins with its part."""
    return Listing(
        [
            photo
            for part, (images, masks) in HQSEG_PARTS.items()
            for photo in _list_pairs(folder, images, masks, any_colour, prefix=f"{part}/").photos
        ]
    )


def _list_pairs(
    folder: Path, images: str, masks: str, read_targets: Callable[[Path], Targets], prefix: str = ""
) -> Listing[Photo]:
    photos = files_by_stem(folder / images)
    targets = files_by_stem(folder / masks)
    return Listing(
        [
            Photo(
                prefix + stem,
                partial(
                    _read_pair,
                    photos.get(stem, folder / images / f"{stem}.jpg"),
                    targets.get(stem, folder / masks / f"{stem}.png"),
                    read_targets,
                ),
            )
            for stem in sorted(photos.keys() | targets.keys())
        ]
    )


def _read_pair(image: Path, mask: Path, read_targets: Callable[[Path], Targets]) -> Content:
    targets = read_targets(mask)
    return Content(read_photo(image, mask_sizes=(target.shape for target in targets.values())), targets)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their stem. Raises ValueError if two share one or if there are none."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{folder} has both {files[path.stem].name} and {path.name}: their names must differ")
        files[path.stem] = path
    if not files:
        raise ValueError(f"there are no pictures in {folder}")
    return files
