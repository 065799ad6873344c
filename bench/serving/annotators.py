"""A simulated team of annotators, for tests of the backend: what photos there are, who clicks where and when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.images.decode import decode_image
from skipclick import Click

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_OBJECT_CLICKS = 12
_UNDO, _REPEAT, _SHARED = 0.1, 0.05, 0.3  # probabilities


@dataclass(frozen=True)
class Request:
    """One click: the photo's number and all clicks of the object so far."""

    image: int
    clicks: tuple[Click, ...]


def session(seed: int, sizes: Sequence[tuple[int, int]]) -> Iterator[Request]:
    """What one annotator asks for, without end: photos in an order of their own, a few objects on each.

    Objects grow click by click. Now and then clicks are undone, which the backend only sees at the next one, or a
    request is sent twice. Some objects are the same for all annotators, so that their requests coincide.

    sizes: (H, W) of the photos in pixels.
    """
    rng = random.Random(seed)
    while True:
        for image in rng.sample(range(len(sizes)), len(sizes)):
            for number in range(rng.randint(1, 3)):
                shared = rng.random() < _SHARED
                points = _points(random.Random(f"{image}/{number}") if shared else rng, sizes[image])
                yield from _object(rng, image, points)


def _points(rng: random.Random, size: tuple[int, int]) -> list[Click]:
    """Clicks of an object, the first of which is positive; most objects need few."""
    count = min(MAX_OBJECT_CLICKS, 1 + int(rng.expovariate(0.25)))
    places = [(rng.randrange(size[1]), rng.randrange(size[0])) for _ in range(count)]
    return [Click(x, y, positive=place == 0 or rng.random() < 0.6) for place, (x, y) in enumerate(places)]


def _object(rng: random.Random, image: int, points: Sequence[Click]) -> Iterator[Request]:
    clicks: list[Click] = []
    for point in points:
        if len(clicks) > 1 and rng.random() < _UNDO:
            del clicks[-rng.randint(1, len(clicks) - 1) :]
        clicks.append(point)
        yield Request(image, tuple(clicks))
        if rng.random() < _REPEAT:
            yield Request(image, tuple(clicks))


def drawn_photo(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture with something to segment, uint8 RGB (H, W, 3): coloured ellipses on a cloudy ground, with noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    clouds = rng.integers(60, 200, (6, 8, 3), np.uint8)
    picture = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(4, 9)):
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = int(rng.integers(width // 20, width // 4)), int(rng.integers(height // 20, height // 4))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.ellipse(picture, centre, axes, float(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
    noise = rng.normal(0, 5, (height, width, 1))
    noisy: NDArray[np.uint8] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return noisy


def photos(folder: Path | None, count: int, size: tuple[int, int] | None = None) -> list[NDArray[np.uint8]]:
    """`count` photos, uint8 RGB (H, W, 3): the first of a folder by name, or drawn ones; brought to `size` if given.

    Raises `ValueError` if the folder has fewer.
    """
    if folder is None:
        sizes = [size or (240 + 16 * (seed % 5), 320 + 16 * (seed % 7)) for seed in range(count)]
        return [drawn_photo(seed, each) for seed, each in enumerate(sizes)]
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:count]
    if len(paths) < count:
        raise ValueError(f"{folder} holds {len(paths)} images ({', '.join(SUFFIXES)}), {count} are needed")
    found = [_decoded(path) for path in paths]
    if size is None:
        return found
    return [cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8) for photo in found]


def _decoded(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return decode_image(file, 178_000_000).pixels
