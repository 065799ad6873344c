"""A photo of any training source, not yet read, and the fixed rule that holds some out for validation."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.left_out import UnusableError
from skipclick.evaluation.datasets.sample import OTHER_SIZE
from train.scene import Scene

HOLD_OUT_ONE_IN = 20

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class Photo:
    """A photo with its masks that has not been read yet: small enough to be sent to a worker process."""

    name: str
    """Key within its source, the same whenever it is opened."""
    read: Callable[[], tuple[NDArray[np.uint8], Scene]]
    """The pixels, uint8 RGB (H, W, 3), turned by the EXIF orientation if the masks are, and the objects.
    Raises ValueError that names the broken file."""
    kind: str | None = None
    """The kind of its masks, if the source tells kinds apart."""

    def load(self) -> tuple[NDArray[np.uint8], Scene]:
        """`read`, with a check that the two fit. Raises ValueError naming the file if it or its masks are broken."""
        image, scene = self.read()
        if scene.layers.shape[1:] != image.shape[:2]:
            raise UnusableError(
                f"{self.name}: a mask of shape {scene.layers.shape[1:]} does not fit a photo of {image.shape[:2]}: "
                "they need the same size",
                OTHER_SIZE,
            )
        return image, scene


def is_held_out(name: str) -> bool:
    """The fixed rule that keeps one photo in twenty for validation: a checksum of its name, which never changes."""
    return zlib.crc32(name.encode()) % HOLD_OUT_ONE_IN == 0


def belongs_to(split: Split, name: str) -> bool:
    """Whether a photo is in a part of its source."""
    return split == "all" or is_held_out(name) == (split == "held_out")
