"""SBD and PascalVOC: a text file names the photos of the validation set, one a line."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.left_out import LeftOut, Listing, UnusableError
from skipclick.evaluation.datasets.sample import (
    NO_SUCH_FILE,
    Content,
    Photo,
    instance_targets,
    read_colours,
    read_photo,
)

VOC_IGNORED_GREY = 220
LISTED_TWICE = "the list of photos names the photo more than once"


def list_sbd(folder: Path) -> Listing[Photo]:
    """`val.txt`, `img/NAME.jpg`, `inst/NAME.mat`. Raises ValueError if scipy is not installed."""
    try:
        import scipy.io  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("its .mat files need scipy: pip install 'skipclick[eval]'") from None
    names, left_out = _names(folder / "val.txt", folder / "img", folder / "inst")
    photos = [
        Photo(name, partial(_read_sbd, folder / f"img/{name}.jpg", folder / f"inst/{name}.mat")) for name in names
    ]
    return Listing(photos, left_out)


def list_pascal_voc(folder: Path) -> Listing[Photo]:
    """`ImageSets/Segmentation/val.txt`, `JPEGImages/NAME.jpg`, `SegmentationObject/NAME.png`."""
    images, masks = folder / "JPEGImages", folder / "SegmentationObject"
    names, left_out = _names(folder / "ImageSets/Segmentation/val.txt", images, masks)
    photos = [Photo(name, partial(_read_voc, images / f"{name}.jpg", masks / f"{name}.png")) for name in names]
    return Listing(photos, left_out)


def _names(list_file: Path, *folders: Path) -> tuple[list[str], list[LeftOut]]:
    """The first word of each line, and what is left out of the list."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    if not list_file.is_file():
        raise ValueError(f"there is no file {list_file}")
    words = [line.split()[0] for line in list_file.read_text("utf-8-sig").splitlines() if line.strip()]
    repeated = [LeftOut(LISTED_TWICE, name) for name, count in Counter(words).items() for _ in range(count - 1)]
    return list(dict.fromkeys(words)), repeated


def _read_sbd(image: Path, mask: Path) -> Content:
    return Content(read_photo(image), instance_targets(_read_mat(mask)))


def _read_mat(path: Path) -> NDArray[np.integer]:
    """The instance map, (H, W): the first field of the struct `GTinst`."""
    from scipy.io import loadmat

    if not path.is_file():
        raise UnusableError(f"{path}: {NO_SUCH_FILE}", NO_SUCH_FILE)
    try:
        instances: NDArray[np.integer] = loadmat(str(path))["GTinst"][0, 0][0]
    except Exception as error:  # scipy's reader raises nearly everything on damaged files
        reason = "cannot be read as a .mat file with a struct GTinst"
        raise UnusableError(f"{path}: {reason} ({error})", reason) from None
    return instances


def _read_voc(image: Path, mask: Path) -> Content:
    """Objects by the grey value of their palette colour, as the published figures tell them apart.

    So instances 1 and 16, or 3 and 18, of one photo are one object: the 3,417 objects that are published.
    """
    grey = np.asarray(cv2.cvtColor(read_colours(mask), cv2.COLOR_RGB2GRAY), np.uint8)
    return Content(read_photo(image, mask_sizes=[grey.shape]), instance_targets(grey, VOC_IGNORED_GREY))
