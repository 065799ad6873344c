"""One photo of a data set: how its pictures are read, and what its masks say about each object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipclick.evaluation.datasets.left_out import LeftOut, UnusableError
from skipclick.image_file import ImageError, decode

NO_SUCH_FILE = "there is no such file"
UNREADABLE = "the file cannot be read as a picture"
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
    """Of the photo's annotations, those that are not objects."""
    starts: Mapping[str, Path] = field(default_factory=dict)
    """Files of masks to start from, by kind, where the data set has them; the photo then has one object."""


@dataclass(frozen=True)
class Content:
    """What the files of one photo hold."""

    image: NDArray[np.uint8]
    """RGB (H, W, 3)."""
    targets: Targets = field(repr=False)
    left_out: tuple[LeftOut, ...] = ()
    """Annotations that cannot be used."""
    starts: Mapping[str, Path] = field(default_factory=dict)
    """As in `Sample`."""


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
        return Sample(self.name, content.image, objects, self.category, tuple(left_out), content.starts)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]}"


def read_photo(
    path: Path, *, turned: bool = True, complete: bool = True, mask_sizes: Iterable[tuple[int, ...]] = ()
) -> NDArray[np.uint8]:
    """A photo as a browser shows it, uint8 RGB (H, W, 3), or without `turned` as it is stored.

    Some tools annotate photos as they are stored. Of `mask_sizes`, each (H, W), the first that fits the photo, as shown
    or as stored, decides which of the two is returned. A truncated file is an error and not a grey area, unless
    `complete` is false: then the part that is there counts. Raises ValueError.
    """
    pixels = _decoded(path, turned, complete)
    shown, other = pixels.shape[:2], pixels.shape[1::-1]
    fitting = next((size for size in mask_sizes if size in (shown, other)), shown)
    if turned and fitting != shown:
        stored = _decoded(path, turned=False, complete=complete)
        if stored.shape[:2] == fitting:
            return stored
    return pixels


def _decoded(path: Path, turned: bool, complete: bool) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            return decode(file, turned=turned, complete=complete).pixels
    except FileNotFoundError:
        raise UnusableError(f"{path}: {NO_SUCH_FILE}", NO_SUCH_FILE) from None
    except (ImageError, OSError) as error:
        raise UnusableError(f"{path}: cannot be read as a picture ({error})", UNREADABLE) from None


def read_colours(path: Path) -> NDArray[np.uint8]:
    """The colours of a picture that is a mask, uint8 RGB (H, W, 3), as they are stored: not turned, without
    transparency; of 16-bit values the upper byte. Raises ValueError."""
    with _opened(path) as picture:
        if picture.mode.startswith("I;16"):
            return np.array(Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB"))
        if picture.mode in ("I", "F"):
            reason = "the mask has neither 8 nor 16 bits per value"
            raise UnusableError(f"{path}: {reason}", reason)
        return np.array(picture.convert("RGB"))


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
        raise UnusableError(f"{path}: cannot be read as a picture ({error})", UNREADABLE) from None


def instance_targets(ids: NDArray[np.integer], ignored: int | None = None) -> Targets:
    """Each id of a map, integer (H, W), as an object of its own: 0 is background, `ignored` does not count."""
    background = np.where(ids == ignored, -1, 0).astype(np.int8)
    return {
        int(value): np.where(ids == value, np.int8(1), background)
        for value in np.unique(ids)
        if value not in (0, ignored)
    }


def mask_targets(masks: Mapping[int, NDArray[np.bool_]], ignored: NDArray[np.bool_] | None = None) -> Targets:
    """Targets of masks, bool (H, W), that may overlap. `ignored` pixels count only for the objects that cover them."""
    targets = {object_id: mask.astype(np.int8) for object_id, mask in masks.items()}
    if ignored is not None:
        for target in targets.values():
            target[ignored & (target == 0)] = -1
    return targets
