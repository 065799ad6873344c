"""Protects the table of data sets: opening them, their published sizes, the list for users, workers getting photos."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from skipclick.evaluation.datasets import LAYOUTS, describe_datasets, open_dataset
from tests.support.drawn_pictures import blank, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mask = blank()
    mask[0], mask[1] = 1, 2
    for name in ("c", "a", "b", "d"):
        save(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", mask)
    return tmp_path


def test_every_data_set_of_the_paper_has_its_network_size() -> None:
    sides = {name: layout.resolution and layout.resolution[0] for name, layout in LAYOUTS.items()}
    assert sides == {
        "GrabCut": 448,
        "Berkeley": 448,
        "DAVIS": 672,
        "DAVIS-585": None,
        "COCO_MVal": 448,
        "SBD": 448,
        "PascalVOC": 448,
        "HQSeg-44k": 896,
        "WSESeg": 896,
        "SHSeg": 896,
        "folder": None,
        "coco": None,
        "coco-with-crowds": None,
        "cvat": None,
        "label-studio": None,
    }


def test_photos_come_by_name_and_can_be_limited_and_filtered(folder: Path) -> None:
    assert [sample.name for sample in open_dataset("folder", folder)] == ["a", "b", "c", "d"]
    kept = open_dataset("folder", folder, limit=2, keep=lambda name: name != "a")
    assert [sample.name for sample in kept] == ["b", "c"]
    assert len(kept) == 2


def test_opening_reads_no_pictures(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        path.write_bytes(b"broken")
    assert len(open_dataset("folder", folder)) == 4


def test_photos_can_be_sent_to_worker_processes(folder: Path) -> None:
    photo = open_dataset("folder", folder).photos[0]
    sent = pickle.dumps(photo)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).load().targets[2], photo.load().targets[2])


def test_a_wrong_folder_gets_one_line(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'Graabcut': known are GrabCut"):
        open_dataset("Graabcut", folder)
    for name in set(LAYOUTS) - {"folder", "Berkeley"}:
        with pytest.raises(ValueError, match=f"^{name}={folder}: .+; expected .+$"):
            open_dataset(name, folder)
    with pytest.raises(ValueError, match=r"there is no folder .*img; expected img/ and gt/"):
        open_dataset("DAVIS", folder)
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"there are no pictures in .*images"):
        open_dataset("folder", folder)


def test_a_filter_that_keeps_nothing_is_said(folder: Path) -> None:
    with pytest.raises(ValueError, match="there are no photos to measure"):
        open_dataset("folder", folder, keep=lambda name: False)


def test_the_list_has_every_data_set_and_its_counts() -> None:
    lines = describe_datasets({}).splitlines()
    for name, layout in LAYOUTS.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[1] == ("-" if layout.num_photos is None else f"{layout.num_photos:,}")
        assert line.split()[2] == ("-" if layout.num_objects is None else f"{layout.num_objects:,}")
    assert max(map(len, lines)) <= 120


def test_the_list_counts_what_lies_in_given_folders(folder: Path) -> None:
    (folder / "images" / "b.jpg").write_bytes(b"broken")
    text = describe_datasets({"folder": folder, "Berkeley": folder, "DAVIS": folder})
    assert f"folder={folder}: 4 photos, 6 objects, 1 broken\n  left out: 1 × the file cannot be read as a pict" in text
    assert f"for example {folder}/images/b.jpg: cannot be read" in text
    assert f"Berkeley={folder}: 4 photos (published: 100), 0 objects (published: 100), 1 broken" in text
    assert f"DAVIS={folder}: there is no folder {folder}/img; expected img/ and gt/" in text


@pytest.mark.parametrize(("name", "module"), [("SBD", "scipy"), ("coco", "pycocotools")])
def test_a_missing_package_is_said_with_its_remedy(
    folder: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"need {module}: pip install 'skipclick\[eval\]'"):
        open_dataset(name, folder)
