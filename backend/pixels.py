"""Image files to pixels, as a browser shows them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


class ImageError(ValueError):
    """An image cannot be had; the message says what was tried, what came back and which setting to change."""


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """RGB uint8 (H, W, 3) of an encoded image, turned by its EXIF orientation.

    Transparent parts become white, 16-bit values keep their upper byte, of an animation the first frame
    counts. Raises `ImageError` for what is no image, is damaged, or has more than `max_pixels`.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"the image has {width} x {height} pixels, more than IMAGE_MAX_PIXELS={max_pixels} allows"
                )
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"the image has more pixels than IMAGE_MAX_PIXELS={max_pixels} allows") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        start, kind = data[:8].hex(" ") or "nothing", type(error).__name__
        raise ImageError(f"{len(data)} bytes that begin with {start} cannot be decoded as an image ({kind})") from None
    return np.array(rgb)


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
