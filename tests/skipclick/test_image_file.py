"""Protects that photos are seen as Chromium shows them: turned alike, whatever else the file holds, cut files too."""

from __future__ import annotations

import json
import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from skipclick.image_file import Decoded, UndecodableError, decode, read_size
from tests.support.decoding_memory import ENOUGH, KINDS, measured
from tests.support.picture_files import COLUMNS, ROWS, SHOWN, check_sum, cut, exif, fixture, picture_files, xmp

Pixels = NDArray[Any]

TABLE = json.loads(SHOWN.read_text("utf-8"))
FILES = picture_files()
FORMATS = sorted({name.partition("/")[0] for name in FILES})

DAMAGED = re.compile(
    "cut|hole|-end|zeros-behind|rows-missing|data-|parts-wrong-sum|between-data|zeros-before|palette-missing"
)
REFUSED = re.compile("interlaced.*(cut|hole)")
"""Of these the browser shows coarse parts; we say that the file is cut off, or damaged."""

OTHERWISE = {
    "jpeg/exif-density.jpg": "Chromium halves the natural size by the resolution; the masks' percentages are the same",
    "png/palette-too-short.png": "colours that the palette lacks: black there, refused here",
    "png/grey-12-in-16.png": "nearly black in the browser, bright here: see the tests of 12 bits",
    "png/grey-12-in-16-significant-bits.png": "the same",
    "png/exif-6-grey-12-in-16.png": "the same",
    "png/rgb-12-in-16.png": "the same",
    "png/exif-6-rgb-12-in-16.png": "the same",
}


def decoded(data: bytes, **options: Any) -> Decoded:
    return decode(BytesIO(data), **options)


def attempt(data: bytes, **options: Any) -> Decoded | str:
    """The picture, or why there is none."""
    try:
        return decoded(data, **options)
    except UndecodableError as error:
        return str(error)


def of_format(format: str) -> list[str]:
    return [name for name in FILES if name.startswith(f"{format}/")]


# A test for each of the files would take longer to collect and report than to run.
@pytest.mark.parametrize("format", FORMATS)
def test_the_size_is_known_without_decoding(format: str) -> None:
    """For every file that shows something."""
    found = {name: attempt(FILES[name]) for name in of_format(format)}
    sizes = {name: one.size for name, one in found.items() if isinstance(one, Decoded)}
    assert sizes
    assert {name: read_size(BytesIO(FILES[name])) for name in sizes} == sizes


@pytest.mark.parametrize("data", [b"", b"GIF87b", b"<svg/>", FILES[min(FILES)][:20]])
def test_no_size_is_made_up(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        read_size(BytesIO(data))


def test_the_table_is_of_these_files() -> None:
    assert {name: entry[0] for name, entry in TABLE["files"].items()} == {
        name: check_sum(name, data) for name, data in FILES.items()
    }
    assert TABLE["browser"].startswith("Chromium ")


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_seen_as_chromium_shows_them(format: str) -> None:
    names = [name for name in of_format(format) if name not in OTHERWISE]
    assert names
    assert {name: wrong for name in names if (wrong := what_is_wrong(name)) is not None} == {}


def what_is_wrong(name: str) -> str | None:
    """Where we see a file otherwise than Chromium; None if we do not."""
    number = TABLE["files"][name][1]
    shown = np.zeros((ROWS, COLUMNS, 4)) if number is None else points(TABLE["pictures"][number])
    blank = not shown[..., 3].any()
    found = attempt(FILES[name])
    if isinstance(found, str):
        is_explained = "cut off" in found or not re.search(r"-cut-\d", name)
        return None if (blank or REFUSED.search(name)) and is_explained else f"refused: {found}"
    if number is None or (blank and DAMAGED.search(name)):
        return None  # more than the browser shows does no harm: nobody clicks there
    picture = TABLE["pictures"][number]
    if not found.size == found.pixels.shape[:2] == (picture["height"], picture["width"]):
        return f"size {found.size}, pixels {found.pixels.shape}"
    there = np.ones((ROWS, COLUMNS), np.bool_)
    if DAMAGED.search(name):
        there = shown[..., 3] > 0
        last = there.any(axis=1).sum() - 1
        there[last] &= there.all()  # the last row that came may lack its end, and its neighbours
    difference = np.abs(sampled(found.pixels) - over_white(shown)).max(axis=2)[there].max(initial=0)
    return None if difference <= tolerance(name) else f"colours differ by {difference:.0f}"


def points(picture: dict[str, Any]) -> Pixels:
    return np.array([[list(bytes.fromhex(colour)) for colour in row.split()] for row in picture["colours"]], float)


def over_white(colours: Pixels) -> Pixels:
    alpha = colours[..., 3:] / 255
    return colours[..., :3] * alpha + 255 * (1 - alpha)


def sampled(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    rows = [int((row + 0.5) * height / ROWS) for row in range(ROWS)]
    columns = [int((column + 0.5) * width / COLUMNS) for column in range(COLUMNS)]
    return pixels[np.ix_(rows, columns)].astype(float)


def tolerance(name: str) -> int:
    """Decoders of lossy formats may differ in how they blow up the colours."""
    return {"jpeg": 16 if DAMAGED.search(name) else 8, "webp": 8, "avif": 20}.get(name.partition("/")[0], 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("enough", [None, 8])
def test_a_jpeg_without_its_end_has_all_its_pixels_wherever_its_blocks_end(
    progressive: bool, enough: int | None
) -> None:
    random = np.random.default_rng(0)
    for width, height in [(8, 8), (17, 33), (64, 48), (160, 120), (161, 239), (500, 375)]:
        for quality in (30, 95):
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
            whole = encoded(image, "JPEG", quality=quality, progressive=progressive)
            expected = decoded(whole, enough=enough).pixels
            for lacking in (1, 2):
                np.testing.assert_array_equal(decoded(whole[:-lacking], enough=enough).pixels, expected)


def test_a_jpeg_longer_than_what_is_looked_at_at_once_loses_no_byte() -> None:
    """Noise whose scan is as long as a few blocks, give or take, against what Pillow reads by itself."""
    random = np.random.default_rng(1)
    for rows in (640, 655, 672, 1300):
        whole = encoded(Image.fromarray(random.integers(0, 256, (rows, 400), np.uint8)), "JPEG", quality=96)
        with Image.open(BytesIO(whole)) as image:
            np.testing.assert_array_equal(decoded(whole).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "name", ["blocks.jpg", "blocks-progressive.jpg", "blocks.png", "blocks-lossy.webp", "blocks.gif"]
)
def test_a_file_cut_anywhere_is_decoded_or_said_to_be_cut_off(name: str) -> None:
    whole = fixture(name)
    expected = decoded(whole).pixels.astype(int)
    for end in range(1, len(whole), max(1, len(whole) // 150)):
        found = attempt(whole[:end])
        if isinstance(found, str):
            assert "cut off" in found or end < 12
            continue
        assert found.pixels.shape == expected.shape
        if name in ("blocks.jpg", "blocks.png"):  # where rows come one after the other, those that came are right
            came = int(64 * (end - 700) / len(whole)) // 16 * 16 - 16
            assert came <= 0 or np.abs(found.pixels - expected)[:came].max() < 40


@given(st.sampled_from(sorted(name for name in FILES if len(FILES[name]) < 3000)), st.data())
def test_changed_bytes_lead_to_pixels_or_to_a_sentence(name: str, data: st.DataObject) -> None:
    changed = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    found = attempt(bytes(changed), admit=small)
    assert found if isinstance(found, str) else found.pixels.shape[:2] == found.size


def small(size: tuple[int, int], count: int) -> None:
    if count > 1 << 20:
        raise UndecodableError("too large for a test")


@pytest.mark.parametrize("name", ["report-without-end.jpg", "blocks.jpg", "blocks-progressive.jpg", "blocks.png"])
def test_a_complete_picture_can_be_asked_for(name: str) -> None:
    whole = fixture(name) + (b"\xff\xd9" if "without-end" in name else b"")
    np.testing.assert_array_equal(decoded(whole, complete=True).pixels, decoded(whole).pixels)
    np.testing.assert_array_equal(decoded(whole + bytes(200_000), complete=True).pixels, decoded(whole).pixels)
    thumbnail = b"\xff\xe1\0\x0aExif\0\0\xff\xd9"  # its end is not the picture's
    for broken in (cut(whole, 80), whole[:2] + thumbnail + cut(whole, 80)[2:]):
        with pytest.raises(UndecodableError, match="cut off after"):
            decoded(broken if broken[0] == 0xFF else cut(whole, 80), complete=True)


# 12 bits in 16


@pytest.mark.parametrize("suffix", ["", "exif-6-"])
def test_12_bits_in_16_are_as_bright_as_8(suffix: str) -> None:
    """The browser shows nearly black, in which an annotator sees as little as the model would."""
    for kind in ("grey", "rgb"):
        bright, dark = (FILES[f"png/{suffix}{kind}-{bits}.png"] for bits in ("16", "12-in-16"))
        np.testing.assert_array_equal(decoded(dark).pixels, decoded(bright).pixels)


@pytest.mark.parametrize(("top", "shown"), [(200, 200), (1000, 250), (4095, 255), (4096, 16), (65535, 255)])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_the_range_of_grey_values_follows_their_bits(top: int, shown: int, format: str) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    found = decoded(encoded(Image.fromarray(values), format)).pixels
    assert found[0, 2].tolist() == [shown] * 3
    assert abs(int(found[0, 1, 0]) - shown // 2) <= 1


def test_colours_of_12_bits_in_a_tiff() -> None:
    values = np.array([[[4095, 0, 16], [2048, 4000, 100]]], np.uint16)
    tiff = tiff_of(values, 16)
    np.testing.assert_array_equal(decoded(tiff).pixels, values >> 4)
    np.testing.assert_array_equal(decoded(tiff_of(values * 16, 16)).pixels, values >> 4)


def tiff_of(values: Pixels, bits: int, *more: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF of one strip, uncompressed; `more` entries: tag, type, count, and four bytes."""
    data = values.tobytes()
    channels = values.shape[2] if values.ndim == 3 else 1

    def short(tag: int, value: int) -> tuple[int, int, int, bytes]:
        return tag, 3, 1, struct.pack("<HH", value, 0)

    head = 8 + len(data)
    entries = [short(256, values.shape[1]), short(257, values.shape[0]), short(259, 1), short(277, channels)]
    entries += [short(262, 2 if channels == 3 else 1), (273, 4, 1, struct.pack("<L", 8)), short(278, values.shape[0])]
    entries += [(279, 4, 1, struct.pack("<L", len(data))), *more]
    beyond = head + 2 + 12 * (len(entries) + 1) + 4
    entries += [(258, 3, 3, struct.pack("<L", beyond)) if channels == 3 else short(258, bits)]
    directory = b"".join(struct.pack("<HHL4s", *entry) for entry in sorted(entries))
    extra = struct.pack("<3H", *[bits] * 3)
    return b"II*\0" + struct.pack("<L", head) + data + struct.pack("<H", len(entries)) + directory + bytes(4) + extra


# TIFF, which browsers do not show: as viewers do


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_by_its_tag_and_by_nothing_else(orientation: int) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    tag = (274, 3, 1, struct.pack("<HH", orientation, 0))
    expected = decoded(jpeg_like(pixels, orientation)).pixels
    found = decoded(tiff_of(pixels, 8, tag))
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.size == expected.shape[:2]
    broken_exif = (34665, 4, 1, struct.pack("<L", 99999))
    np.testing.assert_array_equal(decoded(tiff_of(pixels, 8, tag, broken_exif)).pixels, expected)
    np.testing.assert_array_equal(decoded(tiff_of(pixels, 8, tag), turned=False).pixels, pixels)


def jpeg_like(pixels: Pixels, orientation: int) -> bytes:
    """A PNG that is turned as a JPEG is."""
    return encoded(Image.fromarray(pixels), "PNG", exif=exif(orientation))


def test_xmp_turns_no_tiff() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    data = encoded(Image.fromarray(pixels), "TIFF", tiffinfo={700: xmp(6)})
    assert xmp(6) in data
    np.testing.assert_array_equal(decoded(data).pixels, pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_a_cut_tiff_shows_its_first_rows_or_is_refused(compression: str) -> None:
    rows = np.random.default_rng(0).integers(1, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(rows), "TIFF", compression=compression)
    for percent in (30, 60, 95):
        found = attempt(cut(whole, percent))
        assert isinstance(found, str) or found.pixels.shape == rows.shape  # the directory may be behind the pixels


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# --- memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak of memory")
@pytest.mark.process
@pytest.mark.parametrize("enough", ENOUGH)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_memory_than_it_says(kind: str, enough: int | None) -> None:
    """Who admits a photo reserves what is told here: four that take more than they say end a container."""
    taken, allowed = measured()[f"{kind} {enough}"]
    assert taken <= allowed
