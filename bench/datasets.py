"""Evaluation sets, read from their folders as published.

| layout   | photos     | masks          | a mask holds                                                             |
|----------|------------|----------------|--------------------------------------------------------------------------|
| GrabCut  | `data_GT/` | `boundary_GT/` | first channel: above 128 the object, 128 ignored                         |
| Berkeley | `images/`  | `masks/`       | the same; one photo and one mask for each object                         |
| DAVIS    | `img/`     | `gt/`          | the object where any colour is above 0; nothing ignored                  |
| folder   | `images/`  | `masks/`       | one channel: 0 background, 128 ignored, any other value one object each  |

A photo and its mask have the same stem. Photos are turned as their EXIF orientation says, masks never are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

IGNORED_ID = 128

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

Targets = dict[int, NDArray[np.int8]]


@dataclass(frozen=True)
class Sample:
    """One photo and the objects to be segmented in it."""

    name: str
    image: NDArray[np.uint8]
    """RGB (H, W, 3)."""
    targets: Targets
    """By object id: int8 (H, W), 1 object, 0 background, -1 ignored."""


@dataclass(frozen=True)
class Layout:
    """How a data set's folder is arranged, and what its masks mean."""

    image_folder: str
    mask_folder: str
    read_targets: Callable[[NDArray[np.uint8]], Targets]
    """From a mask, uint8 (H, W) or BGR (H, W, 3)."""


def _trimap(mask: NDArray[np.uint8]) -> Targets:
    first_channel = mask if mask.ndim == 2 else mask[:, :, 0]
    target = (first_channel > IGNORED_ID).astype(np.int8)
    target[first_channel == IGNORED_ID] = -1
    return {1: target}


def _any_channel(mask: NDArray[np.uint8]) -> Targets:
    value = mask if mask.ndim == 2 else mask[:, :, :3].max(axis=2)
    return {1: (value > 0).astype(np.int8)}


def _instance_ids(mask: NDArray[np.uint8]) -> Targets:
    if mask.ndim != 2:
        raise ValueError(f"a mask of instance ids has one channel, not {mask.shape[2]}")
    ids = [int(value) for value in np.unique(mask) if value not in (0, IGNORED_ID)]
    background = np.where(mask == IGNORED_ID, -1, 0).astype(np.int8)
    return {i: np.where(mask == i, 1, background).astype(np.int8) for i in ids}


LAYOUTS = {
    "GrabCut": Layout("data_GT", "boundary_GT", _trimap),
    "Berkeley": Layout("images", "masks", _trimap),
    "DAVIS": Layout("img", "gt", _any_channel),
    "folder": Layout("images", "masks", _instance_ids),
}


@dataclass(frozen=True)
class EvaluationSet:
    """The photos of one data set, read from disk as they are asked for."""

    name: str
    """Key of `LAYOUTS`."""
    paths: tuple[tuple[Path, Path], ...]
    """(photo, mask) in order of the photos' names."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        image_path, mask_path = self.paths[index]
        image = _read(image_path, cv2.IMREAD_COLOR)[:, :, ::-1]
        mask = _read(mask_path, cv2.IMREAD_UNCHANGED)
        if image.shape[:2] != mask.shape[:2]:
            raise ValueError(f"{mask_path}: the mask's size {mask.shape[:2]} is not the photo's {image.shape[:2]}")
        try:
            targets = LAYOUTS[self.name].read_targets(mask)
        except ValueError as error:
            raise ValueError(f"{mask_path}: {error}") from None
        targets = {object_id: target for object_id, target in targets.items() if (target == 1).any()}
        return Sample(image_path.stem, np.ascontiguousarray(image), targets)


def open_dataset(
    name: str, folder: Path, limit: int | None = None, keep: Callable[[str], bool] | None = None
) -> EvaluationSet:
    """The data set of a layout ("GrabCut", "Berkeley", "DAVIS", "folder") that lies in a folder.

    Only the first `limit` photos by name, of those whose name (without suffix) `keep` admits, such as the ones
    that training holds out. Raises ValueError if the folder is not of this layout or a mask is missing.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    for part in (layout.image_folder, layout.mask_folder):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part!r}: a {name} data set has one")
    masks = {path.stem: path for path in _image_files(folder / layout.mask_folder)}
    photos = [path for path in _image_files(folder / layout.image_folder) if keep is None or keep(path.stem)]
    if without_mask := [path.name for path in photos if path.stem not in masks]:
        raise ValueError(f"{folder}: {len(without_mask)} photos have no mask, the first is {without_mask[0]}")
    if not photos:
        raise ValueError(f"{folder / layout.image_folder}: no photos here")
    return EvaluationSet(name, tuple((path, masks[path.stem]) for path in photos[:limit]))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _read(path: Path, flags: int) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path), flags)
    if pixels is None or pixels.dtype != np.uint8:
        raise ValueError(f"{path}: cannot be read as an 8-bit picture")
    return np.asarray(pixels)
