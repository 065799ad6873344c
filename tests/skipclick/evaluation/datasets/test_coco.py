"""Protects COCO JSON as tools write it: polygons, run lengths, crowds; what refers to what; and that an annotation that
cannot be used never takes its photo with it, nor goes in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.coco import Reason, _mask
from skipclick.evaluation.datasets.left_out import LeftOut, count_by_reason
from tests.support.coco_files import SQUARE, SQUARE_PIXELS, compressed, run_lengths, write_set
from tests.support.drawn_pictures import HEIGHT, PHOTO, WIDTH, blank, save

FILES = Path(__file__).parents[3] / "fixtures" / "annotation_files"


def test_polygons_and_both_kinds_of_run_lengths(tmp_path: Path) -> None:
    mask = blank().astype(np.bool_)
    mask[0, 3:], mask[4, 1] = True, True
    root = write_set(tmp_path, {11: [SQUARE], 12: run_lengths(mask), 13: compressed(mask)})
    (sample,) = open_dataset("coco", root)
    assert (sample.name, list(sample.targets)) == ("a", [1, 2, 3])
    square = blank()
    square[SQUARE_PIXELS] = 1
    np.testing.assert_array_equal(sample.targets[1], square)
    np.testing.assert_array_equal(sample.targets[2], mask)
    np.testing.assert_array_equal(sample.targets[3], mask)


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
        if mask.any():
            np.testing.assert_array_equal(_mask(segmentation, (HEIGHT, WIDTH))[0], mask)


def test_run_lengths_of_large_masks_come_back() -> None:
    """Differences of many characters, and runs of no pixel, which some tools write."""
    mask = np.random.default_rng(0).random((300, 500)) > 0.999
    mask[:, 100:300] = True
    np.testing.assert_array_equal(_mask(compressed(mask), (300, 500))[0], mask)
    counts = [3, 2, 0, 1, HEIGHT * WIDTH - 6]
    np.testing.assert_array_equal(
        _mask({"size": [HEIGHT, WIDTH], "counts": counts}, (HEIGHT, WIDTH))[0].T.reshape(-1)[:8],
        [0, 0, 0, 1, 1, 1, 0, 0],
    )


NAN, HUGE = float("nan"), 10**400
EVERYTHING = HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], Reason.NO_MASK),
        ([[]], Reason.NO_MASK),
        ({}, Reason.NO_MASK),
        (None, Reason.NO_MASK),
        ([[1, 1, 3, 3]], Reason.SHORT),
        ([1, 1, 3, 3], Reason.SHORT),
        ([[1, 1, 3, 3, 2]], Reason.SHORT),
        ([[1, 1, 3, 3, 2, 2, 9]], Reason.ODD),
        ([SQUARE, [1, 1, 3, 3, 2, 2, 9]], Reason.ODD),
        ([[1, 1, 3, NAN, 2, 2]], Reason.NO_NUMBERS),
        ([[1, 1, 3, float("inf"), 2, 2]], Reason.NO_NUMBERS),
        ([[1, 1, 3, None, 2, 2]], Reason.NO_NUMBERS),
        ([[1, 1, 3, HUGE, 2, 2]], Reason.NO_NUMBERS),
        ([["x"] * 6], Reason.NO_NUMBERS),
        ([SQUARE, ["x"] * 6], Reason.NO_NUMBERS),
        ([[[1, 1, 1]] * 6], Reason.NO_NUMBERS),
        ([[1, 1, 3, 1e9, 2, 2]], Reason.FAR_OUTSIDE),
        ([[-5, -5, -2, -5, -2, -2]], Reason.EMPTY),
        ([[20, 1, 25, 1, 25, 4]], Reason.EMPTY),
        ("polygon", Reason.NOT_READ),
        (7, Reason.NOT_READ),
        ([3, SQUARE], Reason.NOT_READ),
        ({"size": [WIDTH, HEIGHT], "counts": [EVERYTHING]}, Reason.RUNS_OTHER_SIZE),
        ({"size": [3, 3], "counts": "12"}, Reason.RUNS_OTHER_SIZE),
        ({"size": [HEIGHT], "counts": [0, EVERYTHING]}, Reason.RUNS_DAMAGED),
        ({"counts": [0, EVERYTHING]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [-2, EVERYTHING + 2]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, EVERYTHING - 0.5]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [NAN, EVERYTHING]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": ["x"]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [[0], [EVERYTHING]]}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": "12"}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": "````````"}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 500}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, Reason.RUNS_DAMAGED),
        ({"size": [HEIGHT, WIDTH], "counts": [EVERYTHING]}, Reason.EMPTY),
        ({"size": [HEIGHT, WIDTH]}, Reason.NOT_READ),
    ],
)
@pytest.mark.parametrize("is_crowd", [False, True])
def test_an_annotation_that_cannot_be_used_leaves_the_others_alone(
    tmp_path: Path, segmentation: Any, reason: Reason, is_crowd: bool
) -> None:
    root = write_set(tmp_path, {1: segmentation, 2: [SQUARE]}, crowds=(1,) if is_crowd else ())
    (sample,) = open_dataset("coco", root)
    np.testing.assert_array_equal(sample.targets.pop(2), square())
    assert sample.targets == {}
    assert sample.left_out == (LeftOut(reason, "a.jpg, annotations[0]"),)


def square() -> NDArray[np.uint8]:
    mask = blank()
    mask[SQUARE_PIXELS] = 1
    return mask


@pytest.mark.parametrize(
    ("segmentation", "num_short"),
    [
        (SQUARE, 0),
        ([[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)], 0),
        ([[[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]], 0),
        ([list(map(str, SQUARE))], 0),
        ([SQUARE, []], 0),
        ([SQUARE, [7, 5, 7, 6]], 1),
        ([[7, 5], SQUARE, [7, 5, 7, 6]], 2),
        ([[-9, 1, 2, 1, 2, 4, -9, 4], SQUARE], 0),
    ],
)
def test_polygons_are_read_as_they_are_meant(tmp_path: Path, segmentation: Any, num_short: int) -> None:
    """A flat list, pairs, numbers as texts, parts that enclose nothing, points outside."""
    (sample,) = open_dataset("coco", write_set(tmp_path, {1: segmentation}))
    expected = square()
    if segmentation[0] == [-9, 1, 2, 1, 2, 4, -9, 4]:
        expected[1:4, :2] = 1
    np.testing.assert_array_equal(sample.targets[1], expected)
    assert sample.left_out == (LeftOut(Reason.SHORT, "a.jpg, annotations[0]"),) * num_short


@pytest.mark.parametrize("name", ["win_path", "empty_seg", "no_seg", "short_poly", "flat_poly"])
def test_files_after_public_reports(tmp_path: Path, name: str) -> None:
    """Fixtures of `tests/fixtures/annotation_files`: the good objects are there, and what is not used is counted."""
    for photo in "ab":
        save(tmp_path / "images" / f"{photo}.jpg", blank(120, 160, 3))
    (tmp_path / "a.json").write_bytes((FILES / f"{name}.json").read_bytes())
    dataset = open_dataset("coco", tmp_path)
    samples = {Path(photo.name).name: photo.load() for photo in dataset.photos}
    assert {photo: [int((t == 1).sum()) for t in one.targets.values()] for photo, one in samples.items()} == {
        "a": [1800],
        "b": [2400],
    }
    expected = {"empty_seg": [Reason.NO_MASK], "no_seg": [Reason.NO_MASK], "short_poly": [Reason.SHORT]}
    found = [one.reason for one in (*dataset.left_out, *samples["a"].left_out, *samples["b"].left_out)]
    assert found == expected.get(name, [])


def photo_record(photo_id: Any, name: Any = "a.jpg", **fields: Any) -> dict[str, Any]:
    return {"id": photo_id, "file_name": name, "height": HEIGHT, "width": WIDTH} | fields


def annotated(image_id: Any, **fields: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image_id, "category_id": 1, "segmentation": [SQUARE]} | fields


def write_file(root: Path, images: list[Any], annotations: list[Any], *photos: str) -> Path:
    for name in photos or ("a.jpg",):
        save(root / "images" / name)
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


def found(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Number of objects by photo, and what is left out by reason."""
    dataset = open_dataset("coco", root)
    samples = list(dataset)
    left_out = count_by_reason([*dataset.left_out, *(one for sample in samples for one in sample.left_out)])
    return {one.name: len(one.targets) for one in samples}, {one.reason: one.count for one in left_out}


@pytest.mark.parametrize("ids", [(1, 1), (0, 0), (None, None), ("x", "x"), (1, "1"), (True, {})])
def test_objects_are_told_apart_by_their_place_whatever_their_ids(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    other = [[6, 4, 8, 4, 8, 6, 6, 6]]
    annotations = [annotated(5, id=ids[0]), annotated(5, id=ids[1], segmentation=other, category_id=ids[0])]
    if ids[0] is None:
        for one in annotations:
            del one["id"], one["category_id"]
    (sample,) = open_dataset("coco", write_file(tmp_path, [photo_record(5)], annotations))
    assert [int((target == 1).sum()) for target in sample.targets.values()] == [9, 4]
    assert list(sample.targets) == [1, 2]


@pytest.mark.parametrize(
    ("photo_id", "image_id"), [(0, 0), ("a", "a"), (5, "5"), ("5", 5), (5.0, 5), ("a.jpg", "a.jpg"), (10**30, 10**30)]
)
def test_an_annotation_finds_its_photo_by_any_id(tmp_path: Path, photo_id: Any, image_id: Any) -> None:
    assert found(write_file(tmp_path, [photo_record(photo_id)], [annotated(image_id)])) == ({"a": 1}, {})


def test_an_image_id_of_two_photos_is_of_none(tmp_path: Path) -> None:
    """Nobody can tell which of them the annotation is about; a third photo is not touched by it."""
    images = [photo_record(5, "a.jpg"), photo_record("5", "b.jpg"), photo_record(6, "c.jpg")]
    root = write_file(tmp_path, images, [annotated(5), annotated(5), annotated(6)], "a.jpg", "b.jpg", "c.jpg")
    assert found(root) == ({"c": 1}, {Reason.REPEATED_ID: 2, Reason.SHARED_IMAGE_ID: 2})


def test_what_refers_to_nothing_is_counted(tmp_path: Path) -> None:
    images = [
        photo_record(5),
        photo_record(None, "b.jpg"),
        photo_record(True, "c.jpg"),
        photo_record(7, 3),
        "photo",
        None,
    ]
    images += [photo_record(8, "gone.jpg"), photo_record(9, "idle.jpg"), photo_record(10, " ")]
    annotations = [annotated(5), annotated(None), annotated(99), {"segmentation": [SQUARE]}, "annotation", annotated(8)]
    assert found(write_file(tmp_path, images, annotations)) == (
        {"a": 1},
        {
            Reason.NO_ID: 2,
            Reason.NO_FILE_NAME: 2,
            Reason.NO_RECORD: 3,
            Reason.NO_IMAGE_ID: 2,
            Reason.UNKNOWN_IMAGE_ID: 1,
            Reason.NOT_FOUND: 1,
            Reason.NO_ANNOTATION: 1,
        },
    )


@pytest.mark.parametrize("same_id", [True, False])
def test_two_records_of_a_photo_are_one_photo(tmp_path: Path, same_id: bool) -> None:
    """As merged files have them; a mask that both have is one object."""
    images = [
        photo_record(5, "a.jpg"),
        photo_record(5 if same_id else 6, "images\\a.jpg" if not same_id else "./a.jpg"),
    ]
    other = annotated(images[1]["id"], segmentation=[[6, 4, 8, 4, 8, 6, 6, 6]])
    root = write_file(tmp_path, images, [annotated(5), other, *([] if same_id else [annotated(6)])])
    assert found(root) == ({"a": 2}, {} if same_id else {Reason.REPEATED: 1})


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("images\\a.jpg", "a.jpg"),
        ("..\\data\\a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("images/a.jpg", "a.jpg"),
        ("/mnt/photos/a.jpg", "a.jpg"),
        ("https://example.com/photos/a%20b.jpg", "a b.jpg"),
        ("sub//a.jpg", "sub/a.jpg"),
    ],
)
def test_photos_are_found_under_the_names_that_tools_write(tmp_path: Path, name: str, photo: str) -> None:
    objects, left_out = found(write_file(tmp_path, [photo_record(5, name)], [annotated(5)], photo))
    assert (list(objects.values()), left_out) == ([1], {})


@pytest.mark.parametrize("name", ["a\0.jpg", "a" * 5000, "..", "/", "\\", "\ud800.jpg"])
def test_names_that_no_file_can_have_are_missing_photos(tmp_path: Path, name: str) -> None:
    root = write_file(tmp_path, [photo_record(5), photo_record(6, name)], [annotated(5), annotated(6)])
    assert found(root) == ({"a": 1}, {Reason.NOT_FOUND: 1})


def test_photos_of_one_name_in_folders_that_were_not_copied_are_not_mixed_up(tmp_path: Path) -> None:
    names = ["monday/a.jpg", "sunday/a.jpg", "b.jpg", "monday/b.jpg", "c.jpg"]
    images = [photo_record(index, name) for index, name in enumerate(names)]
    annotations = [annotated(index) for index in (0, 1, 3, 4)]
    root = write_file(tmp_path, images, annotations, "a.jpg", "b.jpg", "c.jpg")
    assert found(root) == ({"c": 1}, {Reason.NOT_TOLD_APART: 3, Reason.NO_ANNOTATION: 1})


def test_photos_of_one_stem_have_names_of_their_own(tmp_path: Path) -> None:
    images = [photo_record(1, "a.jpg"), photo_record(2, "a.png")]
    assert found(write_file(tmp_path, images, [annotated(1), annotated(2)], "a.jpg", "a.png"))[0] == {
        "a.jpg": 1,
        "a.png": 1,
    }


@pytest.mark.parametrize("flag", [1, True, "1", "true", 1.0])
def test_crowds_are_counted_and_may_be_taken_as_objects(tmp_path: Path, flag: Any) -> None:
    """CVAT writes every mask so: iscrowd with run lengths; others write crowds as polygons."""
    mask = square() == 1
    annotations = [annotated(5, iscrowd=flag, segmentation=s) for s in ([SQUARE], run_lengths(mask), compressed(mask))]
    root = write_file(tmp_path, [photo_record(5)], [*annotations, annotated(5, iscrowd=0), annotated(5, iscrowd="0")])
    assert found(root) == ({"a": 2}, {Reason.CROWD: 3})
    (sample,) = open_dataset("coco-with-crowds", root)
    assert len(sample.targets) == 5
    assert sample.left_out == ()
    for target in sample.targets.values():
        np.testing.assert_array_equal(target, square())
    write_file(tmp_path, [photo_record(5)], annotations)
    with pytest.raises(
        ValueError, match=r"has no photo with an object; 3 × .* coco-with-crowds takes crowds as objects"
    ):
        open_dataset("coco", root)
    assert len(open_dataset("coco-with-crowds", root).load(0).targets) == 3


def test_sizes_that_disagree_with_the_photo(tmp_path: Path) -> None:
    """Polygons have their place by the size in the file; run lengths say themselves how large their photo is."""
    mask = square() == 1
    annotations = [annotated(5), annotated(5, segmentation=run_lengths(mask))]
    root = write_file(tmp_path, [photo_record(5, height=12, width=16)], annotations)
    assert found(root) == ({"a": 1}, {Reason.OTHER_SIZE: 1})
    for height, width in ((None, None), (0, 0), ("x", WIDTH), (str(HEIGHT), float(WIDTH)), (float("inf"), WIDTH)):
        root = write_file(tmp_path, [photo_record(5, height=height, width=width)], annotations)
        assert found(root) == ({"a": 2}, {})
    images = [photo_record(5)]
    del images[0]["height"]
    assert found(write_file(tmp_path, images, annotations)) == ({"a": 2}, {})


def test_masks_lie_on_the_photo_as_it_was_when_they_were_drawn(tmp_path: Path) -> None:
    """A photo that EXIF turns, annotated by tools that turn it and by tools that do not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(PHOTO).save(tmp_path / "images" / "a.png", exif=exif)
    runs = annotated(5, segmentation=run_lengths(square() == 1))
    turned_runs = annotated(5, segmentation=run_lengths((square() == 1).T))
    unsized = photo_record(5, "a.png", height=None)
    for record, annotation, shape in (
        (photo_record(5, "a.png"), annotated(5), (HEIGHT, WIDTH)),
        (photo_record(5, "a.png", height=WIDTH, width=HEIGHT), annotated(5), (WIDTH, HEIGHT)),
        (unsized, annotated(5), (WIDTH, HEIGHT)),
        (unsized, runs, (HEIGHT, WIDTH)),
        (unsized, turned_runs, (WIDTH, HEIGHT)),
    ):
        (tmp_path / "a.json").write_text(json.dumps({"images": [record], "annotations": [annotation]}))
        (sample,) = open_dataset("coco", tmp_path)
        assert sample.image.shape[:2] == shape
        assert (sample.targets[1] == 1).sum() == 9


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("lines", [False, True])
def test_files_of_any_encoding_and_of_several_lines(tmp_path: Path, encoding: str, lines: bool) -> None:
    """With JSON lines each line is a file of its own: the ids of one mean nothing in another."""
    write_file(tmp_path, [], [], "a.jpg", "b.jpg")
    parts = [{"images": [photo_record(1, name)], "annotations": [annotated(1)]} for name in ("a.jpg", "b.jpg")]
    text = "\r\n".join(map(json.dumps, parts)) + "\r\n" if lines else json.dumps(parts[0])
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert found(tmp_path) == ({"a": 1, "b": 1} if lines else {"a": 1}, {})


def test_photos_may_lie_in_folders_or_have_lost_theirs(tmp_path: Path) -> None:
    dataset = open_dataset("coco", write_set(tmp_path, {1: [SQUARE]}, name="sub/a.jpg"))
    assert dataset.load(0).name == "sub/a"
    (tmp_path / "images" / "sub" / "a.jpg").rename(tmp_path / "images" / "a.jpg")
    assert open_dataset("coco", tmp_path).load(0).name == "sub/a"


def test_other_json_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, {1: [SQUARE]}, crowds=(1,))
    with pytest.raises(ValueError, match="has no photo with an object"):
        open_dataset("coco", tmp_path)
    for content in ("[]", "{}", "3", '{"images": [], "annotations": null}', '{"images": 3, "annotations": []}'):
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(ValueError, match="holds no COCO instances: it needs 'images' and 'annotations'"):
            open_dataset("coco", tmp_path)
