"""Protects `python -m train build-cocolvis`: from the published files to the combined set, even if interrupted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from skipclick.evaluation.datasets.sample import read_photo
from skipclick.safe_unpickle import read_plain_pickle
from tests.support.drawn_cocolvis import SKY, THING, Drawing, draw, write_official
from tests.support.processes import descendants, is_running
from train.__main__ import main
from train.cocolvis.combine import combine
from train.sources import open_sources

ROOT = Path(__file__).resolve().parents[3]
SIZE = (120, 160)
NAMES = [f"{number:012d}" for number in (9, 25, 30, 110, 139)]
ONLY_COCO = NAMES[2]
DRAWINGS = [draw(name, SIZE, seed) for seed, name in enumerate(NAMES)]
IN_BOTH = [drawing for drawing in DRAWINGS if drawing.name != ONLY_COCO]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    write_official(tmp_path, DRAWINGS, only_coco=ONLY_COCO)
    return tmp_path


def build(folder: Path, *more: str, out: str = "out") -> int:
    given = ["--coco", str(folder / "coco"), "--lvis", str(folder / "lvis"), "--out", str(folder / out)]
    return main(["build-cocolvis", *given, "--jobs", "2", *more])


def content_of(folder: Path) -> dict[str, bytes]:
    """All files by path; of a link, where it leads."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def read_masks(path: Path) -> NDArray[np.bool_]:
    """(N, H, W), as the released reader finds them."""
    layers, places = read_plain_pickle(path)
    decoded = [cv2.imdecode(layer, cv2.IMREAD_UNCHANGED) for layer in layers]
    assert all(layer.dtype == np.uint8 and layer.ndim == 2 for layer in decoded)
    return np.stack([decoded[layer] == value for layer, value in places])


def test_the_combined_set_has_the_released_form(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(official) == 0
    out = official / "out" / "train"
    annotations = read_plain_pickle(out / "hannotation.pickle")
    assert list(annotations) == [drawing.name for drawing in IN_BOTH]
    for drawing in IN_BOTH:
        categories = {one["id"]: one["category_id"] for one in drawing.segments}
        combined = combine(drawing.ids.astype(np.uint32), categories, {THING}, drawing.lvis)
        np.testing.assert_array_equal(
            read_masks(out / "masks" / f"{drawing.name}.pickle"), [mask.full() for mask in combined.masks]
        )
        entry = annotations[drawing.name]
        assert entry["num_instance_masks"] == len(combined.nodes) < len(combined.masks)
        assert list(entry["hierarchy"]) == list(range(len(combined.nodes)))
        for index, node in entry["hierarchy"].items():
            assert node is None or {"children", "parent", "node_level"} == node.keys()
            for child in node["children"] if node else ():
                assert entry["hierarchy"][child]["parent"] == index
        assert any(node for node in entry["hierarchy"].values()), "no parts: the drawing tests too little"
        photo = out / "images" / f"{drawing.name}.jpg"
        assert photo.resolve() == official / "coco" / "train2017" / f"{drawing.name}.jpg"
    assert len(list((out / "masks").iterdir())) == len(list((out / "images").iterdir())) == len(IN_BOTH)
    assert "train: 4 photos, " in capsys.readouterr().out


def test_the_summary_says_what_was_kept_and_dropped(official: Path) -> None:
    """Each drawing has an LVIS twin for every second COCO object, one repetition and specks."""
    assert build(official) == 0
    out = official / "out" / "train"
    summary = json.loads((out / "summary.json").read_text())
    masks = summary["masks"]
    given_lvis = sum(len(drawing.lvis) for drawing in IN_BOTH)
    given_coco = sum(one["category_id"] == THING for drawing in IN_BOTH for one in drawing.segments)
    assert masks["lvis_kept"] + masks["lvis_small"] + masks["lvis_duplicate"] == given_lvis
    assert masks["coco_kept"] + masks["coco_small"] + masks["coco_duplicate"] == given_coco
    assert masks["stuff_kept"] + masks["stuff_small"] == 2 * len(IN_BOTH)
    assert masks["lvis_duplicate"] == len(IN_BOTH)
    assert masks["lvis_small"] >= len(IN_BOTH)
    assert masks["coco_small"] >= len(IN_BOTH)
    assert masks["coco_duplicate"] > 0
    annotations = read_plain_pickle(out / "hannotation.pickle")
    parts = [node for entry in annotations.values() for node in entry["hierarchy"].values() if node]
    assert masks["parts"] == sum(node["parent"] is not None for node in parts) > 0
    assert masks["coco_kept"] + masks["lvis_kept"] == sum(e["num_instance_masks"] for e in annotations.values())
    assert (summary["photos"], summary["only_in_coco"], summary["only_in_lvis"]) == (len(IN_BOTH), 1, 1)
    assert (summary["without_objects"], summary["problems"]) == (0, {})


def test_every_numpy_reads_the_masks(official: Path) -> None:
    """RITM's own reader is tied to an old NumPy, which does not know the modules that a new one would name."""
    assert build(official) == 0
    file = official / "out" / "train" / "masks" / f"{NAMES[0]}.pickle"
    assert b"numpy._core" not in file.read_bytes()
    layers, places = pickle.loads(file.read_bytes())
    assert all(isinstance(layer, np.ndarray) and layer.dtype == np.uint8 and layer.ndim == 1 for layer in layers)
    assert all(type(number) is int for place in places for number in place)


def test_photos_can_be_copied_and_the_originals_are_not_touched(official: Path) -> None:
    photo = official / "coco" / "train2017" / f"{NAMES[0]}.jpg"
    photo.chmod(0o400)
    assert build(official) == 0
    assert build(official, "--images", "copy", out="copied") == 0
    copy = official / "copied" / "train" / "images" / photo.name
    assert not copy.is_symlink()
    assert copy.read_bytes() == photo.read_bytes()
    assert stat.S_IMODE(photo.stat().st_mode) == 0o400


def test_both_splits_and_the_other_usual_places(official: Path) -> None:
    write_official(official, [draw("000000000001", SIZE, 1), draw("000000000002", SIZE, 2)], split="val")
    coco, lvis = official / "coco", official / "lvis"
    for name in ("panoptic_train2017", "panoptic_train2017.json"):
        (coco / "annotations" / name).rename(coco / name)
    (coco / "images").mkdir()
    (coco / "train2017").rename(coco / "images" / "train2017")
    (lvis / "annotations").mkdir()
    (lvis / "lvis_v1_train.json").rename(lvis / "annotations" / "lvis_v1_train.json")
    assert build(official, "--split", "train", "val") == 0
    assert len(read_plain_pickle(official / "out" / "train" / "hannotation.pickle")) == len(IN_BOTH)
    assert len(read_plain_pickle(official / "out" / "val" / "hannotation.pickle")) == 2


@pytest.mark.slow
def test_a_killed_build_goes_on_and_ends_byte_for_byte_the_same(tmp_path: Path) -> None:
    write_official(tmp_path, [draw(f"{number:012d}", (240, 320), number) for number in range(150)])
    command = [sys.executable, "-m", "train", "build-cocolvis", "--jobs", "2", "--coco", str(tmp_path / "coco")]
    command += ["--lvis", str(tmp_path / "lvis"), "--out", str(tmp_path / "killed")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what multiprocessing leaves when it is killed
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "killed" / "train" / "records.jsonl"
    wait_until(lambda: records.exists() and records.read_bytes().count(b"\n") > 20)
    children = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 3, "two workers and the process that they are forked from"
    wait_until(lambda: not any(map(is_running, children)))
    done = records.read_bytes().count(b"\n") - 1
    assert 20 <= done < 150
    assert not (records.parent / "hannotation.pickle").exists()

    assert build(tmp_path, out="killed") == 0
    assert build(tmp_path, out="whole") == 0
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_what_a_kill_can_leave_is_put_right(official: Path) -> None:
    """Half a line, temporary files, a file that did not reach the disk, lines in another order."""
    assert build(official) == 0
    out = official / "out" / "train"
    whole = content_of(out)
    records = out / "records.jsonl"
    first, *lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(first + b"".join(reversed(lines[:-1])) + lines[-1][:30])
    (out / "hannotation.pickle").unlink()
    (out / "masks" / f"{NAMES[0]}.pickle").unlink()
    (out / "images" / f"{NAMES[1]}.jpg").unlink()
    for leftover in ("masks/.a.pickle.123.tmp", "images/.a.jpg.tmp", ".hannotation.pickle.1.tmp"):
        (out / leftover).write_bytes(b"half")
    assert build(official) == 0
    assert content_of(out) == whole


def test_a_finished_build_is_left_as_it_is(official: Path) -> None:
    assert build(official) == 0
    masks = official / "out" / "train" / "masks"
    before = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    assert build(official) == 0
    assert {path.name: path.stat().st_mtime_ns for path in masks.iterdir()} == before


def test_an_output_of_other_files_is_not_mixed_with_these(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(official) == 0
    before = content_of(official / "out")
    write_official(official, DRAWINGS[:2])
    assert_refused(
        build(official), capsys, "was started with different sources: give another --out, or delete the file"
    )
    assert content_of(official / "out") == before


def assert_refused(status: int, capsys: pytest.CaptureFixture[str], message: str) -> None:
    """Exit status 2 and one line."""
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert error.startswith("train: ")
    assert message in error.splitlines()[-1]
    assert len([line for line in error.splitlines() if line.startswith("train: ")]) == 1


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("lvis/lvis_v1_train.json", "--lvis: found no file lvis_v1_train.json, expected "),
        ("coco/annotations/panoptic_train2017.json", "--coco: found no file panoptic_train2017.json, expected "),
        ("coco/annotations/panoptic_train2017", "--coco: found no folder panoptic_train2017, expected "),
        ("coco/train2017", "--coco: found no folder train2017, expected "),
    ],
)
def test_what_is_missing_is_said_with_its_places(
    missing: str, message: str, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = official / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_refused(build(official), capsys, f"{message}{path}")
    path.with_name(f"{path.name}.zip").touch()
    assert_refused(build(official), capsys, "has to be unpacked first: unzip ")
    assert not (official / "out").exists()


LVIS, PANOPTIC = "lvis/lvis_v1_train.json", "coco/annotations/panoptic_train2017.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (LVIS, "{", "is not JSON, or was cut off"),
        (LVIS, "", "is not JSON, or was cut off"),
        (LVIS, "[]", "has no 'images'"),
        (LVIS, '{"images": [{"id": 1}]}', "holds no annotations of LVIS v1"),
        (PANOPTIC, "\xff", "is not JSON, or was cut off"),
        (PANOPTIC, '{"categories": []}', "has no 'categories'"),
        (PANOPTIC, '{"categories": [{"id": 1, "name": "person"}]}', "holds no panoptic annotations of COCO"),
        (PANOPTIC, '{"categories": [{"id": 1, "isthing": 1}], "annotations": [{"id": 2}]}', "holds no panoptic"),
        (
            PANOPTIC,
            '{"categories": [{"id": 1, "isthing": 1}], "annotations": [{"file_name": "x.png", "segments_info": []}]}',
            "have no photo in common",
        ),
    ],
)
def test_files_that_are_not_what_their_names_say(
    file: str, content: str, message: str, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (official / file).write_text(content, encoding="latin1")
    assert_refused(build(official), capsys, message)


def test_a_cut_file_is_refused_wherever_it_ends(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (official / LVIS).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (official / LVIS).write_bytes(whole[: int(share * len(whole))])
        assert_refused(build(official), capsys, "is not JSON, or was cut off")


def test_run_lengths_in_lvis_are_refused(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((official / LVIS).read_text())
    content["annotations"][3]["segmentation"] = {"size": [120, 160], "counts": "abc"}
    (official / LVIS).write_text(json.dumps(content))
    assert_refused(build(official), capsys, "the 'segmentation' of annotation 4 is not a list of polygons")


def test_broken_photos_are_named_and_the_others_are_built(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, damaged, small = (drawing.name for drawing in IN_BOTH[:3])
    maps = official / "coco" / "annotations" / "panoptic_train2017"
    (official / "coco" / "train2017" / f"{missing}.jpg").unlink()
    (maps / f"{damaged}.png").write_bytes(b"no picture")
    whole = (maps / f"{small}.png").read_bytes()
    cv2.imwrite(str(maps / f"{small}.png"), np.zeros((60, 80, 3), np.uint8))
    assert build(official) == 0
    problems = json.loads((official / "out" / "train" / "summary.json").read_text())["problems"]
    assert list(problems) == [missing, damaged, small]
    assert f"{missing}.jpg is missing in " in problems[missing]
    assert problems[damaged] == f"{damaged}.png is damaged"
    assert problems[small] == f"{small}.png is 60 x 80 pixels; LVIS says 120 x 160"
    assert f"{damaged}.png is damaged" in capsys.readouterr().out
    assert list(read_plain_pickle(official / "out" / "train" / "hannotation.pickle")) == [IN_BOTH[3].name]

    (maps / f"{small}.png").write_bytes(whole)  # what was wrong is tried anew
    assert build(official) == 0
    assert len(read_plain_pickle(official / "out" / "train" / "hannotation.pickle")) == 2


def test_a_wrong_outline_costs_its_photo_only(official: Path) -> None:
    content = json.loads((official / LVIS).read_text())
    content["annotations"][1]["segmentation"] = [[1.0, 2.0, 3.0]]
    (official / LVIS).write_text(json.dumps(content))
    assert build(official) == 0
    problems = json.loads((official / "out" / "train" / "summary.json").read_text())["problems"]
    assert list(problems) == [IN_BOTH[0].name]
    assert "an outline is not a list of coordinates" in problems[IN_BOTH[0].name]


def test_no_photo_at_all_is_an_error(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for photo in (official / "coco" / "train2017").iterdir():
        photo.unlink()
    assert_refused(build(official), capsys, f"all photos of train failed; the first, {NAMES[0]}: {NAMES[0]}.jpg is")


def test_a_photo_without_objects_leaves_nothing(official: Path) -> None:
    empty = Drawing(
        "000000000001",
        np.zeros((*SIZE, 3), np.uint8),
        np.full(SIZE, 5),
        [{"id": 5, "category_id": SKY}],
        [[[1.0, 1.0, 4.0, 1.0, 4.0, 4.0]]],
    )
    write_official(official, [empty, DRAWINGS[0]])
    assert build(official) == 0
    out = official / "out" / "train"
    assert list(read_plain_pickle(out / "hannotation.pickle")) == [NAMES[0]]
    assert [path.stem for path in (out / "masks").iterdir()] == [NAMES[0]]
    assert json.loads((out / "summary.json").read_text())["without_objects"] == 1


def test_a_place_that_cannot_be_written_is_said_in_one_line(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official / "out" / "train").mkdir(parents=True)
    (official / "out" / "train" / "masks").write_text("a file where a folder belongs")
    assert_refused(build(official), capsys, "The same command continues from here")


def test_a_damaged_journal_is_said(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(official) == 0
    records = official / "out" / "train" / "records.jsonl"
    for content in ('{"format": "other"}\n', "no JSON\n", "", "[]\n"):
        records.write_text(content)
        assert_refused(
            build(official), capsys, "records.jsonl is damaged, or not a journal of this command: give another --out"
        )


def test_what_is_built_is_what_training_reads(official: Path) -> None:
    """Through the reader of the published annotations."""
    assert build(official) == 0
    out = official / "out" / "train"
    photos = open_sources([str(official / "out")], split="all").parts[0].photos
    assert [photo.name for photo in photos] == [drawing.name for drawing in IN_BOTH]
    for photo in photos:
        image, scene = photo.load()
        np.testing.assert_array_equal(image, read_photo(official / "coco" / "train2017" / f"{photo.name}.jpg"))
        masks = [scene.mask(part) for part in (*scene.objects, *scene.stuff)]
        np.testing.assert_array_equal(masks, read_masks(out / "masks" / f"{photo.name}.pickle"))
        assert len(scene.stuff) > 0
        assert any(part.parent is not None for part in scene.objects)
