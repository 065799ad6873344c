"""Protects COCO JSON: polygons, run lengths, crowds, and damage that pycocotools would take on trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.coco import _mask
from tests.support.coco_files import SQUARE, SQUARE_PIXELS, compressed, run_lengths, write_set
from tests.support.drawn_pictures import HEIGHT, WIDTH, blank, save


def test_polygons_and_both_kinds_of_run_lengths(tmp_path: Path) -> None:
    mask = blank().astype(np.bool_)
    mask[0, 3:], mask[4, 1] = True, True
    root = write_set(tmp_path, {11: [SQUARE], 12: run_lengths(mask), 13: compressed(mask)})
    (sample,) = open_dataset("coco", root)
    assert (sample.name, list(sample.targets)) == ("a", [11, 12, 13])
    square = blank()
    square[SQUARE_PIXELS] = 1
    np.testing.assert_array_equal(sample.targets[11], square)
    np.testing.assert_array_equal(sample.targets[12], mask)
    np.testing.assert_array_equal(sample.targets[13], mask)


def test_the_parts_of_an_object_are_joined(tmp_path: Path) -> None:
    (sample,) = open_dataset("coco", write_set(tmp_path, {1: [SQUARE, [6, 4, 8, 4, 8, 6, 6, 6]]}))
    expected = blank()
    expected[SQUARE_PIXELS] = 1
    expected[4:, 6:] = 1
    np.testing.assert_array_equal(sample.targets[1], expected)


def test_crowds_are_ignored_except_under_the_object(tmp_path: Path) -> None:
    crowd = blank().astype(np.bool_)
    crowd[3:] = True
    (sample,) = open_dataset("coco", write_set(tmp_path, {1: [SQUARE], 2: run_lengths(crowd)}, crowds=(2,)))
    expected = np.where(crowd, -1, 0)
    expected[SQUARE_PIXELS] = 1
    assert list(sample.targets) == [1]
    np.testing.assert_array_equal(sample.targets[1], expected)


@given(arrays(np.bool_, (HEIGHT, WIDTH)))
def test_all_masks_come_back(mask: NDArray[np.bool_]) -> None:
    for segmentation in (run_lengths(mask), compressed(mask)):
        np.testing.assert_array_equal(_mask({"segmentation": segmentation}, (HEIGHT, WIDTH)), mask)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        ([[1, 1, 3, 3]], "three points or more"),
        ([[1, 1, 3, 3, 2]], "three points or more"),
        ([[1, 1, 3, float("nan"), 2, 2]], "points far outside"),
        ([[1, 1, 3, 1e9, 2, 2]], "points far outside"),
        ([["x"] * 6], "could not convert"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "its size is"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [-2, HEIGHT * WIDTH + 2]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "12"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "````````"}, "damaged segmentation"),
        ({"size": [HEIGHT, WIDTH]}, "damaged segmentation"),
    ],
)
def test_damaged_segmentations_are_named_when_they_are_read(tmp_path: Path, segmentation: Any, reason: str) -> None:
    dataset = open_dataset("coco", write_set(tmp_path, {7: segmentation}))
    with pytest.raises(ValueError, match=rf"a\.jpg: annotation 7 has a damaged segmentation \(.*{reason}|{reason}"):
        dataset.load(0)


def test_the_photo_must_have_the_size_that_the_file_says(tmp_path: Path) -> None:
    root = write_set(tmp_path, {1: [SQUARE]})
    save(root / "images" / "a.jpg", blank(9, 9, 3))
    with pytest.raises(ValueError, match="a: the mask has 8 × 6 pixels, the photo 9 × 9"):
        open_dataset("coco", root).load(0)


def test_photos_may_lie_in_folders_or_have_lost_theirs(tmp_path: Path) -> None:
    dataset = open_dataset("coco", write_set(tmp_path, {1: [SQUARE]}, name="sub/a.jpg"))
    assert dataset.load(0).name == "sub/a"
    (tmp_path / "images" / "sub" / "a.jpg").rename(tmp_path / "images" / "a.jpg")
    assert open_dataset("coco", tmp_path).load(0).name == "sub/a"


def test_other_json_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, {1: [SQUARE]}, crowds=(1,))
    with pytest.raises(ValueError, match="has no photo with an object"):
        open_dataset("coco", tmp_path)
    for content in ("[]", "{}", '{"images": [{}], "annotations": []}', '{"images": 3, "annotations": []}'):
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(ValueError, match="holds no COCO instances: it needs 'images' and 'annotations'"):
            open_dataset("coco", tmp_path)
