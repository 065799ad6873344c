"""A folder of drawn photos with masks, and the samples of it."""

from __future__ import annotations

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


def dataset(folder: Path, view: str = "window") -> ObjectDataset:
    return ObjectDataset(
        open_sources([str(folder)]),
        num_objects=2,
        augment_config=AugmentConfig(crop=64, view=view),  # type: ignore[arg-type]
        sampler_config=SamplerConfig(min_object_area=20),
        seed=5,
    )
