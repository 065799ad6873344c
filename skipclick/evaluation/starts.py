"""What the simulated annotator begins with where it is not nothing: a box, or a mask to be corrected."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import bitmask
from skipclick.metrics import mask_iou
from skipclick.prompts import Click

WORST, BEST = 0.60, 0.85
"""IoU with the object of a mask to be corrected."""

GIVEN = ("sp", "stm")
"""Masks that come with DAVIS-585: made of superpixels, and propagated from another frame by a video method."""

_TRIES = 200


def box_of(target: NDArray[np.int8]) -> tuple[NDArray[np.bool_], Click]:
    """The box around an object as a mask, bool (H, W), and the click in its middle that goes with it, as the backend
    answers a smart rectangle."""
    rows, columns = (np.flatnonzero((target == 1).any(axis=axis)) for axis in (1, 0))
    area = np.zeros(target.shape, np.bool_)
    area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return area, Click(int(columns[0] + columns[-1] + 1) // 2, int(rows[0] + rows[-1] + 1) // 2)


def noisy_mask(target: NDArray[np.int8], image: str, object_id: int) -> NDArray[np.bool_]:
    """The object, bool (H, W), with mistakes: swollen or shrunk, parts bitten off and added, to an IoU of 0.60 to 0.85.

    Which ones depends on the names of photo and object alone. An object of a few pixels may stay better than that.
    """
    random = np.random.default_rng((zlib.crc32(image.encode()), object_id))
    mask = target == 1
    wanted = random.uniform(WORST, BEST)
    scale = float(np.sqrt(max(1, int(mask.sum()))))
    for _ in range(_TRIES):
        worse = _with_a_mistake(mask, random, scale)
        quality = mask_iou(worse, target)
        if quality >= WORST:
            mask = worse
            if quality <= wanted:
                break
    return np.asarray(mask)


def read_start(folder: Path, image: str, object_id: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, bool (H, W), in FOLDER/IMAGE-ID.png, or of a photo's only object in FOLDER/IMAGE.png: white on
    black. Raises `ValueError` if there is none of this size."""
    for path in (folder / f"{image}-{object_id}.png", folder / f"{image}.png"):
        if path.is_file():
            return bitmask.read_file(path, size)
    raise ValueError(
        f"{folder} has no mask to start from for object {object_id} of {image}: name it {image}.png, or "
        f"{image}-{object_id}.png where the photo has several objects"
    )


def read_given(starts: Mapping[str, Path], kind: str, image: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, bool (H, W), of one of the kinds in `GIVEN`. Raises `ValueError` if there is none of this size."""
    if kind not in starts:
        raise ValueError(f"{image} comes with no mask {kind!r} to start from: DAVIS-585 alone has them")
    try:
        return bitmask.read_file(starts[kind], size)
    except OSError as error:
        raise ValueError(f"{starts[kind]}: the mask to start from cannot be read ({error.strerror})") from None


def _with_a_mistake(mask: NDArray[np.bool_], random: np.random.Generator, scale: float) -> NDArray[np.bool_]:
    kind = random.integers(4)
    pixels = mask.astype(np.uint8)
    if kind < 2:
        radius = max(1, round(random.uniform(0.01, 0.05) * scale))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        return np.asarray((cv2.dilate if kind else cv2.erode)(pixels, kernel) > 0)
    border = np.argwhere(mask & ~(cv2.erode(pixels, np.ones((3, 3), np.uint8)) > 0))
    if not len(border):
        return mask
    row, column = border[random.integers(len(border))]
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    disk = (y - row) ** 2 + (x - column) ** 2 <= max(1.0, random.uniform(0.1, 0.3) * scale) ** 2
    return np.asarray(mask | disk if kind == 2 else mask & ~disk)
