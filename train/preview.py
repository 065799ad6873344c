"""`python -m train inspect`: samples as the network gets them, as a picture, and how fast they are made."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skipclick.atomic_io import atomic_write
from skipclick.drawing import draw_overlay
from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.datasets.sample import read_photo
from skipclick.prompts import Click
from train.augment import augment, labels_in
from train.dataset import ObjectDataset
from train.sampler import ObjectSample, Points, sample_object, sample_points
from train.sources import Photo

TILE = 320  # side of a sample in the sheet, pixels
CAPTION_HEIGHT = 18
COLUMNS = 6
GAP = 6


def save_contact_sheet(dataset: ObjectDataset, count: int, path: Path) -> set[LeftOut]:
    """Write the first `count` samples of a data set as one picture: photo, outline of the target, clicks.

    Returns what was left out of their photos, and unusable photos.
    """
    left_out: set[LeftOut] = set()
    sheet = contact_sheet(list(_tiles(dataset, count, left_out)))
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    return left_out


def contact_sheet(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of equal size, uint8 RGB (h, w, 3), in rows on a white background."""
    height, width = (side + GAP for side in tiles[0].shape[:2])
    num_columns = min(COLUMNS, len(tiles))
    num_rows = -(-len(tiles) // num_columns)
    sheet = np.full((num_rows * height + GAP, num_columns * width + GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, num_columns)
        top, left = row * height + GAP, column * width + GAP
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _tiles(dataset: ObjectDataset, count: int, left_out: set[LeftOut]) -> Iterator[NDArray[np.uint8]]:
    """A tile for each target: a photo with several targets has several."""
    for position in range(count):
        view, samples = dataset.draw(position)
        left_out.update(view.left_out)
        for chosen, points in samples:
            yield draw_tile(view.name, view.image, chosen, points)


def draw_tile(name: str, image: NDArray[np.uint8], sample: ObjectSample, points: Points) -> NDArray[np.uint8]:
    """A sample, uint8 RGB (H, W, 3), resized to TILE pixels with its clicks on it; ignored pixels are pale."""
    scale = TILE / image.shape[0]
    pale = np.where((sample.target == -1)[:, :, None], image // 2 + 128, image)
    photo = np.asarray(cv2.resize(pale, (TILE, TILE), interpolation=cv2.INTER_AREA), np.uint8)
    target = cv2.resize((sample.target == 1).astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST) > 0
    clicks = [
        Click(float(column) * scale, float(row) * scale, positive)
        for slots, positive in ((points.negatives, False), (points.positives, True))
        for row, column in slots
        if row >= 0
    ]
    num_positive = sum(click.positive for click in clicks)
    notes = {0: ", background", 1: ""}.get(len(sample.parts), f", {len(sample.parts)} merged")
    tile = Image.new("RGB", (TILE, TILE + CAPTION_HEIGHT), "white")
    tile.paste(Image.fromarray(draw_overlay(photo, target, clicks, opacity=0.0)), (0, CAPTION_HEIGHT))
    caption = f"{name[-36:]}  +{num_positive} -{len(clicks) - num_positive}{notes}"
    ImageDraw.Draw(tile).text((2, 1), caption, fill="black", font=ImageFont.load_default(12))
    return np.asarray(tile)


def describe_speed(dataset: ObjectDataset, count: int) -> str:
    """Makes `count` samples in this process, once without and once with a profiler: samples per second, time by step.

    Measured in CPU time, which includes neither other programs nor waiting for the disk.
    """
    _make(dataset, min(count, 20))  # the first ones load libraries and files
    started = time.process_time()
    _make(dataset, count)
    each = (time.process_time() - started) / count
    profile = cProfile.Profile(time.process_time)
    profile.runcall(_make, dataset, count)
    spent = _seconds(profile)
    photo, load, view = spent[read_photo], spent[Photo.load], spent[augment]
    shares = {
        "photo: read, decode": photo,
        "masks: read, decode": load - photo,
        "view of the photo": view - spent[labels_in],
        "view of the masks": spent[labels_in],
        "object": spent[sample_object],
        "clicks": spent[sample_points],
        "rest": spent[_make] - load - view - spent[sample_object] - spent[sample_points],
    }
    return "\n".join(
        [
            f"{1 / each:.0f} samples per second and core, {1000 * each:.1f} ms each:",
            *(
                f"  {name:<20}{share / spent[_make]:>6.0%}{1000 * each * share / spent[_make]:>8.2f} ms"
                for name, share in shares.items()
            ),
        ]
    )


def _make(dataset: ObjectDataset, count: int) -> None:
    for position in range(count):
        dataset[position]


def _seconds(profile: cProfile.Profile) -> dict[Callable[..., Any], float]:
    """Seconds in each measured function, including what it calls."""
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found: dict[Callable[..., Any], float] = {}
    for function in (_make, read_photo, Photo.load, augment, labels_in, sample_object, sample_points):
        assert isinstance(function, FunctionType)
        code = function.__code__
        row = stats.get((code.co_filename, code.co_firstlineno, code.co_name))
        found[function] = row[3] if row else 0.0
    return found
