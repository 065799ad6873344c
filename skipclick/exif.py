"""The orientation that EXIF data gives a picture, read as Chromium reads it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

UPRIGHT = 1

_ORIENTATION, _EXIF_DIRECTORY = 0x0112, 0x8769
_SHORT, _LONG = 3, 4


def orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8, in a TIFF structure without the "Exif" prefix; 1 if it has none or is broken.

    The first orientation entry that holds one SHORT from 1 to 8 counts. As in Chromium it may also stand in the Exif
    directory that the main directory points to, where it does not belong; directories of thumbnails are not read. Of a
    truncated structure the complete entries count.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    exif_seen = False
    for tag, kind, number, value in _entries(tiff, order, struct.unpack_from(f"{order}L", tiff, 4)[0]):
        if found := _orientation(order, tag, kind, number, value):
            return found
        if tag == _EXIF_DIRECTORY and (kind, number) == (_LONG, 1) and not exif_seen:
            exif_seen = True  # no second one, so that a file cannot make this slow
            for entry in _entries(tiff, order, struct.unpack(f"{order}L", value)[0]):
                if found := _orientation(order, *entry):
                    return found
    return UPRIGHT


def _entries(tiff: bytes, order: str, start: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, type, number of values, and the four bytes that hold a short value, of a directory's complete entries."""
    if start + 2 > len(tiff):
        return
    claimed = struct.unpack_from(f"{order}H", tiff, start)[0]
    for index in range(min(claimed, (len(tiff) - start - 2) // 12)):
        yield struct.unpack_from(f"{order}HHL4s", tiff, start + 2 + 12 * index)


def _orientation(order: str, tag: int, kind: int, number: int, value: bytes) -> int | None:
    if (tag, kind, number) != (_ORIENTATION, _SHORT, 1):
        return None
    found: int = struct.unpack(f"{order}H", value[:2])[0]
    return found if 1 <= found <= 8 else None
