"""What a request asks for, as values: the photo, clicks in pixels, what an object starts from. Knows no tool's JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageReference:
    """Where a task says its image is, and the credentials that Label Studio sent to fetch it; or the image itself."""

    url: str
    task_id: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    content: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    """For an image that the tool sent along: returns the encoded file; `url` is then its digest."""

    @cached_property
    def url_digest(self) -> str:
        """The SHA-256 of `url`, hexadecimal; made once, since a click asks several times and a data URI is long."""
        return sha256(self.url.encode(errors="surrogatepass")).hexdigest()


def sent_image(digest: str, content: Callable[[], bytes]) -> ImageReference:
    """The reference of an image that a tool sent along; `digest` is that of its file, see `file_digest`."""
    return ImageReference(url=f"sha256:{digest}", content=content)


def file_digest(encoded: bytes) -> str:
    """The SHA-256 of an encoded image, hexadecimal."""
    return sha256(encoded).hexdigest()


@dataclass(frozen=True)
class SmartClick:
    """A click as an annotator made it: the pixel of the displayed image (column x, row y) and the sign."""

    id: str
    x: int
    y: int
    positive: bool


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the displayed image: top left corner, size, and clockwise rotation around that corner in
    degrees."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0

    def centre(self, size: tuple[int, int]) -> tuple[int, int]:
        """(x, y) of the pixel under the box's centre, or of the nearest one of an image of `size` (H, W)."""
        cos, sin = self._direction
        x = self.x + (self.width * cos - self.height * sin) / 2
        y = self.y + (self.width * sin + self.height * cos) / 2
        return min(max(int(x), 0), size[1] - 1), min(max(int(y), 0), size[0] - 1)

    def area(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The box as a mask, bool (H, W) of `size`: the pixels whose centre lies in it."""
        cos, sin = self._direction
        y, x = np.ogrid[0.5 : size[0], 0.5 : size[1]]
        along = (x - self.x) * cos + (y - self.y) * sin  # (H, W), coordinates in the box's own frame
        across = (y - self.y) * cos - (x - self.x) * sin
        inside: NDArray[np.bool_] = (along >= 0) & (along <= self.width) & (across >= 0) & (across <= self.height)
        return inside

    @property
    def _direction(self) -> tuple[float, float]:
        """Cosine and sine of the rotation."""
        angle = math.radians(self.rotation)
        return math.cos(angle), math.sin(angle)


@dataclass(frozen=True)
class StartMask:
    """A mask that clicks correct. Two with the same pixels are equal."""

    digest: bytes
    mask: NDArray[np.bool_] = field(compare=False, repr=False)
    """Bool (H, W) of the displayed image."""

    @staticmethod
    def of(mask: NDArray[np.bool_]) -> StartMask:
        """Of a mask that must not be changed afterwards."""
        return StartMask(sha256(np.packbits(mask, axis=1).tobytes()).digest(), mask)


Start = Box | StartMask
"""What is known of an object before its first click."""
