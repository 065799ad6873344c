"""Protects the reading of orientations: any bytes give one, soon; what is read is held against Chromium elsewhere."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from skipclick.exif import orientation
from tests.support.picture_files import LONG, ORIENTATION, SHORT, exif, odd_exif, tiff


@given(st.binary(max_size=200), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_bytes_have_an_orientation(data: bytes, head: bytes) -> None:
    assert orientation(head + data) in range(1, 9)


@given(st.sampled_from(list(odd_exif())), st.integers(0, 300), st.integers(0, 255))
def test_a_changed_byte_does_no_harm(odd: tuple[str, bytes], place: int, value: int) -> None:
    data = bytearray(odd[1])
    if place < len(data):
        data[place] = value
    assert orientation(bytes(data)) in range(1, 9)


def test_the_second_directory_is_looked_into_once() -> None:
    """A file of 64 KB can name thousands of directories with thousands of entries each."""
    data = tiff([(0x8769, LONG, (8,))] * 5000) + exif(6)
    later = len(data) - len(exif(6)) + 8
    data = tiff([(0x8769, LONG, (8,))] * 4999 + [(0x8769, LONG, (later,))]) + exif(6)
    assert orientation(data) == 1
    assert orientation(tiff([(0x8769, LONG, (later,))] * 5000) + exif(6)) == 6


def test_what_is_written_is_read() -> None:
    for order in "<>":
        for value in range(1, 9):
            assert orientation(exif(value, order=order)) == value
    assert orientation(tiff([(ORIENTATION, SHORT, (6,))])[:22]) == 6
    assert orientation(b"II*\0" + struct.pack("<L", 0xFFFFFFFF)) == 1
