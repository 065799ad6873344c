"""DAVIS-585 (FocalClick, CVPR 2022): objects of DAVIS' frames, each with masks to be corrected.

In the folder of a sequence, `object1_00009.png` is an object on `00009.jpg`, and `init_sp_object1_00009.png` and
`init_stm_object1_00009.png` are the masks to start from.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from skipclick.evaluation.datasets.left_out import Listing
from skipclick.evaluation.datasets.sample import Content, Photo, read_colours, read_photo
from skipclick.evaluation.starts import GIVEN


def list_davis585(folder: Path) -> Listing[Photo]:
    """An entry for each object, named SEQUENCE/OBJECT_FRAME. Raises ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    masks = [mask for mask in sorted(folder.glob("*/*_*.png")) if not mask.name.startswith("init_")]
    if not masks:
        raise ValueError(f"there is no SEQUENCE/OBJECT_FRAME.png in {folder}")
    return Listing([Photo(f"{mask.parent.name}/{mask.stem}", partial(_read, mask)) for mask in masks])


def _read(mask: Path) -> Content:
    target = np.asarray(read_colours(mask)[:, :, 2] > 128, np.int8)
    image = read_photo(mask.with_name(f"{mask.stem.rpartition('_')[2]}.jpg"), mask_sizes=[target.shape])
    return Content(image, {1: target}, starts={kind: mask.with_name(f"init_{kind}_{mask.name}") for kind in GIVEN})
