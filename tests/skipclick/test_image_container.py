"""Protects that a photo's file takes no longer to open, and no more memory, than its pixels: files of a million empty
parts, of scans that say nothing, and of claims."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from skipclick import image_container, image_file
from skipclick.image_container import TooManyPartsError
from skipclick.image_file import UndecodableError, decode, read_size
from tests.support.picture_files import app1, chunk, exif, with_chunks

GRAY = Image.fromarray(np.tile(np.arange(0, 240, 5, np.uint8), (40, 1)))  # 40 x 48


class Counted(BytesIO):
    """A file that counts how often it is read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def encoded(format: str, **options: object) -> bytes:
    file = BytesIO()
    GRAY.save(file, format, **options)
    return file.getvalue()


def long_jpeg(part: bytes, count: int) -> bytes:
    jpeg = encoded("JPEG")
    return jpeg[:2] + part * count + jpeg[2:]


def long_gif(part: bytes, count: int) -> bytes:
    gif = encoded("GIF")
    palette = 13 + (3 << ((gif[10] & 7) + 1))
    return gif[:palette] + part * count + gif[palette:]


def avif_of_boxes(count: int) -> bytes:
    return struct.pack(">L4s", 16, b"ftyp") + b"avif\0\0\0\0" + struct.pack(">L4s", 8, b"free") * count


LONG = {
    "JPEG of comments": lambda count: long_jpeg(b"\xff\xfe\0\2", count),
    "JPEG of EXIF": lambda count: long_jpeg(app1(exif(3)), count),
    "JPEG of tables": lambda count: long_jpeg(b"\xff\xdb\0\x43\0" + b"\1" * 64, count),
    "JPEG of restarts": lambda count: long_jpeg(b"\xff\xd0", count),
    "PNG of texts": lambda count: with_chunks(encoded("PNG"), *[chunk(b"tEXt", b"")] * count),
    "PNG of palettes": lambda count: with_chunks(encoded("PNG"), *[chunk(b"PLTE", b"")] * count),
    "PNG of empty pixels": lambda count: with_chunks(encoded("PNG"), *[chunk(b"IDAT", b"")] * count),
    "GIF of comments": lambda count: long_gif(b"\x21\xfe\0", count),
    "GIF of a comment's pieces": lambda count: long_gif(b"\x21\xfe" + b"\1a" * count + b"\0", 1),
    "GIF of control blocks": lambda count: long_gif(b"\x21\xf9\4\0\0\0\0\0", count),
    "AVIF of boxes": avif_of_boxes,
}


@pytest.mark.parametrize("name", LONG)
def test_a_file_of_many_parts_is_not_read_to_its_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_container, "_MAX_PARTS", 100)
    file = Counted(LONG[name](20_000))
    with pytest.raises(UndecodableError, match="more than 100 "):
        decode(file)
    assert file.reads < 3000
    if name != "PNG of empty pixels":  # at which that does not look
        with pytest.raises(UndecodableError, match="more than 100 "):
            read_size(file)


@pytest.mark.parametrize("name", [name for name in LONG if not name.startswith("AVIF")])
def test_as_many_parts_as_files_have_are_in_order(name: str) -> None:
    assert decode(BytesIO(LONG[name](300))).size == (40, 48)


@pytest.mark.parametrize("junk", [b"\xff", b"\xff\0"])
def test_what_precedes_a_marker_is_passed_over_in_little_time(junk: bytes) -> None:
    """Time with the square of a block's bytes would be minutes for this one."""
    file = Counted(long_jpeg(junk, (16 << 20) // len(junk)))
    assert decode(file).size == (40, 48)


def scans_of(jpeg: bytes) -> list[int]:
    return [at for at in range(len(jpeg)) if jpeg[at : at + 2] == b"\xff\xda"]


@pytest.mark.parametrize("size", [200, 1 << 18])
def test_of_too_many_scans_the_first_ones_count(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that says nothing takes a few bytes, and a pass over all pixels."""
    progressive = encoded("JPEG", progressive=True)
    last = progressive[scans_of(progressive)[-1] : progressive.rindex(b"\xff\xd9")]
    many = progressive[:-2] + last * (size // len(last)) + b"\xff\xd9"
    seen = image_container.open_container(BytesIO(many)).file.read()
    assert 0 < len(scans_of(seen)) <= 100
    assert seen.endswith(b"\xff\xd9")
    assert decode(BytesIO(many)).size == (40, 48)
    monkeypatch.setattr(image_container, "_MAX_SCANS", 2)
    assert len(scans_of(image_container.open_container(BytesIO(progressive)).file.read())) == 2


def tiff(order: str, tags: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """A classic TIFF with these tags (number, type, count, value), and data that begin behind its directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(f"{order}HHLL", *tag) for tag in sorted(tags))
    return mark + struct.pack(f"{order}LH", 8, len(tags)) + entries + bytes(4) + data


PHOTO = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (277, 4, 1, 1)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [(273, 4), (282, 5), (40_000, 12)])
def test_a_tiff_of_numbers_is_refused_before_objects_are_made_of_them(order: str, tag: tuple[int, int]) -> None:
    """Of strips that are nowhere, of resolutions, of anything."""
    count = 600_000
    many = tiff(order, [*PHOTO, (*tag, count, 8 + 2 + 12 * 7 + 4)], bytes(count * 8))
    with pytest.raises(TooManyPartsError, match="600006 numbers"):
        image_container.open_container(BytesIO(many))
    with pytest.raises(UndecodableError):
        decode(BytesIO(many))


def test_a_tiff_of_entries_is_refused() -> None:
    many = tiff("<", [*PHOTO, *((30_000 + number, 1, 1, 0) for number in range(5000))])
    with pytest.raises(TooManyPartsError, match="5006 entries"):
        image_container.open_container(BytesIO(many))
    large = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60)
    with pytest.raises(TooManyPartsError, match=f"{1 << 60} entries"):
        image_container.open_container(BytesIO(large))
    with pytest.raises(UndecodableError):
        decode(BytesIO(b"II+\0\x08\0\0\0" + struct.pack("<Q", (1 << 64) - 1)))


@pytest.mark.parametrize("side", [5008, 40_000])
def test_the_tiles_of_a_tiff_are_not_larger_than_the_photo(side: int) -> None:
    """One is decoded as a whole, whatever part of it the photo has."""
    pixels = zlib.compress(bytes(side))
    tags = [tag for tag in PHOTO if tag[0] != 259] + [(259, 4, 1, 8), (322, 4, 1, side), (323, 4, 1, side)]
    place = 8 + 2 + 12 * (len(tags) + 2) + 4
    with pytest.raises(UndecodableError, match=f"tiles of {side} x {side} pixels"):
        decode(BytesIO(tiff("<", [*tags, (324, 4, 1, place), (325, 4, 1, len(pixels))], pixels)))


def test_the_tiles_of_a_tiff_count_as_memory() -> None:
    side = 4096
    pixels = zlib.compress(bytes(side * side))
    tags = [tag for tag in PHOTO if tag[0] != 259] + [(259, 4, 1, 8), (322, 4, 1, side), (323, 4, 1, side)]
    place = 8 + 2 + 12 * (len(tags) + 2) + 4
    asked: list[int] = []
    file = BytesIO(tiff("<", [*tags, (324, 4, 1, place), (325, 4, 1, len(pixels))], pixels))
    assert decode(file, admit=lambda size, num_bytes: asked.append(num_bytes)).size == (64, 64)
    assert asked[0] > side * side


def test_run_lengths_of_a_bmp_are_followed_for_small_pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a step in Python, and nothing but a byte or two in the file."""
    rows = (bytes([48, 7]) + b"\0\0") * 40 + b"\0\1"
    head = struct.pack("<LLLHHLLLLLL", 40, 48, 40, 1, 8, 1, len(rows), 0, 0, 256, 0) + bytes(range(256)) * 4
    bmp = b"BM" + struct.pack("<LLL", 14 + len(head) + len(rows), 0, 14 + len(head)) + head + rows
    assert decode(BytesIO(bmp)).size == (40, 48)
    monkeypatch.setattr(image_file, "_MAX_RLE_PIXELS", 40 * 48 - 1)
    with pytest.raises(UndecodableError, match="save it as PNG"):
        decode(BytesIO(bmp))
