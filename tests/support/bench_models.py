"""Models and data sets for tests of the benchmark: a disc for each click, and a folder of two objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipclick import Click


class DiscModel:
    """Draws a disc at each click and remembers what it was asked."""

    version = "discs"

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self.num_encoded = 0
        self.previous_sums: list[float | None] = []

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        self.num_encoded += 1
        return image.shape[0], image.shape[1]

    def click(
        self, features: tuple[int, int], clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        self.previous_sums.append(None if previous is None else float(previous.sum()))
        canvas = np.zeros(features, np.float32)
        for click in clicks:
            cv2.circle(canvas, (int(click.x), int(click.y)), self.radius, (float(click.positive),), cv2.FILLED)
        return canvas


class BatchDiscModel(DiscModel):
    """The same for several objects at once; remembers how many came together."""

    def __init__(self, radius: int) -> None:
        super().__init__(radius)
        self.batches: list[int] = []

    def click_batch(
        self,
        features: Sequence[tuple[int, int]],
        clicks: Sequence[Sequence[Click]],
        previous: Sequence[NDArray[np.float32] | None],
    ) -> list[NDArray[np.float32]]:
        self.batches.append(len(features))
        return list(map(self.click, features, clicks, previous))


def small_discs() -> DiscModel:
    """For `--model bench_models:small_discs`."""
    return DiscModel(radius=12)


class SlowDiscModel(DiscModel):
    """Takes its time, so that it can be interrupted."""

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        time.sleep(0.5)
        return super().encode(image)


def slow_discs() -> DiscModel:
    """For `--model bench_models:slow_discs`."""
    return SlowDiscModel(radius=12)


def scene() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A red ellipse on blue noise, and its target with a rim that does not count."""
    rng = np.random.default_rng(0)
    mask = np.zeros((90, 120), np.uint8)
    cv2.ellipse(mask, (60, 45), (34, 24), 20, 0, 360, (1,), cv2.FILLED)
    image = rng.integers(0, 60, (90, 120, 3), np.uint8)
    image[:, :, 2] += 120
    image[mask == 1] = image[mask == 1][:, ::-1]
    rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return image, np.where(rim == 1, -1, mask).astype(np.int8)


def write_davis(folder: Path, num_photos: int = 2) -> Path:
    """A data set in DAVIS' layout: the same scene, moved sideways from photo to photo."""
    image, target = scene()
    for name in ("img", "gt"):
        (folder / name).mkdir(parents=True)
    for index in range(num_photos):
        moved = np.roll(image, 5 * index, axis=1), np.roll(target, 5 * index, axis=1)
        Image.fromarray(moved[0]).save(folder / "img" / f"{index}.png")
        Image.fromarray(np.where(moved[1] == 1, 255, 0).astype(np.uint8)).save(folder / "gt" / f"{index}.png")
    return folder


class KeepsTheMask(DiscModel):
    """Answers with the mask that it was given."""

    def click(
        self, features: tuple[int, int], clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        return np.zeros(features, np.float32) if previous is None else previous


def keeps_the_mask() -> KeepsTheMask:
    """For `--model bench_models:keeps_the_mask`."""
    return KeepsTheMask(radius=1)


def write_davis585(folder: Path) -> Path:
    """A data set in DAVIS-585's layout: rectangles of which "sp" has the upper half and "stm" three quarters."""
    image, _ = scene()
    for sequence, frame, objects in (("bear", "00009", (40, 60)), ("cows", "00000", (40,))):
        (folder / sequence).mkdir(parents=True)
        Image.fromarray(image).save(folder / sequence / f"{frame}.jpg")
        for number, height in enumerate(objects, start=1):
            for prefix, rows in (("", height), ("init_sp_", height // 2), ("init_stm_", height * 3 // 4)):
                mask = np.zeros((*image.shape[:2], 3), np.uint8)
                mask[10 : 10 + rows, 20:80] = 255
                Image.fromarray(mask).save(folder / sequence / f"{prefix}object{number}_{frame}.png")
    return folder
