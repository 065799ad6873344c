"""Protects Label Studio exports: which annotation counts, which photo belongs to a region, and that nothing goes in
silence."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skipclick import bitmask, brush_rle
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.label_studio import Reason
from skipclick.evaluation.datasets.label_studio_export import (
    NO_ANNOTATION,
    NO_PHOTO,
    NO_TASK,
    NOT_CHOSEN,
    SEVERAL_PHOTOS,
)
from skipclick.evaluation.datasets.left_out import count_by_reason
from skipclick.masks import BoxMask
from tests.support.drawn_pictures import HEIGHT, WIDTH, blank, save
from tests.support.recorded import recorded_requests


def region(region_id: str, mask: NDArray[np.generic], **fields: Any) -> dict[str, Any]:
    height, width = mask.shape
    value = {"format": "rle", "rle": list(brush_rle.encode(mask.astype(np.bool_))), "brushlabels": ["Ski"]}
    place = {"original_width": width, "original_height": height, "to_name": "image", "from_name": "tag"}
    return {"id": region_id, "type": "brushlabels", "value": value} | place | fields


def task(
    regions: list[dict[str, Any]], address: str = "/data/upload/1/25f393b5-a.png", **fields: Any
) -> dict[str, Any]:
    annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "updated_at": "2026-01-01", "result": regions}
    return {"id": 3, "data": {"image": address}, "annotations": [annotation]} | fields


def write_set(root: Path, *tasks: dict[str, Any]) -> Path:
    (root / "export.json").write_text(json.dumps(tasks))
    (root / "images").mkdir(exist_ok=True)
    return root


def mask_of_row(row: int) -> NDArray[np.uint8]:
    mask = blank()
    mask[row] = 1
    return mask


def test_a_task_that_label_studio_sent(tmp_path: Path) -> None:
    """Recorded: a task of Label Studio 1.23.2 with two discs, one each of Ski and Helmet, that were submitted."""
    tasks = [request["body"]["tasks"][0] for request in recorded_requests("18", "/predict")]
    recorded = next(task for task in reversed(tasks) if task["annotations"])
    write_set(tmp_path, recorded)
    save(tmp_path / "images" / "im16.png", np.zeros((120, 160, 3), np.uint8))
    dataset = open_dataset("label-studio", tmp_path)
    assert [photo.name for photo in dataset.photos] == ["17-5bdf4c82-im16"]
    sample = dataset.load(0)
    rows, columns = np.mgrid[:120, :160]
    centres = []
    for target in sample.targets.values():
        assert target.shape == (120, 160)
        assert set(np.unique(target)) == {0, 1}
        inside = target == 1
        centres.append((round(columns[inside].mean()), round(rows[inside].mean())))
    assert len(centres) == 2
    (annotation,) = recorded["annotations"]
    fewer = recorded | {"annotations": [annotation | {"result": annotation["result"][1:]}]}
    (other,) = open_dataset("label-studio", write_set(tmp_path, fewer))
    assert list(other.targets) == list(sample.targets)[1:], "ids must not depend on other regions"
    assert centres[0] == (48, 60), "the click was at 30 %, 50 %"


def targets_of(root: Path, *tasks: dict[str, Any]) -> list[NDArray[np.int8]]:
    """The objects of the only photo."""
    save(root / "images" / "a.png", np.zeros((*mask_shape(tasks[0]), 3), np.uint8))
    (sample,) = open_dataset("label-studio", write_set(root, *tasks))
    return list(sample.targets.values())


def mask_shape(one: dict[str, Any]) -> tuple[int, int]:
    first = one["annotations"][0]["result"][0]
    return first["original_height"], first["original_width"]


def found(root: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Number of objects by photo, and what is left out by reason."""
    dataset = open_dataset("label-studio", root)
    samples = list(dataset)
    left_out = count_by_reason([*dataset.left_out, *(one for sample in samples for one in sample.left_out)])
    return {one.name: len(one.targets) for one in samples}, {one.reason: one.count for one in left_out}


def test_pixels_that_the_brush_covers_by_half_belong_to_the_region(tmp_path: Path) -> None:
    """Label Studio's own brush leaves soft edges, which its RLE stores as they are."""
    alpha = [0, 127, 128, 255]
    header = (16).to_bytes(4, "big")  # 4 · width · height values of 8 bits, lengths of 3, 4, 8, 16 bits
    bits = "".join(f"{byte:08b}" for byte in header) + "00111" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value in alpha:
        bits += "1" + "00" + f"{4 - 1:03b}" + f"{value:08b}"
    bits += "0" * (-len(bits) % 8)
    drawn = region("a", np.ones((1, 4)))
    drawn["value"]["rle"] = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    (target,) = targets_of(tmp_path, task([drawn]))
    assert target.tolist() == [[0, 0, 1, 1]]


def test_the_annotation_that_counts(tmp_path: Path) -> None:
    def annotation(row: int, **fields: Any) -> dict[str, Any]:
        return task([region(str(row), mask_of_row(row))])["annotations"][0] | fields

    def chosen(*annotations: dict[str, Any]) -> list[int]:
        """Rows of the objects."""
        targets = targets_of(tmp_path, task([]) | {"annotations": list(annotations)})
        return [int(np.argmax(target.any(axis=1))) for target in targets]

    old = annotation(1, id=1, completed_by=7, updated_at="2026-02-01T11:00:00Z")
    new = annotation(2, id=2, completed_by={"id": 8}, updated_at="2026-02-01T10:00:00Z")
    assert chosen(old, new) == chosen(new, old) == [1]
    assert chosen(old, new | {"updated_at": "2026-02-01T12:00:00Z"}) == [1], "a later change takes nobody's place"
    assert chosen(old, new | {"ground_truth": True}) == [2]
    assert chosen(old | {"was_cancelled": True}, new) == [2]
    empty = region("e", blank())
    assert chosen(old | {"result": [empty]}, new) == [2], "an annotation without a usable mask does not count"
    with pytest.raises(ValueError, match=f"1 × {Reason.CANCELLED}"):
        chosen(new | {"was_cancelled": True})


def test_three_annotators_outvote_one(tmp_path: Path) -> None:
    def annotation(number: int, who: int, row: int, **fields: Any) -> dict[str, Any]:
        made = task([region("a", mask_of_row(row))])["annotations"][0]
        return made | {"id": number, "completed_by": who} | fields

    def chosen(*annotations: dict[str, Any]) -> tuple[int, int]:
        """Row of the object, and how many annotations were left out for it."""
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        (target,) = targets_of(tmp_path, task([]) | {"annotations": list(annotations)})
        return int(np.argmax(target.any(axis=1))), found(tmp_path)[1][NOT_CHOSEN]

    wrong, second, third = annotation(1, 7, 1), annotation(2, 8, 2), annotation(3, 9, 2)
    assert chosen(wrong, second, third) == chosen(third, second, wrong) == (2, 2)
    assert chosen(wrong, second, third | {"completed_by": 8}) == (1, 2), "two voices of one person are one"
    assert chosen(wrong | {"ground_truth": True}, second, third) == (1, 2)


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    good = region("a", mask_of_row(1))
    ellipse = {"id": "p", "type": "ellipselabels", "to_name": "image", "value": {"x": 1, "y": 1, "radiusX": 2}}
    damaged = region("d", mask_of_row(2)) | {"value": {"format": "rle", "rle": ["x"], "brushlabels": ["Ski"]}}
    other_size = region("s", blank(3, 3) + 1)
    annotations = [
        {"id": 1, "updated_at": "2026-01-01T00:00:00Z", "result": [good, ellipse, damaged, other_size]},
        {"id": 2, "updated_at": "2025-01-01T00:00:00Z", "result": [good]},
        {"id": 3, "was_cancelled": True, "result": []},
        {"id": 4, "result": None},
        "annotation",
    ]
    write_set(tmp_path, task([], annotations=annotations), task([], annotations=[], id=4), 7, {"id": 5})  # type: ignore[arg-type]
    assert found(tmp_path) == (
        {"3-25f393b5-a": 1},
        {
            Reason.OTHER_SHAPE: 1,
            Reason.UNDECODABLE: 1,
            Reason.WRONG_SIZE: 1,
            NOT_CHOSEN: 1,
            Reason.CANCELLED: 1,
            Reason.NO_REGION: 1,
            NO_ANNOTATION: 1,
            NO_TASK: 2,
        },
    )


@pytest.mark.parametrize("ids", [("r", "r"), (None, None), (0, 0), ("", ""), (1, "1"), (["x"], True)])
def test_regions_are_told_apart_whatever_their_ids(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    first, second = region(ids[0], mask_of_row(1)), region(ids[1], mask_of_row(2))
    copied = region(ids[0], mask_of_row(1)) | {"type": "keypointlabels"}
    targets = targets_of(tmp_path, task([first, copied, second]))
    np.testing.assert_array_equal(targets, [mask_of_row(1), mask_of_row(2)])


@pytest.mark.parametrize("task_id", [0, "", None, "text", 3])
def test_tasks_may_share_an_id_or_have_none(tmp_path: Path, task_id: Any) -> None:
    save(tmp_path / "images" / "a.png")
    save(tmp_path / "images" / "b.png")
    tasks = [
        task([region("r", mask_of_row(row))], f"s3://bucket/{name}.png", id=task_id) for row, name in enumerate("ab")
    ]
    objects, left_out = found(write_set(tmp_path, *tasks, tasks[0]))
    assert (list(objects.values()), left_out) == ([1, 1, 1], {})
    assert len(objects) == 3, "names are the photos' own"


def test_images_of_one_task_are_photos_of_their_own(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / "images" / f"{name}.png")
    pages = [region("r", mask_of_row(0), item_index=0), region("s", mask_of_row(1), item_index=1)]
    views = [region("r", mask_of_row(2), to_name="left"), region("s", mask_of_row(3), to_name="right")]
    tasks = [
        task(pages, data={"pages": ["/data/a.png", "/data/b.png"]}),
        task(views, id=4, data={"left": "/data/c.png", "right": "/data/d.png"}),
        task(views, id=5, data={"first": "/data/c.png", "second": "/data/d.png"}),
    ]
    dataset = open_dataset("label-studio", write_set(tmp_path, *tasks))
    rows = {one.name: [int(np.argmax(t.any(axis=1))) for t in one.targets.values()] for one in dataset}
    assert rows == {"3-a": [0], "3-b": [1], "4-c": [2], "4-d": [3]}
    assert {one.reason: one.count for one in count_by_reason(dataset.left_out)} == {Reason.NO_IMAGE: 2}


def test_json_min_has_the_same_objects(tmp_path: Path) -> None:
    """As Label Studio's converter writes it: an entry for each annotation, regions under the tag's name."""
    save(tmp_path / "images" / "a.png")

    def entry(annotation_id: int, updated_at: str, *rows: int) -> dict[str, Any]:
        values = [region("", mask_of_row(row)) for row in rows]
        regions = [
            one["value"] | {"original_width": one["original_width"], "original_height": one["original_height"]}
            for one in values
        ]
        return {
            "image": "/data/upload/1/25f393b5-a.png",
            "id": 3,
            "tag": regions,
            "tag2": [{"x": 1, "y": 2, "width": 0.2, "keypointlabels": ["Ski"]}],
            "tag3": [{"x": 1, "y": 1, "radiusX": 2, "radiusY": 2, "ellipselabels": ["Ski"]}],
            "annotator": 1,
            "annotation_id": annotation_id,
            "created_at": updated_at,
            "updated_at": updated_at,
            "lead_time": 3.2,
        }

    write_set(tmp_path, entry(2, "2026-02-01T00:00:00Z", 1), entry(1, "2026-01-01T00:00:00Z", 2, 3))
    dataset = open_dataset("label-studio", tmp_path)
    (sample,) = dataset
    assert sample.name == "3-25f393b5-a"
    np.testing.assert_array_equal(list(sample.targets.values()), [mask_of_row(2), mask_of_row(3)])
    assert found(tmp_path)[1] == {NOT_CHOSEN: 1, Reason.OTHER_SHAPE: 2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_with_a_task_each(tmp_path: Path, encoding: str) -> None:
    save(tmp_path / "images" / "a.png")
    lines = [json.dumps(task([region("r", mask_of_row(1))], id=number)) for number in (1, 2)]
    write_set(tmp_path)
    (tmp_path / "export.json").write_bytes("\n".join([*lines, lines[0][:200]]).encode(encoding))
    assert found(tmp_path) == ({"1-25f393b5-a": 1, "2-25f393b5-a": 1}, {NO_TASK: 1})
    (tmp_path / "export.json").rename(tmp_path / "export.jsonl")
    assert len(open_dataset("label-studio", Path(f"{tmp_path}/export.jsonl:{tmp_path}/images"))) == 2


@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_bitmasks_and_polygons_are_the_same_objects_as_brush_regions(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "images" / "a.png")
    mask = blank()
    mask[2:5, 1:4] = 1
    inner = mask.astype(bool)
    corners = [(100 * x / WIDTH, 100 * y / HEIGHT) for x, y in ((1, 2), (4, 2), (4, 5), (1, 5))]
    value = {"bitmask": {"imageDataURL": bitmask.encode(BoxMask.of(inner))}, "polygon": {"points": corners}}[kind]
    one = region("a", mask) | {"type": f"{kind}labels", "value": value | {f"{kind}labels": ["Ski"]}}
    np.testing.assert_array_equal(targets_of(tmp_path, task([one, one])), [mask])
    entry = {"image": "a.png", "id": 3, "annotation_id": 1, "updated_at": "", "tag": [one["value"] | one]}
    (sample,) = open_dataset("label-studio", write_set(tmp_path, entry))
    np.testing.assert_array_equal(list(sample.targets.values()), [mask])


def test_other_regions_and_unlabelled_tasks_are_left_out(tmp_path: Path) -> None:
    keypoint = {"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["Ski"]}}
    write_set(tmp_path, task([keypoint]), task([], id=4), task([keypoint, region("a", mask_of_row(1))], id=5))
    save(tmp_path / "images" / "25f393b5-a.png")
    (sample,) = open_dataset("label-studio", tmp_path)
    assert sample.name == "5-25f393b5-a"
    assert len(sample.targets) == 1


@pytest.mark.parametrize(
    ("address", "photo"),
    [
        ("/data/upload/1/25f393b5-a.png", "25f393b5-a.png"),
        ("/data/upload/1/25f393b5-a.png", "a.png"),
        ("/data/upload/1/25f393b5-my_skis_1.png", "my skis (1).png"),
        ("/data/local-files/?d=trip%20one/a.png", "trip one/a.png"),
        ("/data/local-files/?d=trip/a.png", "a.png"),
        ("https://example.com/photos/a%20b.png?width=9", "a b.png"),
        ("s3://bucket/trip/a.png", "2026/trip/a.png"),
        ("/data/local-files/?d=C:%5Cphotos%5Ctrip%5Ca.png", "a.png"),
        ("http://[broken/a.png", "7-upload.png"),
    ],
)
def test_photos_are_found_by_name(tmp_path: Path, address: str, photo: str) -> None:
    write_set(tmp_path, task([region("a", mask_of_row(1))], address, file_upload="7-upload.png"))
    save(tmp_path / "images" / "other.png")
    save(tmp_path / "images" / photo)
    (sample,) = open_dataset("label-studio", tmp_path)
    np.testing.assert_array_equal(next(iter(sample.targets.values())), mask_of_row(1))


def test_folders_tell_photos_of_one_name_apart(tmp_path: Path) -> None:
    write_set(tmp_path, task([region("a", mask_of_row(1))], "s3://bucket/x/monday/a.png"))
    for day, grey in (("monday", 10), ("sunday", 200)):
        save(tmp_path / "images" / day / "a.png", np.full((HEIGHT, WIDTH, 3), grey, np.uint8))
    (sample,) = open_dataset("label-studio", tmp_path)
    assert sample.image.max() == 10
    write_set(tmp_path, task([region("a", mask_of_row(1))], "s3://bucket/tuesday/a.png"))
    with pytest.raises(ValueError, match=rf"1 × {SEVERAL_PHOTOS}, .*monday/a\.png, .*sunday/a\.png"):
        open_dataset("label-studio", tmp_path)


def test_another_upload_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    write_set(tmp_path, task([region("a", mask_of_row(1))]))
    save(tmp_path / "images" / "ffffffff-a.png")
    with pytest.raises(ValueError, match=rf"1 × {NO_PHOTO}, for example task 3, .*25f393b5-a\.png"):
        open_dataset("label-studio", tmp_path)


def test_masks_are_drawn_on_the_turned_photo(tmp_path: Path) -> None:
    mask = np.zeros((WIDTH, HEIGHT), np.uint8)
    mask[7] = 1
    write_set(tmp_path, task([region("a", mask)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(blank(HEIGHT, WIDTH, 3)).save(tmp_path / "images" / "a.png", exif=exif)
    (sample,) = open_dataset("label-studio", tmp_path)
    assert sample.image.shape == (WIDTH, HEIGHT, 3)


def test_an_object_that_lacks_a_piece_is_none(tmp_path: Path) -> None:
    whole, piece = region("a", mask_of_row(1)), region("b", mask_of_row(2), parentID="a")
    cut = copy.deepcopy(piece)
    cut["value"]["rle"] = cut["value"]["rle"][:-4]
    other = region("c", mask_of_row(3))
    assert len(targets_of(tmp_path, task([whole, piece, other]))) == 2
    for damaged in (cut, piece | {"original_width": 3}, piece | {"original_height": "6"}):
        np.testing.assert_array_equal(targets_of(tmp_path, task([whole, damaged, other])), [mask_of_row(3)])


def test_other_json_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    for content in ('{"tasks": []}', "[3]", "[]", '[{"image": "a.png", "tag": []}]'):
        (tmp_path / "export.json").write_text(content)
        with pytest.raises(ValueError, match="is not a Label Studio export of type JSON or JSON-MIN"):
            open_dataset("label-studio", tmp_path)
    (tmp_path / "export.json").write_text('[{"image": "a.png", "tag": [], "annotation_id": 3}]')
    with pytest.raises(ValueError, match=f"no annotation with a mask on a photo; 1 × {Reason.NO_REGION}"):
        open_dataset("label-studio", tmp_path)
