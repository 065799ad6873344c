"""One photo of a data set: how its pictures are read, and what its masks say about each object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipclick.image_file import ImageError, decode

Targets = dict[int, NDArray[np.int8]]
"""By object id: int8 (H, W), 1 object, 0 background, -1 ignored."""


@dataclass(frozen=True)
class Sample:
    """One photo and the objects to be segmented in it."""

    name: str
    image: NDArray[np.uint8]
    """RGB (H, W, 3)."""
    targets: Targets
    """Only objects with at least one pixel."""
    category: str | None = None
    """Name of the class that all objects of the photo have, where the data set is divided into classes."""


@dataclass(frozen=True)
class Photo:
    """A photo that has not been read yet: small enough to be sent to a worker process."""

    name: str
    """Key within its data set, the same whenever the set is opened."""
    read: Callable[[], tuple[NDArray[np.uint8], Targets]]
    """The pixels, uint8 RGB (H, W, 3), and the objects. Raises ValueError that names the broken file."""
    category: str | None = None

    def load(self) -> Sample:
        """Raises ValueError, naming the file, if the photo or its mask is missing or broken or if they do not fit."""
        image, targets = self.read()
        for target in targets.values():
            if target.shape != image.shape[:2]:
                raise ValueError(
                    f"{self.name}: the mask has {_size(target.shape)} pixels, the photo {_size(image.shape)}"
                )
        objects = {object_id: target for object_id, target in targets.items() if (target == 1).any()}
        return Sample(self.name, image, objects, self.category)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]}"


def read_photo(path: Path, *, turned: bool = True, complete: bool = True) -> NDArray[np.uint8]:
    """A photo as a browser shows it, uint8 RGB (H, W, 3); not `turned`, as it is stored.

    A file that ends too early is an error and not a grey area, unless `complete` is false: then the part that is there
    counts. Raises ValueError.
    """
    try:
        with path.open("rb") as file:
            return decode(file, turned=turned, complete=complete).pixels
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (ImageError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from None


def read_colours(path: Path) -> NDArray[np.uint8]:
    """The colours of a picture that is a mask, uint8 RGB (H, W, 3), as they are stored: not turned, without
    transparency; of 16-bit values the upper byte. Raises ValueError."""
    with _opened(path) as picture:
        if picture.mode.startswith("I;16"):
            return np.array(Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB"))
        if picture.mode in ("I", "F"):
            raise ValueError(f"{path}: the mask has neither 8 nor 16 bits per value")
        return np.array(picture.convert("RGB"))


def read_ids(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask's values, uint8 or uint16 (H, W); of a palette picture the indices. Raises ValueError."""
    with _opened(path) as picture:
        ids = np.array(picture)
    if ids.ndim != 2:
        raise ValueError(f"{path}: a mask of instance ids has one channel, not {ids.shape[2]}")
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    if ids.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: a mask of instance ids has 8 or 16 bits")
    return ids


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A decoded picture; whatever Pillow says about a damaged one becomes a ValueError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            yield picture
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from None


def instance_targets(ids: NDArray[np.integer], ignored: int | None = None) -> Targets:
    """Each id of a map, integer (H, W), as an object of its own: 0 is background, `ignored` does not count."""
    background = np.where(ids == ignored, -1, 0).astype(np.int8)
    return {
        int(value): np.where(ids == value, np.int8(1), background)
        for value in np.unique(ids)
        if value not in (0, ignored)
    }


def mask_targets(masks: Mapping[int, NDArray[np.bool_]], ignored: NDArray[np.bool_] | None = None) -> Targets:
    """Masks, bool (H, W), that may overlap; where one of them is ignored, only its own pixels count."""
    targets = {object_id: mask.astype(np.int8) for object_id, mask in masks.items()}
    if ignored is not None:
        for target in targets.values():
            target[ignored & (target == 0)] = -1
    return targets
