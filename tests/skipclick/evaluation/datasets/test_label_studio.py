"""Protects Label Studio exports: which annotation counts, what is one object, and which photo belongs to a task."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from skipclick import brush_rle
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.label_studio import brush_regions, region_targets
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
    regions = brush_regions(recorded)
    assert list(sample.targets) == list(region_targets(regions))
    assert list(region_targets(regions[1:])) == list(sample.targets)[1:], "ids must not depend on other regions"
    assert centres[0] == (48, 60), "the click was at 30 %, 50 %"


@given(arrays(np.bool_, (HEIGHT, WIDTH)))
def test_regions_come_back_as_they_were_drawn(mask: NDArray[np.bool_]) -> None:
    ((_, target),) = region_targets([region("a", mask)]).items()
    np.testing.assert_array_equal(target, mask)


def test_a_region_under_another_belongs_to_it() -> None:
    regions = [
        region("a", mask_of_row(0)),
        region("b", mask_of_row(1), parentID="c"),
        region("c", mask_of_row(2), parentID="a"),
        region("d", mask_of_row(3), parentID="a rectangle"),
    ]
    first, second = region_targets(regions).values()
    np.testing.assert_array_equal(first, mask_of_row(0) | mask_of_row(1) | mask_of_row(2))
    np.testing.assert_array_equal(second, mask_of_row(3))
    circle = [region("a", mask_of_row(0), parentID="b"), region("b", mask_of_row(1), parentID="a")]
    assert region_targets(circle), "must end"


def test_pixels_that_the_brush_covers_by_half_belong_to_the_region() -> None:
    """Label Studio's own brush leaves soft edges, which its RLE stores as they are."""
    alpha = [0, 127, 128, 255]
    header = (16).to_bytes(4, "big")  # 4 · width · height values of 8 bits, lengths of 3, 4, 8, 16 bits
    bits = "".join(f"{byte:08b}" for byte in header) + "00111" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value in alpha:
        bits += "1" + "00" + f"{4 - 1:03b}" + f"{value:08b}"
    bits += "0" * (-len(bits) % 8)
    drawn = region("a", np.ones((1, 4)))
    drawn["value"]["rle"] = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    (target,) = region_targets([drawn]).values()
    assert target.tolist() == [[0, 0, 1, 1]]


def test_the_annotation_that_counts() -> None:
    def annotation(row: int, **fields: Any) -> dict[str, Any]:
        return task([region(str(row), mask_of_row(row))])["annotations"][0] | fields

    def chosen(*annotations: dict[str, Any]) -> list[str]:
        return [found["id"] for found in brush_regions(task([]) | {"annotations": list(annotations)})]

    old, new = annotation(1, updated_at="2026-02-01T09:00:00Z"), annotation(2, updated_at="2026-02-01T10:00:00Z")
    assert chosen(old, new) == chosen(new, old) == ["2"]
    assert chosen(old | {"ground_truth": True}, new) == ["1"]
    assert chosen(old, new | {"was_cancelled": True}) == ["1"]
    assert chosen(new | {"was_cancelled": True}) == chosen() == []


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
    ],
)
def test_photos_are_found_by_name(tmp_path: Path, address: str, photo: str) -> None:
    write_set(tmp_path, task([region("a", mask_of_row(1))], address))
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
    with pytest.raises(ValueError, match=r"one photo of this name .*, found .*monday/a\.png, .*sunday/a\.png"):
        open_dataset("label-studio", tmp_path).load(0)


def test_another_upload_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    write_set(tmp_path, task([region("a", mask_of_row(1))]))
    save(tmp_path / "images" / "ffffffff-a.png")
    with pytest.raises(ValueError, match=r"25f393b5-a\.png: one photo of this name .*, found none"):
        open_dataset("label-studio", tmp_path).load(0)


def test_masks_are_drawn_on_the_turned_photo(tmp_path: Path) -> None:
    mask = np.zeros((WIDTH, HEIGHT), np.uint8)
    mask[7] = 1
    write_set(tmp_path, task([region("a", mask)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(blank(HEIGHT, WIDTH, 3)).save(tmp_path / "images" / "a.png", exif=exif)
    (sample,) = open_dataset("label-studio", tmp_path)
    assert sample.image.shape == (WIDTH, HEIGHT, 3)


def test_damaged_regions_are_named_when_they_are_read(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    whole = region("r1", mask_of_row(1))
    cut, small = copy.deepcopy(whole), copy.deepcopy(whole)
    cut["value"]["rle"] = cut["value"]["rle"][:-4]
    small["original_width"] = 3
    del whole["original_height"]
    for damaged, reason in (
        (cut, "region r1: the RLE is truncated"),
        (small, "region r1: .*another size"),
        (whole, "a brush region lacks 'original_height'"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_dataset("label-studio", write_set(tmp_path, task([damaged]))).load(0)


def test_other_json_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    for content in ('{"tasks": []}', '[{"image": "a.png", "tag": []}]', "[3]"):
        (tmp_path / "export.json").write_text(content)
        with pytest.raises(ValueError, match=r"is no Label Studio export of type JSON \(not JSON-MIN\)"):
            open_dataset("label-studio", tmp_path)
    write_set(tmp_path, task([]))
    with pytest.raises(ValueError, match="has no annotation with a brush region"):
        open_dataset("label-studio", tmp_path)
