"""Protects data sets of two folders: which mask belongs to which photo, what its values mean, what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.image_mask_folders import HQSEG_PARTS
from tests.support.drawn_pictures import PHOTO, blank, save, save_palette, voc_palette

FOLDERS = {
    "GrabCut": ("data_GT", "boundary_GT"),
    "Berkeley": ("images", "masks"),
    "DAVIS": ("img", "gt"),
    "COCO_MVal": ("img", "gt"),
    "folder": ("images", "masks"),
}


def write_set(root: Path, name: str, masks: dict[str, NDArray[np.generic]], suffix: str = ".png") -> Path:
    images_folder, masks_folder = FOLDERS[name]
    for stem, mask in masks.items():
        save(root / images_folder / f"{stem}.png")
        save(root / masks_folder / f"{stem}{suffix}", mask)
    return root


@pytest.mark.parametrize("name", ["GrabCut", "Berkeley"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_trimaps_ignore_128(tmp_path: Path, name: str, channels: int, suffix: str) -> None:
    mask = blank()
    mask[1, :3], mask[2, :3], mask[3, 0], mask[3, 1] = 255, 128, 197, 127
    stored = mask if channels == 1 else np.repeat(mask[:, :, None], 3, axis=2)
    (sample,) = open_dataset(name, write_set(tmp_path, name, {"a": stored}, suffix))
    assert sample.name == "a"
    np.testing.assert_array_equal(sample.image, PHOTO)
    np.testing.assert_array_equal(sample.targets[1], np.where(mask == 128, -1, mask > 128))
    assert sample.targets[1].dtype == np.int8


@pytest.mark.parametrize("name", ["DAVIS", "COCO_MVal"])
def test_davis_takes_any_colour_and_ignores_nothing(tmp_path: Path, name: str) -> None:
    mask = blank(6, 8, 3)
    mask[1, 1], mask[2, 2], mask[3, 3] = (0, 0, 1), (128, 0, 0), (0, 255, 0)
    (sample,) = open_dataset(name, write_set(tmp_path, name, {"a": mask}))
    np.testing.assert_array_equal(sample.targets[1], mask.any(axis=2))


def test_davis_joins_the_objects_of_a_palette(tmp_path: Path) -> None:
    """DAVIS' own masks: object 1 has the colour (128, 0, 0), which is not "ignored" here."""
    ids = blank()
    ids[1, 1], ids[2, 2] = 1, 2
    save(tmp_path / "img" / "a.jpg")
    save_palette(tmp_path / "gt" / "a.png", ids, voc_palette())
    (sample,) = open_dataset("DAVIS", tmp_path)
    np.testing.assert_array_equal(sample.targets[1], ids > 0)


def test_a_folder_gives_each_instance_its_target(tmp_path: Path) -> None:
    mask = blank()
    mask[0], mask[1], mask[2] = 1, 200, 128
    (sample,) = open_dataset("folder", write_set(tmp_path, "folder", {"a": mask}))
    assert list(sample.targets) == [1, 200]
    for object_id, target in sample.targets.items():
        np.testing.assert_array_equal(target, np.where(mask == 128, -1, mask == object_id))


def test_16_bits_have_room_for_more_instances(tmp_path: Path) -> None:
    mask = blank().astype(np.uint16)
    mask[0], mask[1], mask[2], mask[3] = 128, 300, 65535, 40000
    (sample,) = open_dataset("folder", write_set(tmp_path, "folder", {"a": mask}))
    assert list(sample.targets) == [128, 300, 40000]
    for object_id, target in sample.targets.items():
        np.testing.assert_array_equal(target, np.where(mask == 65535, -1, mask == object_id))


def test_hqseg_joins_its_four_parts(tmp_path: Path) -> None:
    masks = {}
    for number, (part, (images, gt)) in enumerate(HQSEG_PARTS.items()):
        masks[part] = blank()
        masks[part][number] = 7
        for name in ("b", "a"):
            save(tmp_path / images / f"{name}.jpg")
            save(tmp_path / gt / f"{name}.png", masks[part])
    samples = list(open_dataset("HQSeg-44k", tmp_path))
    assert [sample.name for sample in samples] == [f"{part}/{name}" for part in HQSEG_PARTS for name in "ab"]
    assert list(HQSEG_PARTS) == ["DIS5K-VD", "ThinObject5K-TE", "COIFT", "HRSOD"]
    for sample in samples:
        np.testing.assert_array_equal(sample.targets[1], masks[sample.name.split("/")[0]] > 0)


def test_a_photo_without_object_has_no_targets(tmp_path: Path) -> None:
    (sample,) = open_dataset("GrabCut", write_set(tmp_path, "GrabCut", {"a": blank()}))
    assert sample.targets == {}


def test_what_lacks_its_partner_is_named_when_it_is_read(tmp_path: Path) -> None:
    mask = blank()
    mask[0] = 1
    root = write_set(tmp_path, "folder", {"a": mask, "b": mask, "c": mask})
    (root / "masks" / "a.png").unlink()
    (root / "images" / "b.png").unlink()
    dataset = open_dataset("folder", root)
    with pytest.raises(ValueError, match=r"masks/a\.png: there is no such file"):
        dataset.load(0)
    with pytest.raises(ValueError, match=r"images/b\.jpg: there is no such file"):
        dataset.load(1)
    assert list(dataset.load(2).targets) == [1]


def test_only_pictures_count(tmp_path: Path) -> None:
    root = write_set(tmp_path, "folder", {"a": blank()})
    (root / "images" / "Thumbs.db").write_bytes(b"")
    (root / "images" / "._a.png").write_bytes(b"")
    assert [photo.name for photo in open_dataset("folder", root).photos] == ["a"]
    save(root / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"has both a\.jpg and a\.png: their names must differ"):
        open_dataset("folder", root)
