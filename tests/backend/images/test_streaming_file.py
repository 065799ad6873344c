"""Protects that a download reads like a file, takes no more than is asked for, and passes on what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backend.images.decode import ImageError, decode_image
from backend.images.streaming_file import streaming_file

OPERATION = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 50)),
    st.tuples(st.just("seek"), st.integers(0, 60), st.sampled_from([SEEK_SET, SEEK_CUR])),
    st.tuples(st.just("end"), st.integers(-20, 5)),
)


@given(st.lists(st.binary(min_size=1, max_size=20)), st.lists(OPERATION))
def test_it_reads_like_a_file_in_memory(chunks: list[bytes], operations: list[tuple[str, int] | tuple]) -> None:
    expected, found = BytesIO(b"".join(chunks)), streaming_file(iter(chunks))
    for operation in operations:
        if operation[0] == "read":
            assert found.read(operation[1]) == expected.read(operation[1])
        elif operation[0] == "seek":
            assert found.seek(*operation[1:]) == expected.seek(*operation[1:])
        else:
            distance = max(operation[1], -len(expected.getvalue()))
            assert found.seek(distance, SEEK_END) == expected.seek(distance, SEEK_END)
        assert found.tell() == expected.tell()


def photo() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def chunked(data: bytes, taken: list[int], size: int = 1 << 14) -> Iterator[bytes]:
    for first in range(0, len(data), size):
        taken.append(first)
        yield data[first : first + size]


def test_a_photo_is_decoded_from_its_chunks() -> None:
    data = photo()
    whole = decode_image(BytesIO(data), 10**6, 300)
    parts = decode_image(streaming_file(chunked(data, [])), 10**6, 300)
    np.testing.assert_array_equal(parts.pixels, whole.pixels)
    assert parts.size == whole.size == (600, 800)


def test_what_is_refused_by_its_head_is_not_downloaded() -> None:
    taken: list[int] = []
    with pytest.raises(ImageError, match=r"IMAGE_MAX_PIXELS=1000 "):
        decode_image(streaming_file(chunked(photo(), taken)), 1000)
    assert len(taken) <= 2
    taken.clear()
    with pytest.raises(ImageError, match="a file of unknown type"):
        decode_image(streaming_file(chunked(b"x" * 1_000_000, taken)), 1000)
    assert len(taken) <= 2


def test_a_download_that_fails_says_so_itself() -> None:
    def broken() -> Iterator[bytes]:
        yield photo()[:50_000]
        raise ImageError("it broke off")

    with pytest.raises(ImageError, match=r"^it broke off$"):
        decode_image(streaming_file(broken()), 10**6)
