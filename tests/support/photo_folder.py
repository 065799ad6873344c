"""A folder of drawn photos with masks, and the samples of it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from train.augment import AugmentConfig
from train.dataset import ObjectDataset
from train.sampler import SamplerConfig
from train.sources import open_sources

NUM_PHOTOS = 40


def write_photos(folder: Path) -> None:
    """Drawn photos: one or two bright discs on a dark, noisy ground."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    lines = ["name,kind"]
    for i in range(NUM_PHOTOS):
        ids = np.zeros((80, 110), np.uint8)
        for value in range(1, 2 + i % 2):
            centre = int(rng.integers(25, 85)), int(rng.integers(20, 60))
            cv2.circle(ids, centre, int(rng.integers(10, 20)), (value,), cv2.FILLED)
        image = rng.integers(0, 60, (80, 110, 3), dtype=np.uint8)
        image[ids > 0] += np.uint8(150)
        cv2.imwrite(str(folder / "images" / f"photo{i:02}.jpg"), image)
        cv2.imwrite(str(folder / "masks" / f"photo{i:02}.png"), ids)
        lines.append(f"photo{i:02},{'even' if i % 2 == 0 else 'odd'}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")


def write_coco(folder: Path, photo_folder: Path, bad: Collection[int] = ()) -> None:
    """The photos of `write_photos` as a COCO file beside links to them. Each has an annotation without a mask too, and
    of the photos with these numbers no annotation can be used."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i, mask in enumerate(sorted((photo_folder / "masks").iterdir())):
        name = f"{mask.stem}.jpg"
        (folder / "images" / name).symlink_to(photo_folder / "images" / name)
        pixels = np.asarray(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)).T.reshape(-1) > 0
        ends = [*(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1).tolist(), pixels.size]
        counts = [-1] if i in bad else np.diff([0, *ends]).tolist()
        images.append({"id": i, "file_name": name, "height": 80, "width": 110})
        annotations += [
            {"image_id": i, "segmentation": {"size": [80, 110], "counts": counts}},
            {"image_id": i, "bbox": [1, 2, 3, 4]},
        ]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def dataset(folder: Path, view: str = "window") -> ObjectDataset:
    return ObjectDataset(
        open_sources([str(folder)]),
        num_objects=2,
        augment_config=AugmentConfig(crop=64, view=view),  # type: ignore[arg-type]
        sampler_config=SamplerConfig(min_object_area=20),
        seed=5,
    )
