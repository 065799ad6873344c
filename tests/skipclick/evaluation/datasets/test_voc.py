"""Protects SBD and PascalVOC: lists of names, instances from .mat files and from palette colours, the ignored void."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.datasets.voc import LISTED_TWICE
from tests.support.drawn_pictures import blank, save, save_palette, voc_palette


def write_sbd(root: Path, instances: dict[str, NDArray[np.uint8]]) -> Path:
    for name, ids in instances.items():
        save(root / "img" / f"{name}.jpg")
        (root / "inst").mkdir(exist_ok=True)
        fields = {"Segmentation": ids, "Boundaries": np.zeros(3), "Categories": np.array([[15], [2]])}
        savemat(root / "inst" / f"{name}.mat", {"GTinst": fields})
    (root / "val.txt").write_text("".join(f"{name}\n" for name in instances))
    return root


def test_sbd_has_its_instances_in_mat_files(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2, 3], ids[3] = 1, 2, 128
    dataset = open_dataset("SBD", write_sbd(tmp_path, {"2008_000009": ids, "2008_000003": ids}))
    assert [photo.name for photo in dataset.photos] == ["2008_000009", "2008_000003"]
    sample = dataset.load(1)
    assert list(sample.targets) == [1, 2, 128]
    for object_id, target in sample.targets.items():
        np.testing.assert_array_equal(target, ids == object_id)


def test_sbd_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SBD=.*: there is no folder .*img; expected val\.txt, img/NAME\.jpg"):
        open_dataset("SBD", tmp_path)
    root = write_sbd(tmp_path, {"a": blank(), "b": blank(), "c": blank()})
    (root / "inst" / "a.mat").unlink()
    (root / "inst" / "b.mat").write_bytes((root / "inst" / "b.mat").read_bytes()[:150])
    savemat(root / "inst" / "c.mat", {"other": 1})
    dataset = open_dataset("SBD", root)
    with pytest.raises(ValueError, match=r"a\.mat: there is no such file"):
        dataset.load(0)
    for index, name in enumerate("bc", 1):
        with pytest.raises(ValueError, match=rf"{name}\.mat: cannot be read as a \.mat file"):
            dataset.load(index)
    (root / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*val\.txt"):
        open_dataset("SBD", root)


def write_voc(root: Path, ids: NDArray[np.uint8]) -> Path:
    save(root / "JPEGImages" / "2007_000033.jpg")
    save(root / "JPEGImages" / "2007_000032.jpg")  # of the training set
    save_palette(root / "SegmentationObject" / "2007_000033.png", ids, voc_palette())
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n")
    return root


def test_the_palette_is_that_of_pascal() -> None:
    """Or else the next tests would mean nothing: aeroplane, dog, void."""
    assert voc_palette()[[1, 12, 255]].tolist() == [[128, 0, 0], [64, 0, 128], [224, 224, 192]]


def test_voc_ignores_the_void_and_knows_instances_by_their_colour(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2], ids[3] = 1, 2, 255
    (sample,) = open_dataset("PascalVOC", write_voc(tmp_path, ids))
    assert sample.name == "2007_000033"
    objects = [np.where(ids == 255, -1, ids == instance).tolist() for instance in (1, 2)]
    assert [target.tolist() for target in sample.targets.values()] == objects


def test_voc_joins_instances_of_equal_grey_as_published(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2], ids[3] = 1, 16, 4
    (sample,) = open_dataset("PascalVOC", write_voc(tmp_path, ids))
    assert list(sample.targets) == [15, 38]
    np.testing.assert_array_equal(sample.targets[15], ids == 4)
    np.testing.assert_array_equal(sample.targets[38], (ids == 1) | (ids == 16))


def test_lists_as_editors_write_them(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows, a photo twice, a second column."""
    ids = blank()
    ids[1] = 1
    root = write_sbd(tmp_path, {"a": ids, "b": ids})
    (root / "val.txt").write_bytes("a  1\r\nb -1\r\n\r\na 1\r\n".encode("utf-8-sig"))
    dataset = open_dataset("SBD", root)
    assert [sample.name for sample in dataset] == ["a", "b"]
    assert dataset.left_out == (LeftOut(LISTED_TWICE, "a"),)
