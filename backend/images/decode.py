"""Image files to pixels, as a browser shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from backend.images.pixel_budget import PixelBudget

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
"""What browsers show, and TIFF. Pillow knows dozens more, some of which run other programs (EPS)."""

_ORIENTATION = 0x0112  # EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height


def _nothing() -> None:
    return None


class ImageError(ValueError):
    """An image cannot be had; the message says what was tried, what came back and which setting to change."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image as its viewers see it, possibly decoded at a reduced size."""

    pixels: NDArray[np.uint8]
    """RGB uint8 (h, w, 3)."""
    size: tuple[int, int]
    """(H, W) of the image that the annotator sees."""
    release: Callable[[], None] = _nothing
    """To be called when the pixels are no longer looked at."""


class UndecodableError(ImageError):
    """The bytes are there, but they are no image that we take."""


def decode_image(
    file: BinaryIO, max_pixels: int, enough: int | None = None, budget: PixelBudget | None = None
) -> Photo:
    """An encoded image, turned by its EXIF orientation. Reads no more of the seekable `file` than it needs.

    Transparent parts become white, 16-bit values keep their upper byte, of an animation the first frame
    counts. With `enough`, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which takes about half the time,
    as long as both sides keep that many pixels. With a `budget`, its pixels are taken from there before they are
    decoded, and given back by the photo's `release`. Raises `UndecodableError` for what is no image, is damaged, or
    has more than `max_pixels`, the `ImageError`s of the file, and `MemoryError`.
    """
    release = _nothing
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UndecodableError(
                    f"the image has {width} x {height} pixels, more than IMAGE_MAX_PIXELS={max_pixels} allows"
                )
            if enough is not None:
                image.draft(None, (enough, enough))  # does nothing but for JPEG
            if budget is not None:
                release = budget.take(image.width * image.height)
            reduced, turned = image.size != (width, height), image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except (ImageError, MemoryError):
        release()
        raise
    except Image.DecompressionBombError:
        raise UndecodableError(f"the image has more pixels than IMAGE_MAX_PIXELS={max_pixels} allows") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        release()
        file.seek(0)
        start = file.read(8).hex(" ") or "nothing"
        raise UndecodableError(
            f"a file that begins with {start} cannot be decoded as an image ({type(error).__name__})"
        ) from None
    if not reduced:  # the shape is right: Pillow turns a TIFF before it is asked, so the tag alone does not tell
        return Photo(pixels, (pixels.shape[0], pixels.shape[1]), release)
    return Photo(pixels, (width, height) if turned else (height, width), release)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(values: NDArray[np.generic]) -> Image.Image:
    """Gray values of more than 8 bits: the upper byte of 16-bit integers; floats in [0, 1] or [0, 255]."""
    floats = np.nan_to_num(values.astype(np.float64))
    if values.dtype.kind == "f":
        scale = 255.0 if floats.max(initial=0.0) <= 1.0 else 1.0
    else:
        scale = 1 / 256 if values.dtype.itemsize == 2 or floats.max(initial=0.0) > 255 else 1.0
    return Image.fromarray(np.clip(floats * scale, 0, 255).astype(np.uint8)).convert("RGB")
