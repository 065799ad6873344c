"""Image files to pixels, as a browser shows them: the one decoder of photos, for all that read any."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from skipclick.exif import UPRIGHT, orientation
from skipclick.image_container import Container, is_cut_off, open_container

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
"""What browsers show, and TIFF. Pillow knows dozens more, some of which run other programs (EPS)."""

_DECODED_AS_A_WHOLE = ("WEBP", "AVIF")
"""Formats of which a part shows nothing, in browsers too."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)

_ORIENTATION_TAG, _BITS_TAG = 274, 258
_DAMAGE = (OSError, SyntaxError, EOFError, IndexError, struct.error)
"""What Pillow raises when pixels end too early or make no sense."""


class ImageError(ValueError):
    """An image cannot be had; the message says what was tried, what came back and which setting to change."""


class UndecodableError(ImageError):
    """The bytes are there, but they are no image that we take."""


class TooManyPixelsError(UndecodableError):
    """So many that decoding would be an attack on the memory."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as a browser shows it, possibly decoded at a reduced size."""

    pixels: NDArray[np.uint8]
    """RGB uint8 (h, w, 3)."""
    size: tuple[int, int]
    """(H, W) of the whole image, turned."""


def _admit_all(size: tuple[int, int], count: int) -> None:
    return None


def decode(
    file: BinaryIO,
    *,
    enough: int | None = None,
    admit: Callable[[tuple[int, int], int], None] = _admit_all,
    turned: bool = True,
    complete: bool = False,
) -> Decoded:
    """An encoded image, turned as browsers turn it. Reads no more of the seekable `file` than it needs.

    Transparent parts become white, of 16-bit values the upper byte counts (unless all are below 4096: those have 12
    bits), of an animation the first frame. Metadata never decides whether there are pixels. Of a damaged or cut file
    the part that can be decoded counts, as in a browser; `complete` refuses such a file.

    With `enough`, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which takes about half the time, as long as both
    sides keep that many pixels. `admit` is told the file's (width, height) and how many pixels are about to be decoded,
    and may raise. Raises `UndecodableError`, what `admit` raises, and the `ImageError`s of the file.
    """
    try:
        container = open_container(file)
        with Image.open(container.file, formats=_FORMATS) as image:
            width, height = image.size
            if enough is not None:
                image.draft(None, (enough, enough))  # does nothing but for JPEG
            reduced = image.size != (width, height)
            admit((width, height), image.width * image.height)
            if complete and image.format == "JPEG" and is_cut_off(file):
                raise UndecodableError(_cut_off(file))  # the decoder would fill the gap, and say nothing
            turn = _orientation(image, container) if turned else UPRIGHT
            rgb = _load(image, container, complete)
            pixels = np.array(rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb)
            if not reduced:
                return Decoded(pixels, (pixels.shape[0], pixels.shape[1]))
            return Decoded(pixels, (width, height) if turn in _QUARTER_TURNS else (height, width))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"the image has too many pixels: {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise UndecodableError(_why_not(file, error)) from None


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(H, W) of an encoded image, turned as `decode` turns it. Looks at no pixels. Raises `UndecodableError`."""
    try:
        container = open_container(file)
        with Image.open(container.file, formats=_FORMATS) as image:
            width, height = image.size
            return (width, height) if _orientation(image, container) in _QUARTER_TURNS else (height, width)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"the image has too many pixels: {error}") from None
    except Exception as error:  # Pillow's parsers raise nearly everything on damaged files
        raise UndecodableError(_why_not(file, error)) from None


def _why_not(file: BinaryIO, error: Exception) -> str:
    start = _first_bytes(file)
    if start and (is_cut_off(file) or "truncated" in str(error)):
        return _cut_off(file)
    return f"{_no_image(start)} ({type(error).__name__})"


def _cut_off(file: BinaryIO) -> str:
    size = file.seek(0, io.SEEK_END)
    return f"{_no_image(_first_bytes(file))}: it is cut off after {size} bytes; fetch or upload it again"


def _no_image(start: bytes) -> str:
    return f"a file that begins with {start.hex(' ') or 'nothing'} cannot be decoded as an image"


def _first_bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(8)


def _orientation(image: Image.Image, container: Container) -> int:
    if container.orientation is not None:
        return container.orientation
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tag = image.tag_v2.get(_ORIENTATION_TAG)
        return tag if isinstance(tag, int) else UPRIGHT
    exif = image.info.get("exif", b"")  # AVIF: Pillow writes it anew, after the boxes
    return orientation(exif.removeprefix(b"Exif\0\0"))


def _load(image: Image.Image, container: Container, complete: bool) -> Image.Image:
    """The pixels as RGB, as they are stored."""
    if container.first_frame:
        image.seek(container.first_frame)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load_end = lambda: None  # type: ignore[method-assign]  # it would read all metadata, and turn by XMP
    tiles = getattr(image, "tile", [])
    frame = tiles[0].extents if image.format == "GIF" and tiles else None
    try:
        image.load()
    except _DAMAGE:
        if complete or image.format in _DECODED_AS_A_WHOLE or _is_interlaced(tiles, container):
            raise
        image.tile = []  # type: ignore[attr-defined]  # nothing is left to be decoded: what there is stays
        image.load()
        if not np.asarray(image).any():
            raise
    rgb = _to_rgb(image, container)
    if frame is not None and frame != (0, 0, *image.size):  # a GIF whose first frame is smaller than its screen
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(frame), frame[:2])
        return canvas
    return rgb


def _is_interlaced(tiles: list[tuple[object, ...]], container: Container) -> bool:
    """Whether a part of the file is something of each place and all of none, which Pillow leaves with gaps."""
    if container.interlaced:
        return True
    decoder, arguments = (tiles[0][0], tiles[0][3]) if tiles else ("", None)
    return decoder == "gif" and isinstance(arguments, tuple) and bool(arguments[1])


def _to_rgb(image: Image.Image, container: Container) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        gray = _eight_bits(values)
        if isinstance(transparent := image.info.get("transparency"), int):
            gray[values == transparent] = 255
        return Image.fromarray(gray).convert("RGB")
    if _bits(image, container) == 16 and _is_nearly_black(image):
        image = _twelve_bits(container.file) or image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _bits(image: Image.Image, container: Container) -> int | None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: int | None = np.ravel(image.tag_v2.get(_BITS_TAG, 1))[0]
        return bits
    return container.bits


def _is_nearly_black(image: Image.Image) -> bool:
    """Whether values of 16 bits, of which Pillow keeps the upper bytes, were all below 4096."""
    extrema = zip(image.getbands(), np.reshape(image.getextrema(), (-1, 2)), strict=True)
    return all(high < 16 for band, (_, high) in extrema if band != "A")


def _twelve_bits(file: BinaryIO) -> Image.Image | None:
    """A colour image of 16-bit values that are all small; Pillow keeps only their upper bytes."""
    file.seek(0)
    found = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    values = np.asarray(found, np.uint16)
    colours = _eight_bits(values[..., 2::-1])
    if values.shape[2] == 3:
        return Image.fromarray(colours)
    return Image.fromarray(np.dstack([colours, (values[..., 3] >> 8).astype(np.uint8)]))


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of more than 8 bits as uint8: the upper byte of integers; floats in [0, 1] or [0, 255].

    Integers that are all below 4096 come from sensors of 12 bits or less. Shown by their upper bytes, as browsers do,
    they would be black to any eye, and to the model: they get the range that they have.
    """
    if values.dtype.kind == "f":
        floats = np.nan_to_num(values.astype(np.float64))
        scale = 255.0 if floats.max(initial=0.0) <= 1.0 else 1.0
        return np.asarray(np.clip(floats * scale, 0, 255), np.uint8)
    top = int(values.max(initial=0))
    bits = next(bits for bits in (8, 10, 12, 16, 32) if top < 1 << bits)
    return np.asarray(np.clip(values >> (bits - 8), 0, 255), np.uint8)
