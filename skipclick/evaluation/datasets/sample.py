"""One photo of a data set: how its pictures are read, and what its masks say about each object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skipclick.evaluation.datasets.left_out import LeftOut, UnusableError

ORIENTATION = 0x0112  # EXIF's
NO_SUCH_FILE = "there is no such file"
OTHER_SIZE = "the mask does not have the size of the photo"
NO_OBJECT = "the photo has no object"
NO_PIXEL = "the mask is empty"

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
    left_out: tuple[LeftOut, ...] = ()
    """Of the photo's annotations, those that are no objects."""


@dataclass(frozen=True)
class Content:
    """What the files of one photo hold."""

    image: NDArray[np.uint8]
    """RGB (H, W, 3)."""
    targets: Targets = field(repr=False)
    left_out: tuple[LeftOut, ...] = ()
    """Annotations that cannot be used."""


@dataclass(frozen=True)
class Photo:
    """A photo that has not been read yet: small enough to be sent to a worker process."""

    name: str
    """Key within its data set, the same whenever the set is opened."""
    read: Callable[[], Content]
    """Raises ValueError that names the broken file."""
    category: str | None = None

    def load(self) -> Sample:
        """Raises ValueError, naming the file, if the photo or its mask is missing or broken or if they do not fit."""
        content = self.read()
        shape = content.image.shape[:2]
        for target in content.targets.values():
            if target.shape != shape:
                raise UnusableError(
                    f"{self.name}: the mask has {_size(target.shape)} pixels, the photo {_size(shape)}", OTHER_SIZE
                )
        objects = {object_id: target for object_id, target in content.targets.items() if (target == 1).any()}
        left_out = list(content.left_out)
        left_out += [LeftOut(NO_PIXEL, f"{self.name}, object {one}") for one in content.targets if one not in objects]
        if not objects:
            left_out.append(LeftOut(NO_OBJECT, self.name))
        return Sample(self.name, content.image, objects, self.category, tuple(left_out))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]}"


def read_photo(path: Path, *, turned: bool = True, mask_sizes: Iterable[tuple[int, ...]] = ()) -> NDArray[np.uint8]:
    """A picture's colours, uint8 RGB (H, W, 3); `turned` as its EXIF orientation says.

    It stays as stored where the first of `mask_sizes`, (H, W), that fits it either way says so: some tools annotate
    without turning. Transparency is dropped, and of 16-bit values the upper byte counts. Equal to OpenCV's pixels, but
    a file that ends too early is an error and not a grey area. Raises ValueError.
    """
    with _opened(path) as picture:
        if turned and not _lies_as_stored(picture, mask_sizes):
            ImageOps.exif_transpose(picture, in_place=True)
        upright = picture
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            reason = "the photo has neither 8 nor 16 bits per value"
            raise UnusableError(f"{path}: {reason}", reason)
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))  # each copy costs as decoding


def _lies_as_stored(picture: Image.Image, mask_sizes: Iterable[tuple[int, ...]]) -> bool:
    """Whether masks of these sizes were drawn on the picture without its EXIF orientation."""
    if picture.getexif().get(ORIENTATION) not in (5, 6, 7, 8):  # only a quarter turn shows in the size
        return False
    stored, shown = (picture.height, picture.width), (picture.width, picture.height)
    return next((size for size in mask_sizes if size in (stored, shown)), shown) != shown


def read_ids(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask's values, uint8 or uint16 (H, W); of a palette picture the indices. Raises ValueError."""
    with _opened(path) as picture:
        ids = np.array(picture)
    if ids.ndim != 2:
        reason = "a mask of instance ids has one channel"
        raise UnusableError(f"{path}: {reason}, not {ids.shape[2]}", reason)
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    if ids.dtype not in (np.uint8, np.uint16):
        reason = "a mask of instance ids has 8 or 16 bits"
        raise UnusableError(f"{path}: {reason}", reason)
    return ids


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A decoded picture; whatever Pillow says about a damaged one becomes a ValueError."""
    try:
        with Image.open(path) as picture:
            picture.load()
            yield picture
    except FileNotFoundError:
        raise UnusableError(f"{path}: {NO_SUCH_FILE}", NO_SUCH_FILE) from None
    except UnusableError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        reason = "the file cannot be read as a picture"
        raise UnusableError(f"{path}: cannot be read as a picture ({error})", reason) from None


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
