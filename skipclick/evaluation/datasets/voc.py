"""SBD and PascalVOC: a text file names the photos of the validation set, one a line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.sample import Photo, Targets, instance_targets, read_colours, read_photo

VOC_IGNORED_GREY = 220


def list_sbd(folder: Path) -> list[Photo]:
    """`val.txt`, `img/NAME.jpg`, `inst/NAME.mat`. Raises ValueError if scipy is not installed."""
    try:
        import scipy.io  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("its .mat files need scipy: pip install 'skipclick[eval]'") from None
    names = _names(folder / "val.txt", folder / "img", folder / "inst")
    return [Photo(name, partial(_read_sbd, folder / f"img/{name}.jpg", folder / f"inst/{name}.mat")) for name in names]


def list_pascal_voc(folder: Path) -> list[Photo]:
    """`ImageSets/Segmentation/val.txt`, `JPEGImages/NAME.jpg`, `SegmentationObject/NAME.png`."""
    images, masks = folder / "JPEGImages", folder / "SegmentationObject"
    names = _names(folder / "ImageSets/Segmentation/val.txt", images, masks)
    return [Photo(name, partial(_read_voc, images / f"{name}.jpg", masks / f"{name}.png")) for name in names]


def _names(list_file: Path, *folders: Path) -> list[str]:
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    if not list_file.is_file():
        raise ValueError(f"there is no file {list_file}")
    return list_file.read_text().split()


def _read_sbd(image: Path, mask: Path) -> tuple[NDArray[np.uint8], Targets]:
    return read_photo(image), instance_targets(_read_mat(mask))


def _read_mat(path: Path) -> NDArray[np.integer]:
    """The instance map, (H, W): the first field of the struct `GTinst`."""
    from scipy.io import loadmat

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        instances: NDArray[np.integer] = loadmat(str(path))["GTinst"][0, 0][0]
    except Exception as error:  # scipy's reader raises nearly everything on damaged files
        raise ValueError(f"{path}: cannot be read as a .mat file with a struct GTinst ({error})") from None
    return instances


def _read_voc(image: Path, mask: Path) -> tuple[NDArray[np.uint8], Targets]:
    """Objects by the grey value of their palette colour, as the published figures tell them apart.

    So instances 1 and 16, or 3 and 18, of one photo are one object: the 3,417 objects that are published.
    """
    grey = np.asarray(cv2.cvtColor(read_colours(mask), cv2.COLOR_RGB2GRAY), np.uint8)
    return read_photo(image), instance_targets(grey, VOC_IGNORED_GREY)
