"""Label Studio's bitmask: a mask as a PNG in a data URL, black on the object and transparent elsewhere."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipclick.masks import BoxMask

_PREFIX = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OPAQUE_FROM = 128  # minimum alpha of the object's pixels: hand-drawn edges have values in between


def encode(mask: BoxMask) -> str:
    """The data URL of a mask: a PNG of the photo's size with one bit per pixel, which is transparent or black."""
    image = Image.frombytes("P", (mask.size[1], mask.size[0]), mask.full().tobytes())
    image.putpalette([0] * 6)
    return _PREFIX + base64.b64encode(_png(image, transparency=b"\x00\xff")).decode()


def encode_opaque(mask: BoxMask) -> str:
    """The data URL of a mask as a PNG of one bit per pixel, white on the object and black elsewhere."""
    return _PREFIX + base64.b64encode(_png(Image.fromarray(mask.full()))).decode()


def size_of(url: str) -> tuple[int, int]:
    """The size (H, W) in the header of a bitmask's PNG. Raises `ValueError` if it is not a PNG."""
    header = _bytes(url, 64)
    if header[:8] != _SIGNATURE or header[12:16] != b"IHDR":
        raise ValueError("the bitmask is not a PNG")
    width, height = struct.unpack(">II", header[16:24])
    return height, width


def decode(url: str, height: int, width: int) -> NDArray[np.bool_]:
    """The mask, bool (H, W), of a bitmask as Label Studio stores it: the pixels that are half opaque or more.

    A PNG without transparency is read by its brightness, white on black, as other tools write masks. Raises
    `ValueError` if it is not a PNG or has another size; the size is checked before any pixel is decoded.
    """
    if size_of(url) != (height, width):
        raise ValueError(f"the bitmask has {size_of(url)[1]} x {size_of(url)[0]} pixels, its image {width} x {height}")
    return _decoded(_bytes(url), "the bitmask's PNG")


def read_file(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, bool (H, W), in a PNG file: its opaque pixels, or its white ones if it has no transparency. Raises
    `ValueError` if it is not a PNG or has another size (H, W)."""
    mask = _decoded(path.read_bytes(), str(path))
    if mask.shape != size:
        raise ValueError(f"{path} has {mask.shape[1]} x {mask.shape[0]} pixels, but its photo {size[1]} x {size[0]}")
    return mask


def _decoded(png: bytes, name: str) -> NDArray[np.bool_]:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            channel = np.asarray(image.convert("RGBA").getchannel("A") if has_alpha else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ValueError(f"{name} cannot be decoded: {error}") from None
    return np.asarray(channel >= _OPAQUE_FROM)


def _png(image: Image.Image, transparency: bytes | None = None) -> bytes:
    file = io.BytesIO()
    options = {} if transparency is None else {"transparency": transparency, "bits": 1}
    image.save(file, "PNG", compress_level=1, **options)
    return file.getvalue()


def _bytes(url: str, first: int | None = None) -> bytes:
    """The content of a PNG's data URL, or only what its `first` base64 characters hold."""
    if not url.startswith(_PREFIX):
        raise ValueError(f'the bitmask is not a data URL that begins with "{_PREFIX}"')
    text = url[len(_PREFIX) :]
    try:
        return base64.b64decode(text if first is None else text[:first], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the bitmask is not base64") from None
