"""Image files to pixels, within what the server allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from backend.images.memory_budget import Lease, MemoryBudget, return_free_memory
from skipclick.image_file import ImageError, TooManyPixelsError, UndecodableError, decode

__all__ = ["DecodedImage", "ImageError", "UndecodableError", "decode_image"]

MAX_SIDE = 65_535
"""Pixels; JPEG and GIF allow no more."""

MAX_ASPECT_RATIO = 100
"""The longer side of a photo divided by the shorter one. Resizing, features and masks take memory per row and per
column: 80 million by one pixel would take as much as a thousand ordinary photos."""

ELONGATED_FROM = 4096
"""Pixels; a photo whose sides are no longer may have any shape."""

_LARGE = 32 << 20
"""When decoding took more bytes than this, freed memory is returned to the system at once."""


def _nothing() -> None:
    return None


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image as its viewers see it, possibly decoded at a reduced size."""

    pixels: NDArray[np.uint8]
    """RGB uint8 (h, w, 3)."""
    size: tuple[int, int]
    """(H, W) of the image that the annotator sees."""
    release: Callable[[], None] = _nothing
    """To be called when the pixels are no longer needed."""


def decode_image(
    file: BinaryIO, max_pixels: int, enough: int | None = None, budget: MemoryBudget | None = None
) -> DecodedImage:
    """An image of at most `max_pixels`; see `skipclick.image_file.decode`.

    With a `budget`, all memory that decoding needs is reserved there before it starts; the image's `release` gives back
    what the pixels take. Raises `ImageError`s, and `MemoryError`.
    """
    lease: Lease | None = None
    reserved = 0

    def admit(size: tuple[int, int], num_bytes: int) -> None:
        nonlocal lease, reserved
        check_size(size, max_pixels)
        reserved = num_bytes
        if budget is None:
            return
        if num_bytes > budget.total:
            raise UndecodableError(
                f"decoding the image takes {-(-num_bytes >> 20)} MB, more than "
                f"IMAGE_MEMORY_BYTES={budget.total >> 20}MB allows"
            )
        lease = budget.take(num_bytes)

    try:
        decoded = decode(file, enough=enough, admit=admit)
    except TooManyPixelsError:
        raise UndecodableError(f"the image has more pixels than IMAGE_MAX_PIXELS={max_pixels} allows") from None
    except BaseException:
        if lease is not None:
            lease.release()
        raise
    finally:
        if reserved > _LARGE:
            return_free_memory()
    if lease is None:
        return DecodedImage(decoded.pixels, decoded.size)
    lease.shrink(decoded.pixels.nbytes)
    return DecodedImage(decoded.pixels, decoded.size, lease.release)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise `UndecodableError` for a (width, height) that is not accepted."""
    short, long = sorted(size)
    if short * long > max_pixels:
        raise UndecodableError(
            f"the image has {size[0]} x {size[1]} pixels, more than IMAGE_MAX_PIXELS={max_pixels} allows"
        )
    if long > MAX_SIDE or long > max(ELONGATED_FROM, MAX_ASPECT_RATIO * short):
        raise UndecodableError(
            f"the image has {size[0]} x {size[1]} pixels: no side may be longer than {MAX_SIDE} pixels, and from "
            f"{ELONGATED_FROM} on none more than {MAX_ASPECT_RATIO} times as long as the other"
        )
