"""Protects that an image arrives as the browser shows it: orientation, colours, limits, damaged files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.images.decode import DecodedImage, ImageError, decode_image

LIMIT = 1_000_000
Pixels = NDArray[Any]


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes, *limits: int | None, **more: int) -> DecodedImage:
    return decode_image(BytesIO(data), *limits, **more)  # type: ignore[arg-type]


def scene() -> Pixels:
    """12 x 8 pixels, no two corners alike."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4, :6] = 255, 0, 0
    pixels[:4, 6:] = 0, 255, 0
    pixels[4:, :6] = 0, 0, 255
    return pixels


# What has to be done to the stored pixels, by the EXIF standard: where their 0th row and 0th column belong.
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda a: a.transpose(1, 0, 2)[::-1],  # left, bottom
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_all_eight_orientations(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    options |= {"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else {}
    data = encoded(Image.fromarray(scene()), format, exif=exif, **options)
    photo = decoded(data, LIMIT)
    found, expected = photo.pixels, TURNS[orientation](scene())
    assert found.shape == expected.shape
    assert photo.size == expected.shape[:2]
    assert np.abs(found.astype(int) - expected).max() < 60  # JPEG smears a little at the edges


def test_no_webp_is_turned_as_no_chromium_turns_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(scene()), "WEBP", exif=exif, lossless=True)
    np.testing.assert_array_equal(decoded(data, LIMIT).pixels, scene())


def test_the_result_is_writable_contiguous_rgb() -> None:
    found = decoded(encoded(Image.fromarray(scene())), LIMIT).pixels
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, scene())


def test_gray_of_16_bits_keeps_its_upper_byte() -> None:
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    for format in ("PNG", "TIFF"):
        found = decoded(encoded(Image.fromarray(values), format), LIMIT).pixels
        np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 128, 255])
        np.testing.assert_array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("scale", [1, 255])
def test_floats_are_seen_in_either_range(scale: int) -> None:
    values = np.array([[0, 0.5, 1, np.nan]], np.float32) * scale
    found = decoded(encoded(Image.fromarray(values), "TIFF"), LIMIT).pixels
    np.testing.assert_array_equal(found[0, :, 1], [0, 127, 255, 0])


def test_transparent_pixels_become_white() -> None:
    pixels = np.dstack([scene(), np.full((8, 12), 255, np.uint8)])
    pixels[0, 0] = 9, 9, 9, 0
    found = decoded(encoded(Image.fromarray(pixels)), LIMIT).pixels
    np.testing.assert_array_equal(found[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(found[1:], scene()[1:])


def test_palettes_gray_and_one_bit() -> None:
    picture = Image.fromarray(scene())
    np.testing.assert_array_equal(decoded(encoded(picture.quantize(4)), LIMIT).pixels, scene())
    transparent = picture.quantize(4)
    data = encoded(transparent, transparency=transparent.getpixel((0, 0)))
    np.testing.assert_array_equal(decoded(data, LIMIT).pixels[0, 0], [255, 255, 255])
    gray = decoded(encoded(picture.convert("L")), LIMIT).pixels
    assert gray.shape == (8, 12, 3)
    assert set(np.unique(decoded(encoded(picture.convert("1")), LIMIT).pixels)) <= {0, 255}


def test_cmyk_jpeg() -> None:
    found = decoded(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), LIMIT).pixels
    assert found[0, 0, 0] > 200
    assert found[0, 0, 1] < 60


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(data, LIMIT).pixels[0, 0], [255, 0, 0])


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(ImageError, match="12 x 8 pixels, more than IMAGE_MAX_PIXELS=95"):
        decoded(encoded(Image.fromarray(scene())), 95)
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match="IMAGE_MAX_PIXELS=1000000"):
            decoded(bomb, LIMIT)


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000), (65_536, 1000), (50_000, 499), (499, 50_000)])
def test_photos_of_extreme_shape_are_refused_before_decoding(size: tuple[int, int]) -> None:
    """Whatever works on rows or columns takes memory for them apart from the number of pixels."""
    data = encoded(Image.new("1", size))
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels: no side may be longer than 65535"):
        decoded(data, 80_000_000)


@pytest.mark.parametrize("size", [(4096, 1), (1, 4096), (20_000, 200)])
def test_panoramas_and_small_strips_are_photos(size: tuple[int, int]) -> None:
    assert decoded(encoded(Image.new("1", size)), 80_000_000).size == size[::-1]


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"GIF89a", encoded(Image.fromarray(scene()))[:40], encoded(Image.fromarray(scene()))[:45]]
)
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoded(data, LIMIT)


def test_what_has_no_pixels_because_it_is_cut_off_says_so() -> None:
    for data in (b"GIF89a", encoded(Image.fromarray(scene()))[:45], encoded(Image.fromarray(scene()), "WEBP")[:-20]):
        with pytest.raises(ImageError, match=f"it is cut off after {len(data)} bytes; fetch or upload it again"):
            decoded(data, LIMIT)


def large_scene() -> Pixels:
    """1200 x 800 pixels of the same scene."""
    return np.kron(scene(), np.ones((100, 100, 1), np.uint8))


@pytest.mark.parametrize("orientation", TURNS)
def test_a_large_jpeg_is_decoded_at_half_its_size_and_keeps_its_own(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(large_scene()), "JPEG", quality=95, exif=exif)
    photo = decoded(data, LIMIT, enough=300)
    expected = TURNS[orientation](large_scene())
    assert photo.size == expected.shape[:2]
    assert photo.pixels.shape == expected[::2, ::2].shape
    difference = np.abs(photo.pixels.astype(int) - expected[::2, ::2])
    assert np.quantile(difference, 0.95) < 6  # JPEG smears a little at the edges


@pytest.mark.parametrize(("enough", "side"), [(None, 800), (401, 800), (400, 400), (200, 200), (100, 100), (1, 100)])
def test_reducing_keeps_enough_pixels(enough: int | None, side: int) -> None:
    photo = decoded(encoded(Image.fromarray(large_scene()), "JPEG"), LIMIT, enough)
    assert photo.size == (800, 1200)
    assert photo.pixels.shape[0] == side


def test_only_jpeg_is_reduced() -> None:
    np.testing.assert_array_equal(
        decoded(encoded(Image.fromarray(large_scene())), LIMIT, enough=8).pixels, large_scene()
    )


def test_the_pixel_limit_concerns_the_whole_image() -> None:
    with pytest.raises(ImageError, match="IMAGE_MAX_PIXELS=900000"):
        decoded(encoded(Image.fromarray(large_scene()), "JPEG"), 900_000, enough=8)
