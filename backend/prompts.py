"""What is asked for, as values: the photo, clicks in its pixels, what an object begins with. Knows no tool's JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageReference:
    """Where a task says its image is, and what Label Studio sent along to get it; or the image itself."""

    url: str
    task_id: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    content: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    """Of an image that the tool sent along: gives the encoded file, whose digest `url` is then."""

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
    """A click as an annotator made it: the pixel of the shown image that was hit (column x, row y) and the
    sign."""

    id: str
    x: int
    y: int
    positive: bool


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the shown image: top left corner, size, and degrees clockwise around that
    corner."""

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0


@dataclass(frozen=True)
class StartMask:
    """A mask that clicks correct. Equal to another one of the same pixels."""

    digest: bytes
    mask: NDArray[np.bool_] = field(compare=False, repr=False)
    """Bool (H, W) of the shown image."""

    @staticmethod
    def of(mask: NDArray[np.bool_]) -> StartMask:
        """A mask that must not be changed any more."""
        return StartMask(sha256(np.packbits(mask, axis=1).tobytes()).digest(), mask)


Start = Box | StartMask
"""What is known of an object before its clicks."""
