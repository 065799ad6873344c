"""Image files to pixels, within what the server allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from backend.images.pixel_budget import PixelBudget
from skipclick.image_file import ImageError, TooManyPixelsError, UndecodableError, decode

__all__ = ["ImageError", "Photo", "UndecodableError", "decode_image"]


def _nothing() -> None:
    return None


@dataclass(frozen=True, eq=False)
class Photo:
    """An image as its viewers see it, possibly decoded at a reduced size."""

    pixels: NDArray[np.uint8]
    """RGB uint8 (h, w, 3)."""
    size: tuple[int, int]
    """(H, W) of the image that the annotator sees."""
    release: Callable[[], None] = _nothing
    """To be called when the pixels are no longer looked at."""


def decode_image(
    file: BinaryIO, max_pixels: int, enough: int | None = None, budget: PixelBudget | None = None
) -> Photo:
    """An image of at most `max_pixels`; see `skipclick.image_file.decode`.

    With a `budget`, its pixels are taken from there before they are decoded, and given back by the photo's `release`.
    Raises `ImageError`s, and `MemoryError`.
    """
    release = _nothing

    def admit(size: tuple[int, int], count: int) -> None:
        nonlocal release
        if size[0] * size[1] > max_pixels:
            raise UndecodableError(
                f"the image has {size[0]} x {size[1]} pixels, more than IMAGE_MAX_PIXELS={max_pixels} allows"
            )
        if budget is not None:
            release = budget.take(count)

    try:
        decoded = decode(file, enough=enough, admit=admit)
    except TooManyPixelsError:
        raise UndecodableError(f"the image has more pixels than IMAGE_MAX_PIXELS={max_pixels} allows") from None
    except BaseException:
        release()
        raise
    return Photo(decoded.pixels, decoded.size, release)
