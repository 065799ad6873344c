"""Image files to pixels, as a browser shows them: the only decoder of photos in this project."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from skipclick.exif import UPRIGHT, orientation
from skipclick.image_container import Container, TooManyPartsError, is_cut_off, open_container

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
"""What browsers show, and TIFF. Pillow knows dozens more, some of which run other programs (EPS)."""

_DECODED_AS_A_WHOLE = ("WEBP", "AVIF")
"""Formats of which a truncated file shows nothing, in browsers too."""

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
_LAST_ROW_FIRST = (3, 4, 6, 7)
"""Orientations that move the last stored row to the first row or column."""

_STRIP = 1 << 20
"""Pixels that are converted at a time, so that further copies are of strips, not of whole photos."""

_BYTES_IN_STRIPS = 40
"""Per pixel, in all copies of a strip together: those of floats take the most."""

_ORIENTATION_TAG, _BITS_TAG, _SAMPLES_TAG, _TILE_TAGS = 274, 258, 277, (322, 323)
_MAX_MARGIN = 1 << 12
"""Pixels by which a TIFF's tile may be longer than the photo that lies in it."""
_MAX_RLE_PIXELS = 4_000_000
"""Of a run-length encoded BMP, which Pillow decodes run by run in Python."""
_DAMAGE = (OSError, SyntaxError, EOFError, IndexError, struct.error)
"""What Pillow raises when pixels end too early or make no sense."""


class ImageError(ValueError):
    """An image cannot be loaded; the message says what was tried, what came back and which setting to change."""


class UndecodableError(ImageError):
    """The bytes are there, but they are not an image that can be decoded."""


class TooManyPixelsError(UndecodableError):
    """The image has so many pixels that decoding would exhaust memory."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as a browser shows it, possibly decoded at a reduced size."""

    pixels: NDArray[np.uint8]
    """RGB uint8 (h, w, 3)."""
    size: tuple[int, int]
    """(H, W) of the whole image, turned."""


def _admit_all(size: tuple[int, int], num_bytes: int) -> None:
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

    Transparent parts become white. 16-bit values are reduced to their upper byte (unless all are below 4096: those have
    12 bits), animations to their first frame. Broken metadata never keeps pixels from being decoded. Of a damaged or
    truncated file the part that can be decoded is returned, as in a browser; `complete` rejects such a file.

    With `enough`, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, which takes about half the time, as long as both
    sides keep that many pixels. `admit` is called with the file's (width, height) and the maximum number of bytes that
    decoding takes besides the file itself, and may raise. Raises `UndecodableError`, what `admit` raises, and the
    `ImageError`s that reading `file` raises.
    """
    try:
        container = open_container(file)
        with Image.open(container.file, formats=_FORMATS) as image:
            width, height = image.size
            if enough is not None:
                image.draft(None, (enough, enough))  # only affects JPEGs
            reduced = image.size != (width, height)
            _check_effort(image)
            admit((width, height), _decoding_bytes(image, container, width * height))
            if complete and image.format == "JPEG" and is_cut_off(file):
                raise UndecodableError(_cut_off(file))  # the decoder would silently fill the gap
            turn = _orientation(image, container) if turned else UPRIGHT
            frame = _load(image, container, complete)
            pixels = _turned_pixels(_rgb_strips(image, container), _stored_size(image), turn)
            if frame is not None:
                _whiten_outside(pixels, frame)
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
    """(H, W) of an encoded image, turned as `decode` turns it; decodes no pixels. Raises `UndecodableError`."""
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


def _check_effort(image: Image.Image) -> None:
    """Raise `UndecodableError` for a file that takes far longer to decode than others with as many pixels."""
    tiles = getattr(image, "tile", [])
    if tiles and tiles[0][0] == "bmp_rle" and image.width * image.height > _MAX_RLE_PIXELS:
        raise UndecodableError(
            f"the BMP is run-length encoded and has more than {_MAX_RLE_PIXELS:,} pixels: save it as PNG"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = _tiff_tile(image)
        if width > image.width + _MAX_MARGIN or height > image.height + _MAX_MARGIN:
            raise UndecodableError(f"the TIFF has tiles of {width} x {height} pixels, larger than the image")


def _why_not(file: BinaryIO, error: Exception) -> str:
    start = _first_bytes(file)
    try:
        if start and (is_cut_off(file) or "truncated" in str(error)):
            return _cut_off(file)
    except TooManyPartsError as too_many:
        error = too_many
    if isinstance(error, TooManyPartsError):
        return f"{_no_image(start)}: {error}"
    return f"{_no_image(start)} ({type(error).__name__})"


def _cut_off(file: BinaryIO) -> str:
    size = file.seek(0, io.SEEK_END)
    return f"{_no_image(_first_bytes(file))}: it is cut off after {size} bytes; fetch or upload it again"


def _no_image(start: bytes) -> str:
    return f"{_kind(start)} cannot be decoded as an image"


def _kind(start: bytes) -> str:
    """The type of a file, in words: messages reveal nothing of its content, which the client may not be allowed to
    see."""
    if not start:
        return "an empty file"
    text = start.lstrip()[:1]
    if text == b"<":
        return "an HTML or XML document"
    if text in (b"{", b"["):
        return "a JSON document"
    known = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP", b"II": "TIFF"}
    name = next((name for mark, name in (known | {b"MM": "TIFF"}).items() if start.startswith(mark)), None)
    return f"a file that begins like a {name}" if name else "a file of unknown type"


def _first_bytes(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(8)


def _orientation(image: Image.Image, container: Container) -> int:
    if container.orientation is not None:
        return container.orientation
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tag = image.tag_v2.get(_ORIENTATION_TAG)
        return tag if isinstance(tag, int) else UPRIGHT
    exif = image.info.get("exif", b"")  # AVIF: Pillow sets it from the boxes
    return orientation(exif.removeprefix(b"Exif\0\0"))


def _load(image: Image.Image, container: Container, complete: bool) -> tuple[int, int, int, int] | None:
    """Decode the pixels, as they are stored. Returns (left, top, right, bottom) of a GIF's first frame if it is smaller
    than the screen, otherwise None."""
    if container.first_frame:
        image.seek(container.first_frame)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load_end = lambda: None  # type: ignore[method-assign]  # it would read all metadata, and turn by XMP
    tiles = getattr(image, "tile", [])
    frame: tuple[int, int, int, int] | None = tiles[0].extents if image.format == "GIF" and tiles else None
    try:
        image.load()
    except _DAMAGE:
        if complete or image.format in _DECODED_AS_A_WHOLE or _is_interlaced(tiles, container):
            raise
        image.tile = []  # type: ignore[attr-defined]  # keep what has been decoded
        image.load()
        if not any(np.asarray(strip).any() for strip in _strips(image)):
            raise
    return None if frame == (0, 0, *image.size) else frame


def _is_interlaced(tiles: list[tuple[object, ...]], container: Container) -> bool:
    """Whether pixels are interlaced, so that a truncated file has gaps everywhere, which Pillow leaves."""
    if container.interlaced:
        return True
    decoder, arguments = (tiles[0][0], tiles[0][3]) if tiles else ("", None)
    return decoder == "gif" and isinstance(arguments, tuple) and bool(arguments[1])


def _decoding_bytes(image: Image.Image, container: Container, num_stored: int) -> int:
    """The most bytes that decoding takes at once: what the format's decoder keeps of all `num_stored` pixels, Pillow's
    image, and the result. `tests/skipclick/test_image_file.py` measures it for each kind of file."""
    image_bytes = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}.get(image.mode, 4)
    num_pixels = image.width * image.height
    kept = 0
    if image.format == "JPEG" and image.info.get("progressive"):
        kept = 2 * len(image.getbands())  # coefficients, at full size even if the photo is reduced
    elif image.format in _DECODED_AS_A_WHOLE:
        kept = 12
    elif image_bytes == 4 and _bits(image, container) == 16:
        kept = 20  # of `_twelve_bits`
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        kept = _tiff_value_bytes(image)  # one strip may be the whole photo
        tile_width, tile_height = _tiff_tile(image)
        num_stored = max(num_stored, tile_width * tile_height)
    return num_stored * kept + num_pixels * (image_bytes + 3) + _BYTES_IN_STRIPS * min(_STRIP, num_pixels)


def _tiff_tile(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """(width, height) of a TIFF's tiles, which are decoded one at a time; (0, 0) if it has none."""
    sides = [image.tag_v2.get(tag, 0) for tag in _TILE_TAGS]
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width, height


def _tiff_value_bytes(image: TiffImagePlugin.TiffImageFile) -> int:
    """Bytes of one pixel as the file stores it."""
    bits = np.ravel(image.tag_v2.get(_BITS_TAG, 1))
    samples = image.tag_v2.get(_SAMPLES_TAG, 1)
    return -(-int(bits.max()) * max(len(bits), samples if isinstance(samples, int) else 1) // 8)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of decoded pixels; for a TIFF stored on its side, Pillow's `size` is that of the turned photo."""
    width, height = image.im.size
    return int(width), int(height)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image from top to bottom, in parts of whole rows."""
    width, height = _stored_size(image)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _turned_pixels(strips: Iterable[Image.Image], size: tuple[int, int], turn: int) -> NDArray[np.uint8]:
    """Strips of an RGB image of this (width, height), turned and put together: uint8 (h, w, 3)."""
    width, height = size
    is_quarter = turn in _QUARTER_TURNS
    pixels = np.empty((width, height, 3) if is_quarter else (height, width, 3), np.uint8)
    by_stored_row = pixels.swapaxes(0, 1) if is_quarter else pixels  # (height, width, 3)
    top = 0
    for strip in strips:
        bottom = top + strip.height
        part = np.asarray(strip.transpose(_TURNS[turn]) if turn in _TURNS else strip)
        place = slice(height - bottom, height - top) if turn in _LAST_ROW_FIRST else slice(top, bottom)
        by_stored_row[place] = part.swapaxes(0, 1) if is_quarter else part
        top = bottom
    return pixels


def _whiten_outside(pixels: NDArray[np.uint8], frame: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = frame
    pixels[:top] = pixels[bottom:] = pixels[:, :left] = pixels[:, right:] = 255


def _rgb_strips(image: Image.Image, container: Container) -> Iterator[Image.Image]:
    """The decoded image as strips in RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        yield from _gray_strips(image)
        return
    if _bits(image, container) == 16 and _is_nearly_black(image):
        colours = _twelve_bits(container.file)
        if colours is not None:
            yield from colours
            return
    for strip in _strips(image):
        yield _flattened(strip)


def _gray_strips(image: Image.Image) -> Iterator[Image.Image]:
    largest = max(_largest(np.asarray(strip)) for strip in _strips(image))
    transparent = image.info.get("transparency")
    for strip in _strips(image):
        values = np.asarray(strip)
        gray = _eight_bits(values, largest)
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        yield Image.fromarray(gray).convert("RGB")


def _flattened(image: Image.Image) -> Image.Image:
    """An image as RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")


def _bits(image: Image.Image, container: Container) -> int | None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: int | None = np.ravel(image.tag_v2.get(_BITS_TAG, 1))[0]
        return bits
    return container.bits


def _is_nearly_black(image: Image.Image) -> bool:
    """Whether values of 16 bits, of which Pillow keeps the upper bytes, were all below 4096."""
    extrema = zip(image.getbands(), np.reshape(image.getextrema(), (-1, 2)), strict=True)
    return all(high < 16 for band, (_, high) in extrema if band != "A")


def _twelve_bits(file: BinaryIO) -> Iterator[Image.Image] | None:
    """The strips of a colour image of 16-bit values, which OpenCV keeps whole; None if it cannot decode them."""
    file.seek(0)
    found = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    return _colour_strips(np.asarray(found, np.uint16))


def _colour_strips(values: NDArray[np.uint16]) -> Iterator[Image.Image]:
    """Strips of 16-bit values, (H, W, 3 or 4) in the order of OpenCV."""
    rows = max(1, _STRIP // values.shape[1])
    largest = max(_largest(values[..., band]) for band in range(3))
    for start in range(0, values.shape[0], rows):
        part = values[start : start + rows]
        colours = _eight_bits(part[..., 2::-1], largest)
        if values.shape[2] == 4:
            colours = np.dstack([colours, (part[..., 3] >> 8).astype(np.uint8)])
        yield _flattened(Image.fromarray(colours))


def _largest(values: NDArray[Any]) -> float:
    """The largest value; NaN counts as 0."""
    return float((np.nan_to_num(values.astype(np.float64)) if values.dtype.kind == "f" else values).max(initial=0))


def _eight_bits(values: NDArray[Any], largest: float) -> NDArray[np.uint8]:
    """Values of more than 8 bits as uint8: the upper byte of integers; floats in [0, 1] or [0, 255].

    Integers that are all below 4096 come from sensors of 12 bits or less. Their upper bytes, which browsers show, would
    look black to people and to the model, so they are scaled by the range that they have.
    """
    if values.dtype.kind == "f":
        scale = 255.0 if largest <= 1.0 else 1.0
        return np.asarray(np.clip(np.nan_to_num(values.astype(np.float64)) * scale, 0, 255), np.uint8)
    bits = next(bits for bits in (8, 10, 12, 16, 32) if largest < 1 << bits)
    return np.asarray(np.clip(values >> (bits - 8), 0, 255), np.uint8)
