"""Protects what a team takes with it: every accepted mask with its holes and parts, ids and labels, and no other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter.converter import Converter, Format
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backend.commands.export import NOT_CHOSEN, column_runs, export, file_name, main, mask_of
from backend.label_studio.annotations import Reason
from backend.label_studio.auth import LabelStudioAuth
from backend.label_studio.client import LabelStudioApi
from backend.label_studio.protocol import RegionTarget
from backend.label_studio.regions import mask_response
from skipclick.masks import BoxMask
from skipclick.polygons import rasterize
from tests.support import annotation_bodies as bodies
from tests.support.annotation_bodies import HEIGHT, WIDTH, drawn, region
from tests.support.fake_label_studio import LEGACY, FakeLabelStudio

masks = array_shapes(min_dims=2, max_dims=2, max_side=24).flatmap(lambda shape: arrays(np.bool_, shape))


@pytest.fixture
def api(studio: FakeLabelStudio) -> LabelStudioApi:
    studio.label_config = bodies.CONFIG
    studio.keys = {"Token": LEGACY}
    return LabelStudioApi(LabelStudioAuth(studio.url, LEGACY, 5), 5)


def ring() -> NDArray[np.bool_]:
    return drawn(2, 2, 20, 20) & ~drawn(8, 8, 14, 14)


def polygon_regions(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    target = RegionTarget("polygonlabels", "mask", "image", ("Helmet",), WIDTH, HEIGHT)
    found: list[dict[str, Any]] = mask_response(target, BoxMask.of(mask), 0.5, "v")["results"][0]["result"]
    return found


def fill(studio: FakeLabelStudio) -> dict[int, NDArray[np.bool_]]:
    """Some tasks; the masks to be found by task."""
    parts = drawn(0, 0, 5, 5) | drawn(20, 20, 29, 39)
    keypoint = {"id": "ghost", "type": "keypointlabels", "from_name": "click", "to_name": "image", "value": {"x": 1}}
    studio.tasks = [
        bodies.task(7, bodies.annotation(1, 7, [keypoint, region("a", ring(), parentID="ghost")])),
        bodies.task(
            5, bodies.annotation(2, 5, polygon_regions(parts)), bodies.annotation(3, 5, [], was_cancelled=True)
        ),
        bodies.task(
            9, bodies.annotation(4, 9, [region("b", ring())], 5), bodies.annotation(5, 9, [region("c", parts)])
        ),
        bodies.task(11, bodies.annotation(6, 11, [region("d", drawn(0, 0, 0, 0)), region("e", ring(), label="New")])),
        bodies.task(13),
    ]
    return {7: ring(), 5: parts, 9: ring(), 11: ring()}


def run(api: LabelStudioApi, output: Path, kind: str) -> list[str]:
    return list(export(api, 1, kind, output, 1 << 20))


def test_coco_is_what_pycocotools_reads(api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path) -> None:
    expected = fill(studio)
    lines = run(api, tmp_path, "coco")
    coco = COCO(tmp_path / "annotations.json")
    assert {one["name"]: one["id"] for one in coco.loadCats(coco.getCatIds())} == {"Ski": 1, "Helmet": 2, "New": 3}
    found = coco.loadAnns(coco.getAnnIds())
    assert [one["attributes"]["task"] for one in found] == [5, 7, 9, 11]
    assert [one["category_id"] for one in found] == [2, 1, 1, 3]
    assert [coco.imgs[one["image_id"]]["file_name"] for one in found] == ["5.png", "7.png", "9.png", "11.png"]
    for one in found:
        mask = expected[one["attributes"]["task"]]
        np.testing.assert_array_equal(coco.annToMask(one), mask)
        rle = coco.annToRLE(one)
        assert one["area"] == coco_mask.area(rle) == mask.sum()
        assert one["bbox"] == coco_mask.toBbox(rle).tolist()
    assert lines[0].endswith("4 objects in 4 images; 5 of 5 tasks were new or changed")
    assert {line.partition("left out, ")[2] for line in lines[1:]} == {
        f"1 x: {Reason.CANCELLED}",
        f"1 x: {Reason.EMPTY}",
        f"1 x: {NOT_CHOSEN}",
    }


def test_yolo_has_a_polygon_for_each_object_with_its_holes_and_parts(
    api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path
) -> None:
    expected = fill(studio)
    run(api, tmp_path, "yolo-seg")
    assert (tmp_path / "data.yaml").read_text().endswith('names:\n  0: "Ski"\n  1: "Helmet"\n  2: "New"\n')
    for task, mask in expected.items():
        number, *values = (tmp_path / "labels" / f"{task}.txt").read_text().split()
        assert number == {5: "1", 11: "2"}.get(task, "0")
        points = np.array(values, float).reshape(-1, 2) * (WIDTH, HEIGHT)
        np.testing.assert_array_equal(rasterize([points], mask.shape), mask)


def test_masks_are_png_files_by_image(api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path) -> None:
    expected = fill(studio)
    run(api, tmp_path, "masks")
    index = [json.loads(line) for line in (tmp_path / "masks" / "index.jsonl").read_text().splitlines()]
    assert [one["file"] for one in index] == ["5/1-Helmet.png", "7/1-Ski.png", "9/1-Ski.png", "11/1-New.png"]
    assert [one["region"] for one in index][1:] == ["a", "b", "e"]
    for one in index:
        pixels = cv2.imread(str(tmp_path / "masks" / one["file"]), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels, np.where(expected[one["task"]], 255, 0))


@pytest.mark.parametrize("kind", ["coco", "yolo-seg", "masks"])
def test_a_second_run_reads_only_what_changed(
    api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path, kind: str
) -> None:
    fill(studio)
    run(api, tmp_path, kind)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "; 0 of 5 tasks" in run(api, tmp_path, kind)[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    del studio.tasks[0]
    studio.tasks[0]["annotations"] = [bodies.annotation(2, 5, [region("x", drawn(1, 1, 3, 3))], 60)]
    assert run(api, tmp_path, kind)[0].endswith("3 objects in 3 images; 1 of 4 tasks were new or changed")
    fresh = tmp_path / "fresh"
    run(api, fresh, kind)
    now = {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*") if path.is_file()}
    kept = {
        p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and fresh not in p.parents
    }
    assert kept == now


def test_after_an_interruption_it_goes_on(api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path) -> None:
    fill(studio)
    studio.tasks = [bodies.task(n, bodies.annotation(n, n, [region("a", ring())])) for n in range(1, 46)]
    asked: list[str] = []

    def fail_at_the_third_page(path: str) -> None:
        asked.append(path)
        if asked.count("/api/tasks/") == 3:
            studio.failures = [403]

    studio.watch = fail_at_the_third_page
    with pytest.raises(ValueError, match="403"):
        run(api, tmp_path, "coco")
    assert not (tmp_path / "annotations.json").exists()
    studio.watch = None
    assert run(api, tmp_path, "coco")[0].endswith("45 objects in 45 images; 5 of 45 tasks were new or changed")


def test_files_of_one_name_stay_apart(api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path) -> None:
    studio.tasks = [bodies.task(n, bodies.annotation(n, n, [region("a", ring())])) for n in (1, 2)]
    for number, one in enumerate(studio.tasks):
        one["data"]["image"] = f"/data/local-files/?d=folder{number}/photo.jpg"
    run(api, tmp_path, "yolo-seg")
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["photo-task2.txt", "photo.txt"]


def test_label_studios_own_export_of_the_same_masks(
    api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path
) -> None:
    """What docs/masks.md says of it. The day this fails, it says too much."""
    y, x = np.ogrid[:1080, :1920]
    mask = (np.hypot(y - 500, x - 600) < 300) & (np.hypot(y - 500, x - 600) > 100)
    mask[700:900, 1500:1700] = True
    numbers = range(1, 6)
    studio.tasks = [
        bodies.task(number, bodies.annotation(number, number, [region(f"r{number}", mask)], completed_by=1))
        for number in numbers
    ]
    begin = time.perf_counter()
    list(export(api, 1, "coco", tmp_path / "ours", mask.size))
    seconds = time.perf_counter() - begin
    ours = COCO(tmp_path / "ours" / "annotations.json")
    (tmp_path / "tasks.json").write_text(json.dumps(studio.tasks))
    begin = time.perf_counter()
    converter = Converter(bodies.CONFIG, project_dir=None)
    converter.convert(str(tmp_path / "tasks.json"), str(tmp_path / "theirs"), Format.BRUSH_TO_COCO, is_dir=False)
    print(f"{len(numbers)} masks, 1920 x 1080: {seconds:.1f} s; Label Studio's: {time.perf_counter() - begin:.1f} s")
    theirs = COCO(tmp_path / "theirs" / "result_coco.json")
    assert len(ours.getAnnIds()) == len(numbers)
    for one in ours.loadAnns(ours.getAnnIds()):
        np.testing.assert_array_equal(ours.annToMask(one), mask)
    assert len(theirs.getAnnIds()) == 2 * len(numbers), "each part is an object of its own"
    parts = theirs.loadAnns(theirs.getAnnIds(imgIds=theirs.getImgIds()[:1]))
    whole = np.any([theirs.annToMask(one) for one in parts], axis=0)
    print(f"IoU of its parts together with the mask: {(whole & mask).sum() / (whole | mask).sum():.3f}")
    assert whole[500, 600], "holes are filled"


@pytest.mark.parametrize("kind", ["yolo-seg", "masks"])
@pytest.mark.parametrize("name", ["a%00b%0A", "名" * 100, "x" * 900], ids=["control", "wide", "long"])
def test_names_that_no_disk_takes_are_no_trouble(
    api: LabelStudioApi, studio: FakeLabelStudio, tmp_path: Path, kind: str, name: str
) -> None:
    """Addresses of photos and labels may be anything."""
    task = bodies.task(1, bodies.annotation(1, 1, [region("a", ring(), label="ŝ" * 300)]))
    twin = bodies.task(2, bodies.annotation(2, 2, [region("b", ring())]))
    task["data"] = twin["data"] = {"image": f"/data/upload/1/{name}.png"}
    studio.tasks = [task, twin]
    (line,) = run(api, tmp_path, kind)
    assert "2 objects in 2 images" in line
    found = tmp_path.glob("labels/*.txt") if kind == "yolo-seg" else tmp_path.glob("masks/*/*.png")
    assert len(list(found)) == 2


def test_nothing_accepted_is_an_empty_export(api: LabelStudioApi, tmp_path: Path) -> None:
    assert run(api, tmp_path, "coco")[0].endswith("0 objects in 0 images; 0 of 0 tasks were new or changed")
    assert not COCO(tmp_path / "annotations.json").anns


@given(mask=masks)
def test_run_lengths_are_cocos(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    counts = column_runs(mask)
    theirs = coco_mask.decode(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    np.testing.assert_array_equal(theirs, mask)
    np.testing.assert_array_equal(mask_of({"width": width, "height": height}, {"counts": counts}), mask)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("/data/upload/1/25f393b5-a%20b.png", "25f393b5-a b.png"),
        ("/data/local-files/?d=dir%2Fphoto.jpg", "photo.jpg"),
        ("s3://bucket/dir/photo.webp", "photo.webp"),
        ("https://host/photo.jpg?size=3", "photo.jpg"),
        ("data:image/png;base64,iVBO/abc", "image"),
        ("/", "image"),
        ("https://[", "image"),
        ("..\\..\\photo.jpg", "photo.jpg"),
        ("/..", "image"),
    ],
)
def test_the_file_that_an_address_names(reference: str, name: str) -> None:
    assert file_name(reference) == name


@pytest.mark.parametrize("options", [["--project", "1", "--format", "coco"]])
def test_trouble_is_one_line_and_exit_code_2(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("backend.commands.export._PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    message = capsys.readouterr().err
    assert message.startswith("the project cannot be read from Label Studio: ")
    assert message.count("\n") == 1
