"""Image files reduced to what determines their pixels, before a decoder sees them.

Decoders stumble over metadata: text with a wrong checksum, a broken profile, an orientation where no browser looks for
it. Here each format's container is parsed just far enough to leave metadata out, to find the orientation that browsers
apply, and to add an end marker that is missing. Only headers are copied; pixels are read from the file on demand.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from skipclick.exif import UPRIGHT, orientation

_Part = bytes | tuple[int, int]
"""Bytes, or where in the file they are: start and length, at most up to the file's end."""

_BLOCK = 1 << 16
_MAX_EXIF_BYTES = 1 << 20
_MAX_BOX_BYTES = 1 << 22
_MAX_FILE_BYTES = 1 << 62
_MAX_PARTS = 100_000
"""Limit on segments, chunks, boxes or blocks: a file may consist of millions of empty ones."""
_MAX_SCANS = 100
"""Of a JPEG. Encoders write about ten; each takes a pass over all pixels, even if it has only a few bytes."""
_MAX_NUMBERS = 500_000
"""In a TIFF's directory; 80 megapixels have fewer strips or tiles."""
_MAX_TAGS = 4096


class TooManyPartsError(ValueError):
    """The file has more parts than any photo: parsing them would take longer than decoding the pixels."""


@dataclass(frozen=True)
class Container:
    """An image file without what does not affect its pixels."""

    file: BinaryIO
    orientation: int | None
    """1 to 8 as EXIF numbers them; None where the decoder has to find it, in boxes or tags."""
    bits: int | None = None
    """Per value, if the container says so."""
    interlaced: bool = False
    first_frame: int = 0
    """Index of the frame that is shown first: 1 if the still picture is not part of the animation."""


def open_container(file: BinaryIO) -> Container:
    """The container of a seekable `file`, of which only the headers before the pixels are read.

    Raises `TooManyPartsError`, also later while `Container.file` is read, for a file that would take a decoder more
    time or memory than any photo.
    """
    start = _read(file, 0, 12)
    if start.startswith(b"\xff\xd8\xff"):
        return _open_jpeg(file)
    if start.startswith(_PNG_SIGNATURE):
        return _open_png(file)
    if start[4:8] == b"ftyp":
        return _open_avif(file)
    is_tiff = start[:4] in _TIFF_SIGNATURES
    if is_tiff:
        _check_tiff(file, start)
    elif start.startswith(b"GIF8"):
        _check_gif(file)
    file.seek(0)
    return Container(file, None if is_tiff else UPRIGHT)


def is_cut_off(file: BinaryIO) -> bool:
    """Whether an image file is truncated, judging by its own data; False for a TIFF, whose data do not tell."""
    start = _read(file, 0, 12)
    if not start.startswith((b"\xff\xd8\xff", _PNG_SIGNATURE, b"RIFF", b"GIF8", b"BM")) and start[4:8] != b"ftyp":
        return False  # nor is the file fetched to its end
    size = file.seek(0, io.SEEK_END)
    if start.startswith(b"\xff\xd8\xff"):
        return not _has_jpeg_end(file, _read_jpeg_head(file)[2])
    if start.startswith(_PNG_SIGNATURE):
        return all(name != b"IEND" for name, _, _ in _png_chunks(file))
    if start[4:8] == b"ftyp":
        return any(at + length > size for _, at, length in _boxes(file))
    if start.startswith(b"RIFF"):
        return len(start) < 12 or struct.unpack("<L", start[4:8])[0] + 8 > size
    if start.startswith(b"GIF8"):
        return b"\x3b" not in _read(file, max(0, size - _BLOCK), _BLOCK)
    return len(start) < 12 or struct.unpack("<L", start[2:6])[0] > size


class _Parts(io.RawIOBase):
    """A seekable file made of parts, each of which is requested when it is reached."""

    def __init__(self, file: BinaryIO, parts: Iterator[_Part]) -> None:
        self._file = file
        self._remaining = parts
        self._starts: list[int] = []
        self._parts: list[_Part] = []
        self._end = 0
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known before it is reached")
        self._place = max(0, offset + (self._place if whence == io.SEEK_CUR else 0))
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        while self._place >= self._end:
            part = next(self._remaining, None)
            if part is None:
                return 0
            self._starts.append(self._end)
            self._parts.append(part)
            self._end += len(part) if isinstance(part, bytes) else part[1]
        index = bisect_right(self._starts, self._place) - 1
        data = self._read_part(self._parts[index], self._place - self._starts[index], len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _read_part(self, part: _Part, offset: int, count: int) -> bytes:
        if isinstance(part, bytes):
            return part[offset : offset + count]
        start, length = part
        return _read(self._file, start + offset, min(count, length - offset))


def _of_parts(file: BinaryIO, parts: Iterator[_Part]) -> BinaryIO:
    return io.BufferedReader(_Parts(file, parts), _BLOCK)


def _too_many(parts: str) -> str:
    return f"it has more than {_MAX_PARTS:,} {parts}"


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


# JPEG

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")  # any number of 0xff may precede it
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))
_SCAN = re.compile(rb"\xff\xda")
_START_OF_SCAN, _EXIF_SEGMENT, _JFIF_SEGMENT, _ADOBE_SEGMENT = 0xDA, 0xE1, 0xE0, 0xEE
_METADATA_SEGMENTS = (*range(0xE0, 0xF0), 0xFE)
_JPEG_END = b"\xff\xd9"
_SEGMENT_BETWEEN_SCANS = re.compile(rb"\xff[\xc4\xcc\xda\xdb\xdd\xe0-\xef\xfe]")


def _open_jpeg(file: BinaryIO) -> Container:
    head, turn, scans = _read_jpeg_head(file)
    return Container(_of_parts(file, _jpeg_parts(file, head, scans)), turn)


def _read_jpeg_head(file: BinaryIO) -> tuple[bytes, int, int]:
    """The header up to the first scan's data, without metadata; the orientation; where that data begins.

    Only the two metadata segments that define the colour space stay: JFIF's and Adobe's, if they are long enough.
    """
    head, turn, at = bytearray(b"\xff\xd8"), None, 2
    for _ in range(_MAX_PARTS):
        if (found := _jpeg_marker(file, at)) is None:
            break
        marker, at = found
        if marker in _WITHOUT_LENGTH:
            continue
        length_bytes = _read(file, at, 2)
        length = int.from_bytes(length_bytes, "big")
        data = _read(file, at + 2, max(0, length - 2))
        at += 2 + len(data)
        if len(data) + 2 < length:
            break  # cut off before its pixels
        if marker == _EXIF_SEGMENT and data.startswith(b"Exif\0") and len(data) > 6 and turn is None:
            turn = orientation(data[6:])  # the first counts, even without one; the prefix's last byte may be any
        if marker not in _METADATA_SEGMENTS or _defines_colours(marker, data):
            head += bytes([0xFF, marker]) + length_bytes + data
        if marker == _START_OF_SCAN:
            break
    else:
        raise TooManyPartsError(_too_many("segments"))
    return bytes(head), turn or UPRIGHT, at


def _has_jpeg_end(file: BinaryIO, at: int) -> bool:
    """Whether an end marker follows; the data of scans cannot contain one."""
    while len(block := _read(file, at, _BLOCK)) > 1:
        if _JPEG_END in block:
            return True
        at += len(block) - 1  # its last byte may begin the marker
    return False


def _jpeg_marker(file: BinaryIO, at: int) -> tuple[int, int] | None:
    """The next marker and where it ends; whatever precedes it is skipped, as in browsers."""
    while True:
        block = _read(file, at, 4096)
        if found := _JPEG_MARKER.search(block):
            return found[1][0], at + found.end()
        if len(block) < 4096:
            return None
        at += len(block) - 1  # its last byte may begin the marker


def _defines_colours(marker: int, data: bytes) -> bool:
    if marker == _JFIF_SEGMENT:
        return data.startswith(b"JFIF\0") and len(data) >= 14
    return marker == _ADOBE_SEGMENT and data.startswith(b"Adobe") and len(data) >= 12


def _jpeg_parts(file: BinaryIO, head: bytes, scans: int) -> Iterator[_Part]:
    """The header, at most `_MAX_SCANS` scans, and always an end marker: a decoder that waits for more bytes may
    withhold the last rows, or all of a progressive picture."""
    yield head
    at, step, left = scans, 2 * _BLOCK, _MAX_SCANS - 1
    while len(block := _read(file, at, 2 * step)) == 2 * step and left >= 0:
        length, left = _within_scans(block[: step + 1], left)  # the last byte may begin a marker
        yield at, min(length, step)
        at += step
    if left >= 0:
        yield at, min(_without_partial_segment(block), _within_scans(block, left)[0])
    yield _JPEG_END


def _within_scans(block: bytes, left: int) -> tuple[int, int]:
    """How many bytes of a block belong to the `left` more scans that are allowed, and how many scans are allowed after
    it; -1 if one too many begins in the block."""
    for found in _SCAN.finditer(block):
        left -= 1
        if left < 0:
            return found.start(), left
    return len(block), left


def _without_partial_segment(end: bytes) -> int:
    """The length of a file's last bytes without an incomplete segment at their end, such as a table between two scans.
    The longest segment has half as many bytes as are searched."""
    for found in _SEGMENT_BETWEEN_SCANS.finditer(end):
        at = found.start()
        if at + 4 > len(end) or at + 2 + int.from_bytes(end[at + 2 : at + 4], "big") > len(end):
            return at
    return len(end)


# PNG

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _open_png(file: BinaryIO) -> Container:
    parts: list[_Part] = [_PNG_SIGNATURE]
    found, header, colours, animation, in_animation = None, b"", 0, list[_Part](), False
    chunks = _png_chunks(file)
    for name, at, length in chunks:
        whole = (at - 8, length + 12)
        if name == b"IHDR" and not header:
            header = _read(file, at, 13)
            parts.append(whole)
        elif name == b"IDAT":
            is_separate = bool(animation) and not in_animation
            kept = (b"IDAT", *_ANIMATION) if is_separate else (b"IDAT",)
            # Where the still picture is the animation's first frame, it is all that counts.
            parts += [*(animation if is_separate else ()), whole]
            file_parts = _png_parts(parts, chunks, kept)
            bits, interlaced = (header[8], header[12] != 0) if len(header) == 13 else (None, False)
            return Container(_of_parts(file, file_parts), found or UPRIGHT, bits, interlaced, int(is_separate))
        elif name == b"PLTE":
            parts.append(whole)
            colours = length // 3
        elif name == b"tRNS" and _suits_colours(length, header, colours) and _checksum_fits(file, name, at, length):
            parts.append(whole)
        elif name == b"eXIf" and found is None and _checksum_fits(file, name, at, length):
            found = orientation(_read(file, at, min(length, _MAX_EXIF_BYTES)))  # the first counts
        elif name == b"acTL" and length == 8 and _read(file, at, 4) != bytes(4):
            animation = [whole]
        elif name == b"fcTL":
            in_animation = True
    return Container(_of_parts(file, iter(parts)), UPRIGHT)  # no pixels: the decoder says so


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the data and length of each chunk, up to the end or to what cannot be a chunk."""
    at = len(_PNG_SIGNATURE)
    for _ in range(_MAX_PARTS):
        head = _read(file, at, 8)
        if len(head) < 8 or not all(0x20 < byte < 0x7F for byte in head[4:]):
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], at + 8, length
        if head[4:] == b"IEND":
            return
        at += 12 + length
    raise TooManyPartsError(_too_many("chunks"))


def _png_parts(
    before: list[_Part], chunks: Iterator[tuple[bytes, int, int]], kept: tuple[bytes, ...]
) -> Iterator[_Part]:
    yield from before
    for name, at, length in chunks:
        if name in kept:
            yield at - 8, length + 12
        elif name == b"IEND":
            yield _PNG_END


def _suits_colours(length: int, header: bytes, colours: int) -> bool:
    """Whether a transparency of this length suits the colour type: one grey value, one colour, or a palette."""
    fitting = {0: length == 2, 2: length == 6, 3: length <= colours}
    return len(header) == 13 and fitting.get(header[9], False)


def _checksum_fits(file: BinaryIO, name: bytes, at: int, length: int) -> bool:
    check, left = zlib.crc32(name), length
    file.seek(at)
    while left and (block := file.read(min(left, _BLOCK))):
        check, left = zlib.crc32(block, check), left - len(block)
    return file.read(4) == check.to_bytes(4, "big")


# AVIF

_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def _open_avif(file: BinaryIO) -> Container:
    """The decoder applies the orientation in its boxes. That in its EXIF data, which browsers ignore, is hidden: the
    item gets another type of the same length, so that no offset changes."""
    for name, at, length in _boxes(file):
        if name == b"meta":
            head = _EXIF_ITEM.sub(rb"\1skip", _read(file, 0, min(at + length, _MAX_BOX_BYTES)))
            return Container(_of_parts(file, iter((head, (len(head), sys.maxsize)))), None)
    file.seek(0)
    return Container(file, None)


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of each top-level box."""
    at = 0
    for _ in range(_MAX_PARTS):
        if len(head := _read(file, at, 16)) < 8:
            return
        length, name = struct.unpack(">L4s", head[:8])
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: up to the end of the file; less than its own header: broken
            return
        yield name, at, length
        at += length
        if at > _MAX_FILE_BYTES:  # beyond any file
            return
    raise TooManyPartsError(_too_many("boxes"))


# TIFF

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BYTE_KINDS = (1, 2, 6, 7)
"""Types of tags whose values are bytes or texts: no decoder converts them to numbers."""


def _check_tiff(file: BinaryIO, start: bytes) -> None:
    """Raise `TooManyPartsError` for a first directory with more entries, or more numbers in them, than photos have: a
    decoder makes an object of each before it knows the photo's size."""
    order, is_big = ("<" if start.startswith(b"II") else ">"), b"+" in start[:4]
    at = struct.unpack(f"{order}Q", _read(file, 8, 8))[0] if is_big else struct.unpack(f"{order}L", start[4:8])[0]
    count, entry = (f"{order}Q", f"{order}HHQ8x") if is_big else (f"{order}H", f"{order}HHL4x")
    if at > _MAX_FILE_BYTES:
        raise ValueError("its directory lies outside the file")
    num_entries = struct.unpack(count, _read(file, at, struct.calcsize(count)))[0]
    if num_entries > _MAX_TAGS:
        raise TooManyPartsError(f"its directory has {num_entries} entries")
    entries = _read(file, at + struct.calcsize(count), num_entries * struct.calcsize(entry))
    whole = entries[: len(entries) - len(entries) % struct.calcsize(entry)]
    num_numbers = sum(number for _, kind, number in struct.iter_unpack(entry, whole) if kind not in _BYTE_KINDS)
    if num_numbers > _MAX_NUMBERS:
        raise TooManyPartsError(f"its directory has {num_numbers} numbers")


# GIF


def _check_gif(file: BinaryIO) -> None:
    """Raise `TooManyPartsError` for more blocks before the first picture than any comment or profile has."""
    flags = _read(file, 10, 1)
    at = 13 + (3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0)
    file.seek(at)
    for _ in range(_MAX_PARTS):
        kind = file.read(1)
        if kind in (b"", b",", b";"):
            return
        if kind == b"!":
            file.read(1)
            _skip_blocks(file)
    raise TooManyPartsError(_too_many("blocks"))


def _skip_blocks(file: BinaryIO) -> None:
    for _ in range(_MAX_PARTS):
        length = file.read(1)
        if length in (b"", b"\0"):
            return
        file.seek(length[0], io.SEEK_CUR)
    raise TooManyPartsError(_too_many("blocks"))
