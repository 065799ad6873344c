"""Drawn COCO annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tests.support.drawn_pictures import HEIGHT, WIDTH, save

SQUARE = [2, 1, 5, 1, 5, 4, 2, 4]


SQUARE_PIXELS = (slice(1, 4), slice(2, 5))


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed form: lengths of runs of 0, 1, 0, ... down the columns."""
    pixels = mask.T.reshape(-1)
    ends = [*(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1).tolist(), pixels.size]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def write_set(root: Path, segmentations: dict[int, Any], crowds: tuple[int, ...] = (), name: str = "a.jpg") -> Path:
    """One photo with the objects by id, and one without any."""
    save(root / "images" / name)
    images = [{"id": 5, "file_name": name, "height": HEIGHT, "width": WIDTH}]
    images.append({"id": 6, "file_name": "empty.jpg", "height": HEIGHT, "width": WIDTH})
    annotations = [
        {"id": key, "image_id": 5, "category_id": 1, "segmentation": value, "iscrowd": int(key in crowds)}
        for key, value in segmentations.items()
    ]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return root
