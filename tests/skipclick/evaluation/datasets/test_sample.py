"""Protects how pictures are read: the pixels of the released code, ids, EXIF, and what is said of damaged files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.datasets.sample import (
    NO_OBJECT,
    NO_PIXEL,
    Content,
    Photo,
    instance_targets,
    mask_targets,
    read_ids,
    read_photo,
)
from tests.support.drawn_pictures import PHOTO, blank, save, save_palette, voc_palette

REAL_PHOTOS = sorted((Path(__file__).parents[3] / "e2e" / "photos").glob("*.jpg"))


@pytest.mark.parametrize("path", REAL_PHOTOS, ids=lambda path: path.stem)
def test_photos_have_the_pixels_that_opencv_reads(path: Path) -> None:
    """The released code reads by OpenCV, and figures are to be compared with its figures."""
    np.testing.assert_array_equal(read_photo(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1"])
def test_photos_of_every_kind_become_rgb_as_opencv_makes_them(tmp_path: Path, mode: str) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR_RGB))


def test_photos_are_turned_as_exif_says_unless_masks_were_drawn_on_them_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90°
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), np.rot90(PHOTO, -1))
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png", turned=False), PHOTO)
    height, width = PHOTO.shape[:2]
    for sizes, expected in (
        ([(height, width)], PHOTO),
        ([(9, 9), (height, width), (width, height)], PHOTO),
        ([(width, height), (height, width)], np.rot90(PHOTO, -1)),
        ([(9, 9)], np.rot90(PHOTO, -1)),
    ):
        np.testing.assert_array_equal(read_photo(tmp_path / "a.png", mask_sizes=sizes), expected)
    square = np.ascontiguousarray(PHOTO[:, :height])
    Image.fromarray(square).save(tmp_path / "s.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "s.png", mask_sizes=[(height, height)]), np.rot90(square, -1))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(ValueError, match=r"a\.jpg: there is no such file"):
        read_photo(path)
    path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as a picture"):
        read_photo(path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("whole.jpg", "whole.png"):
        save(tmp_path / name, noise)
        cut = tmp_path / f"cut{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:-500])
        with pytest.raises(ValueError, match=f"cut{name}: cannot be read as a picture"):
            read_photo(cut)


def test_ids_have_8_or_16_bits_and_may_have_a_palette(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2] = 3, 200
    save(tmp_path / "8.png", ids)
    save(tmp_path / "16.png", ids.astype(np.uint16) * 300)
    save_palette(tmp_path / "p.png", ids, voc_palette())
    save(tmp_path / "1.png", ids > 0)
    np.testing.assert_array_equal(read_ids(tmp_path / "8.png"), ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "16.png"), ids.astype(np.uint16) * 300)
    np.testing.assert_array_equal(read_ids(tmp_path / "p.png"), ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "1.png"), ids > 0)


def test_ids_of_other_kinds_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "rgb.png", PHOTO)
    with pytest.raises(ValueError, match=r"rgb\.png: a mask of instance ids has one channel, not 3"):
        read_ids(tmp_path / "rgb.png")
    save(tmp_path / "float.tif", np.zeros((6, 8), np.float32))
    with pytest.raises(ValueError, match=r"float\.tif: a mask of instance ids has 8 or 16 bits"):
        read_ids(tmp_path / "float.tif")


@given(arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 5)))
def test_instances_share_the_picture_out(ids: NDArray[np.uint16]) -> None:
    """Each pixel belongs to the object of its id, or to none; ignored ones are ignored by all objects."""
    targets = instance_targets(ids, ignored=5)
    assert set(targets) == set(np.unique(ids).tolist()) - {0, 5}
    for object_id, target in targets.items():
        assert target.dtype == np.int8
        np.testing.assert_array_equal(target == 1, ids == object_id)
        np.testing.assert_array_equal(target == -1, ids == 5)


def test_an_object_counts_where_it_overlaps_what_is_ignored() -> None:
    first, second, ignored = (np.array([row], np.bool_) for row in ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]))
    targets = mask_targets({4: first, 9: second}, ignored)
    assert targets[4].tolist() == [[1, 1, -1, -1]]
    assert targets[9].tolist() == [[0, 1, 1, -1]]


def test_a_sample_has_the_objects_that_have_pixels() -> None:
    target = blank().astype(np.int8)
    target[0] = 1
    photo = Photo("a", lambda: Content(PHOTO, {1: target, 2: -target}), category="skis")
    sample = photo.load()
    assert (sample.name, list(sample.targets), sample.category) == ("a", [1], "skis")
    assert sample.left_out == (LeftOut(NO_PIXEL, "a, object 2"),)
    assert Photo("a", lambda: Content(PHOTO, {})).load().left_out == (LeftOut(NO_OBJECT, "a"),)


def test_a_mask_must_have_the_size_of_its_photo() -> None:
    with pytest.raises(ValueError, match="b: the mask has 8 × 5 pixels, the photo 8 × 6"):
        Photo("b", lambda: Content(PHOTO, {1: blank(5, 8).astype(np.int8)})).load()
