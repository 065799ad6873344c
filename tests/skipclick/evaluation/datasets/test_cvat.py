"""Protects exports of CVAT: masks by its own coder come back to the pixel, and nothing is left out in silence."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.cvat import Reason
from skipclick.evaluation.datasets.left_out import count_by_reason
from tests.support.cvat_export import image, mask_shape, polygon_shape, shape, write_coco, write_xml
from tests.support.drawn_pictures import HEIGHT, WIDTH, blank, save
from train.sources import open_sources

Mask = NDArray[np.bool_]


def part(rows: slice, columns: slice) -> Mask:
    mask = blank() > 0
    mask[rows, columns] = True
    return mask


FIRST, SECOND = part(slice(1, 4), slice(2, 5)), part(slice(3, 6), slice(4, 8))


def objects(root: Path, layout: str = "cvat") -> list[NDArray[np.int8]]:
    (sample,) = open_dataset(layout, root)
    return list(sample.targets.values())


def left_out(root: Path) -> dict[str, int]:
    """By reason, of the file and of its photos."""
    dataset = open_dataset("cvat", root)
    found = [*dataset.left_out, *(one for sample in dataset for one in sample.left_out)]
    return {one.reason: one.count for one in count_by_reason(found)}


@given(arrays(np.bool_, (HEIGHT, WIDTH)).filter(np.any))
def test_every_mask_comes_back(mask: Mask) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (target,) = objects(write_xml(Path(folder), image("a.jpg", mask_shape(mask))))
    np.testing.assert_array_equal(target, mask)


def test_masks_and_polygons_that_overlap_keep_their_pixels(tmp_path: Path) -> None:
    square = polygon_shape([(2, 1), (5, 1), (5, 4), (2, 4)])
    first, second = objects(write_xml(tmp_path, image("a.jpg", square, mask_shape(SECOND))))
    np.testing.assert_array_equal(first, FIRST)
    np.testing.assert_array_equal(second, SECOND)


def test_shapes_of_a_group_are_one_object_of_each_label(tmp_path: Path) -> None:
    shapes = [
        mask_shape(FIRST, group_id=4),
        mask_shape(SECOND, group_id=4),
        mask_shape(SECOND, label="pole", group_id=4),
        mask_shape(FIRST, group_id=0),
    ]
    grouped, pole, alone = objects(write_xml(tmp_path, image("a.jpg", *shapes)))
    np.testing.assert_array_equal(grouped, FIRST | SECOND)
    np.testing.assert_array_equal(pole, SECOND)
    np.testing.assert_array_equal(alone, FIRST)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape("box", label="ski", xtl=1, ytl=1, xbr=3, ybr=3), Reason.OTHER_SHAPE),
        (shape("ellipse", label="ski", cx=1, cy=1, rx=3, ry=3), Reason.OTHER_SHAPE),
        (mask_shape(FIRST, rle="1, 2"), Reason.DAMAGED),
        (mask_shape(FIRST, rle="-1, 10"), Reason.DAMAGED),
        (mask_shape(FIRST, rle="9" * 40), Reason.DAMAGED),
        (mask_shape(FIRST, rle=""), Reason.DAMAGED),
        (mask_shape(FIRST, left=6), Reason.DAMAGED),
        (mask_shape(FIRST, width="x"), Reason.DAMAGED),
        (mask_shape(FIRST, rle="9"), Reason.EMPTY),
        (polygon_shape([(1, 1), (2, 2)]), Reason.NO_POLYGON),
        (polygon_shape([(1, 1), (2, 2), (float("nan"), 0)]), Reason.NO_POLYGON),
        (polygon_shape([(1, 1), (1e9, 2), (3, 4)]), Reason.NO_POLYGON),
        (shape("polygon", label="ski", points="1,1;2"), Reason.NO_POLYGON),
        (polygon_shape([(50, 50), (55, 50), (55, 55)]), Reason.EMPTY),
    ],
)
def test_a_shape_that_cannot_be_used_leaves_the_others_alone(tmp_path: Path, bad: str, reason: Reason) -> None:
    root = write_xml(tmp_path, image("a.jpg", bad, mask_shape(SECOND)))
    (target,) = objects(root)
    np.testing.assert_array_equal(target, SECOND)
    assert left_out(root) == {reason: 1}


def test_photos_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    fine = mask_shape(FIRST)
    images = [
        image("a.jpg", fine), image("gone.jpg", fine), image("", fine), image("b.jpg"),
        image("c.jpg", fine, width=99), image("d.jpg", fine, height=None),
    ]  # fmt: skip
    root = write_xml(tmp_path, *images, photos=("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    expected = [Reason.NOT_FOUND, Reason.NO_NAME, Reason.NO_SHAPE, Reason.OTHER_SIZE, Reason.NO_SIZE]
    assert {reason: count for reason, count in left_out(root).items() if reason in set(Reason)} == dict.fromkeys(
        expected, 1
    )


def test_photos_of_a_project_lie_in_folders_of_their_subsets(tmp_path: Path) -> None:
    images = [image("a.jpg", mask_shape(FIRST), subset="train"), image("a.jpg", mask_shape(SECOND), subset="val")]
    root = write_xml(tmp_path, *images, photos=("train/a.jpg", "val/a.jpg"))
    dataset = open_dataset("cvat", root)
    masks = [next(iter(sample.targets.values())) for sample in dataset]
    np.testing.assert_array_equal(masks[0], FIRST)
    np.testing.assert_array_equal(masks[1], SECOND)


def test_a_file_and_a_folder_may_be_named(tmp_path: Path) -> None:
    write_xml(tmp_path, image("a.jpg", mask_shape(FIRST)))
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(ValueError, match=str(Reason.NOT_FOUND)):
        open_dataset("cvat", tmp_path)
    assert len(open_dataset("cvat", Path(f"{tmp_path / 'annotations.xml'}:{tmp_path / 'photos'}"))) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not XML that can be read"),
        ("<annotations><image", "is not XML that can be read"),
        ("<html/>", "is not an export of CVAT: it begins with <html>"),
        ("<annotations/>", "has no photo with a mask or polygon"),
        ("<annotations><track id='0'/></annotations>", "holds tracks of a video"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "is not XML that can be read"),
    ],
)
def test_what_is_no_such_export_is_said_in_one_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        open_dataset("cvat", tmp_path)
    assert "\n" not in str(error.value)


def test_both_exports_hold_the_same_objects(tmp_path: Path) -> None:
    """As a set to measure on, and as a source to train on."""
    xml = write_xml(tmp_path / "xml", image("a.jpg", mask_shape(FIRST), mask_shape(SECOND)))
    coco = write_coco(tmp_path / "coco", {"a.jpg": [FIRST, SECOND]})
    for one, other in zip(objects(xml), objects(coco, "coco-with-crowds"), strict=True):
        np.testing.assert_array_equal(one, other)
    scenes = []
    for spec in (str(xml), f"cvat:{xml}", f"coco-with-crowds:{coco}"):
        (source,) = open_sources([spec], "all").parts
        scenes.append(source.photos[0].load()[1])
        assert source.kind in ("cvat", "coco-with-crowds")
    for scene in scenes:
        assert [scene.mask(one).tolist() for one in scene.objects] == [FIRST.tolist(), SECOND.tolist()]


def test_json_beside_the_xml_is_not_mistaken(tmp_path: Path) -> None:
    root = write_xml(tmp_path, image("a.jpg", mask_shape(FIRST)))
    (root / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match="has no photo with an object"):
        open_sources([str(root)], "all")
    assert open_sources([f"cvat:{root}"], "all").parts[0].kind == "cvat"


def test_photos_of_one_stem_have_names_of_their_own(tmp_path: Path) -> None:
    images = [image(name, mask_shape(FIRST)) for name in ("a.jpg", "a.png", "b/c.jpg")]
    save(tmp_path / "images" / "b" / "c.jpg")
    root = write_xml(tmp_path, *images, photos=("a.jpg", "a.png"))
    names: list[Any] = [photo.name for photo in open_dataset("cvat", root).photos]
    assert names == ["a.jpg", "a.png", "b/c"]
