"""Protects masks on their way to Label Studio's bitmask tags and back."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from skipclick import bitmask
from skipclick.masks import BoxMask

masks = array_shapes(min_dims=2, max_dims=2, max_side=40).flatmap(lambda shape: arrays(np.bool_, shape))


def picture(url: str) -> Image.Image:
    prefix, _, text = url.partition(",")
    assert prefix == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def url_of(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@given(mask=masks)
def test_a_bitmask_is_black_on_transparent(mask: NDArray[np.bool_]) -> None:
    rgba = np.asarray(picture(bitmask.encode(BoxMask.of(mask))).convert("RGBA"))
    np.testing.assert_array_equal(rgba[:, :, 3], np.where(mask, 255, 0))
    assert not rgba[:, :, :3].any()


@given(mask=masks)
def test_masks_come_back(mask: NDArray[np.bool_]) -> None:
    for url in (bitmask.encode(BoxMask.of(mask)), bitmask.encode_opaque(BoxMask.of(mask))):
        assert bitmask.size_of(url) == mask.shape
        np.testing.assert_array_equal(bitmask.decode(url, *mask.shape), mask)


def test_the_opaque_one_is_white_on_black() -> None:
    mask = np.array([[True, False]])
    np.testing.assert_array_equal(np.asarray(picture(bitmask.encode_opaque(BoxMask.of(mask))).convert("L")), [[255, 0]])


def test_of_a_drawn_edge_a_pixel_counts_that_is_half_covered() -> None:
    alpha = np.array([[0, 127, 128, 255]], np.uint8)
    rgba = np.dstack([np.zeros((1, 4, 3), np.uint8), alpha])
    np.testing.assert_array_equal(bitmask.decode(url_of(Image.fromarray(rgba)), 1, 4), [[False, False, True, True]])


def test_a_mask_of_another_size_is_refused_before_it_is_decoded() -> None:
    url = url_of(Image.new("L", (4000, 3000)))
    with pytest.raises(ValueError, match="4000 x 3000 pixels, its image 10 x 10"):
        bitmask.decode(url, 10, 10)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not a data URL"),
        ("data:image/jpeg;base64,AAAA", "not a data URL"),
        ("data:image/png;base64,", "not a PNG"),
        ("data:image/png;base64,?", "not base64"),
        (url_of(Image.new("L", (4, 4)), "BMP"), "not a PNG"),
        (url_of(Image.new("L", (4, 4)))[:82], "cannot be decoded"),
    ],
)
def test_what_is_no_bitmask_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bitmask.decode(url, 4, 4)
