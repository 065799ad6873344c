"""Photos with instance-id masks: what training reads.

A folder holds `images/NAME.jpg` and `masks/NAME.png`, 8 bit: 0 background, one id per object, 128 ignored (`folder` in
`bench/datasets`; other kinds of pictures will do). An optional `index.csv` with columns `name` and `kind` lets a run
leave out kinds of photos.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bench.datasets.paired import files_by_stem
from bench.datasets.sample import read_ids, read_photo
from train.augment import AugmentConfig, augment
from train.sampler import IGNORED_ID, SamplerConfig, sample_object, sample_points

HOLD_OUT_ONE_IN = 20

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class Photo:
    """Where one photo and its mask lie."""

    name: str
    image: Path
    mask: Path

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The photo, uint8 RGB (H, W, 3), turned as its EXIF says, and its ids, uint8 (H, W)."""
        image, ids = read_photo(self.image), read_ids(self.mask)
        if ids.dtype != np.uint8 or ids.shape != image.shape[:2]:
            raise ValueError(
                f"{self.name}: a mask of shape {ids.shape}, {ids.dtype}, does not fit a photo of {image.shape[:2]}; "
                "it needs one 8-bit channel of equal size"
            )
        return image, ids.astype(np.uint8, copy=False)


def is_held_out(name: str) -> bool:
    """The fixed rule that keeps one photo in twenty for validation: by checksum of its name, so it never moves."""
    return zlib.crc32(name.encode()) % HOLD_OUT_ONE_IN == 0


def list_photos(folder: Path, split: Split = "train", exclude_kinds: Collection[str] = ()) -> list[Photo]:
    """The photos of a folder that have a mask, sorted by name. `ValueError` if there are none."""
    images, masks = files_by_stem(folder / "images"), files_by_stem(folder / "masks")
    kinds = _kinds(folder / "index.csv")
    if unknown := set(exclude_kinds) - set(kinds.values()):
        raise ValueError(
            f"{folder}: no photos of kind {', '.join(sorted(unknown))}; known: {', '.join(sorted(set(kinds.values())))}"
        )
    photos = [
        Photo(name, images[name], mask)
        for name, mask in masks.items()
        if name in images
        and kinds.get(name) not in exclude_kinds
        and (split == "all" or is_held_out(name) == (split == "held_out"))
    ]
    if not photos:
        raise ValueError(f"{folder}: found no images/NAME.jpg with masks/NAME.png in it")
    return photos


def _kinds(index: Path) -> dict[str, str]:
    if not index.exists():
        return {}
    with index.open(newline="") as file:
        return {row["name"]: row["kind"] for row in csv.DictReader(file)}


@dataclass(frozen=True)
class Batch:
    """B photos with K objects each; all tensors on one device."""

    image: Tensor  # (B, 3, H, W) uint8
    target: Tensor  # (B * K, H, W) int8: 1 object, 0 background, -1 ignored
    positives: Tensor  # (B * K, NUM_SLOTS, 2) float32 (row, column), padded with -1
    negatives: Tensor  # the same

    def to(self, device: torch.device) -> Batch:
        moved = [t.to(device, non_blocking=True) for t in (self.image, self.target, self.positives, self.negatives)]
        return Batch(*moved)


class ObjectDataset(Dataset[Batch]):
    """An endless sequence of training samples; sample `position` depends on (seed, position) and nothing else.

    So a run is the same for any number of workers, and continues where it stopped.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        num_objects: int,
        augment_config: AugmentConfig,
        sampler_config: SamplerConfig,
        seed: int,
    ) -> None:
        self.photos = photos
        self.num_objects = num_objects
        self.augment_config = augment_config
        self.sampler_config = sampler_config
        self.seed = seed

    def __getitem__(self, position: int) -> Batch:
        rng = np.random.default_rng((self.seed, position))
        image, ids = self.photos[int(rng.integers(len(self.photos)))].read()
        image, ids = self._augmented(image, ids, rng)
        targets, positives, negatives = [], [], []
        for _ in range(self.num_objects):
            chosen = sample_object(ids, self.sampler_config, rng)
            points = sample_points(chosen, self.sampler_config, rng)
            targets.append(chosen.target)
            positives.append(points.positives)
            negatives.append(points.negatives)
        return Batch(
            torch.from_numpy(image).permute(2, 0, 1),
            torch.from_numpy(np.stack(targets)),
            torch.from_numpy(np.stack(positives)),
            torch.from_numpy(np.stack(negatives)),
        )

    def _augmented(
        self, image: NDArray[np.uint8], ids: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draws again until an object is left in the crop, save for a small share of background crops."""
        for _ in range(self.sampler_config.max_draws):
            new_image, new_ids = augment(image, ids, self.augment_config, rng)
            has_object = bool(((new_ids != 0) & (new_ids != IGNORED_ID)).any())
            if has_object or rng.random() < self.sampler_config.keep_background_prob:
                break
        return new_image, new_ids


def collate(samples: Sequence[Batch]) -> Batch:
    """Joins single samples into a batch; objects of one photo stay adjacent."""
    return Batch(
        torch.stack([s.image for s in samples]),
        torch.cat([s.target for s in samples]),
        torch.cat([s.positives for s in samples]),
        torch.cat([s.negatives for s in samples]),
    )
