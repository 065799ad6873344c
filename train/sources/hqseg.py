"""The training part of HQSeg-44k: 44,320 photos with one finely outlined object each.

The folders are those of its release with HQ-SAM (SysCV/sam-hq, `train/README.md` and `train/train.py`); a copy may lack
some of them. The validation part is `HQSeg-44k` in `skipclick/evaluation/datasets`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.image_mask_folders import any_colour
from skipclick.evaluation.datasets.left_out import Listing
from skipclick.evaluation.datasets.sample import read_photo
from train.scene import Scene
from train.sources.annotated import scene_of_targets
from train.sources.photo import Photo, Split, belongs_to

# By part: folder of NAME.jpg, folder of NAME.png.
HQSEG_TRAINING_PARTS = {
    "DIS5K-TR": ("DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt"),
    "ThinObject5K-TR": (
        "thin_object_detection/ThinObject5K/images_train",
        "thin_object_detection/ThinObject5K/masks_train",
    ),
    **{
        name: (f"cascade_psp/{name}", f"cascade_psp/{name}")
        for name in ("fss_all", "DUTS-TR", "DUTS-TE", "ecssd", "MSRA_10K")
    },
}


def list_hqseg(folder: Path, split: Split) -> Listing[Photo]:
    """The photos of the parts that are there; a name begins with its part, which is its kind too."""
    photos = [
        Photo(name, partial(_read, image, folder / masks / f"{image.stem}.png"), part)
        for part, (images, masks) in HQSEG_TRAINING_PARTS.items()
        for image in sorted((folder / images).glob("*.jpg"))
        if belongs_to(split, name := f"{part}/{image.stem}")
    ]
    return Listing(photos)


def _read(image: Path, mask: Path) -> tuple[NDArray[np.uint8], Scene]:
    photo = read_photo(image)
    return photo, scene_of_targets(any_colour(mask), photo.shape[:2])
