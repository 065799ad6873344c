"""Protects how evaluation sets are read: layouts, ignored pixels, instances, EXIF, and what is said when it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.datasets import LAYOUTS, open_dataset

PHOTO = np.zeros((6, 8, 3), np.uint8)
PHOTO[0, 0] = (255, 0, 0)  # red, to catch swapped channels


def write_set(root: Path, layout: str, masks: dict[str, NDArray[np.uint8]], photo: NDArray[np.uint8] = PHOTO) -> Path:
    for folder in (LAYOUTS[layout].image_folder, LAYOUTS[layout].mask_folder):
        (root / folder).mkdir()
    for name, mask in masks.items():
        Image.fromarray(photo).save(root / LAYOUTS[layout].image_folder / f"{name}.png")
        Image.fromarray(mask).save(root / LAYOUTS[layout].mask_folder / f"{name}.bmp")
    return root


def blank(*shape: int) -> NDArray[np.uint8]:
    return np.zeros(shape or (6, 8), np.uint8)


@pytest.mark.parametrize("layout", ["GrabCut", "Berkeley"])
@pytest.mark.parametrize("channels", [1, 3])
def test_trimaps_ignore_128(tmp_path: Path, layout: str, channels: int) -> None:
    mask = blank()
    mask[1, :3], mask[2, :3] = 255, 128
    stored = mask if channels == 1 else np.repeat(mask[:, :, None], 3, axis=2)
    (sample,) = open_dataset(layout, write_set(tmp_path, layout, {"a": stored}))
    assert sample.name == "a"
    np.testing.assert_array_equal(sample.image, PHOTO)
    expected = np.where(mask == 255, 1, np.where(mask == 128, -1, 0))
    np.testing.assert_array_equal(sample.targets[1], expected)
    assert sample.targets[1].dtype == np.int8


def test_davis_takes_any_colour_and_ignores_nothing(tmp_path: Path) -> None:
    mask = blank(6, 8, 3)
    mask[1, 1], mask[2, 2], mask[3, 3] = (0, 0, 1), (128, 0, 0), (0, 255, 0)
    (sample,) = open_dataset("DAVIS", write_set(tmp_path, "DAVIS", {"a": mask}))
    np.testing.assert_array_equal(sample.targets[1], mask.any(axis=2))


def test_a_folder_gives_each_instance_its_target(tmp_path: Path) -> None:
    mask = blank()
    mask[0], mask[1], mask[2] = 1, 200, 128
    (sample,) = open_dataset("folder", write_set(tmp_path, "folder", {"a": mask}))
    assert list(sample.targets) == [1, 200]
    for object_id, target in sample.targets.items():
        np.testing.assert_array_equal(target, np.where(mask == 128, -1, mask == object_id))


def test_photos_come_by_name_and_can_be_limited_and_filtered(tmp_path: Path) -> None:
    mask = blank()
    mask[0] = 1
    root = write_set(tmp_path, "folder", dict.fromkeys(("c", "a", "b", "d"), mask))
    assert [sample.name for sample in open_dataset("folder", root)] == ["a", "b", "c", "d"]
    assert [sample.name for sample in open_dataset("folder", root, limit=3, keep=lambda name: name != "a")] == [
        "b",
        "c",
        "d",
    ]


def test_a_photo_without_object_has_no_targets(tmp_path: Path) -> None:
    (sample,) = open_dataset("GrabCut", write_set(tmp_path, "GrabCut", {"a": blank()}))
    assert sample.targets == {}


def test_photos_are_turned_as_exif_says(tmp_path: Path) -> None:
    root = write_set(tmp_path, "DAVIS", {"a": np.ones((8, 6), np.uint8)})
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90°
    Image.fromarray(PHOTO).save(root / "img" / "a.png", exif=exif)
    (sample,) = open_dataset("DAVIS", root)
    np.testing.assert_array_equal(sample.image, np.rot90(PHOTO, -1))


def test_failures_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'Graabcut': known are GrabCut"):
        open_dataset("Graabcut", tmp_path)
    with pytest.raises(ValueError, match="no folder 'img'"):
        open_dataset("DAVIS", tmp_path)
    root = write_set(tmp_path, "DAVIS", {"a": blank(5, 8)})
    with pytest.raises(ValueError, match=r"mask's size \(5, 8\) is not the photo's \(6, 8\)"):
        open_dataset("DAVIS", root)[0]
    with pytest.raises(ValueError, match="no photos here"):
        open_dataset("DAVIS", root, keep=lambda name: False)
    (root / "gt" / "a.bmp").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="cannot be read"):
        open_dataset("DAVIS", root)[0]
    (root / "gt" / "a.bmp").unlink()
    with pytest.raises(ValueError, match="1 photos have no mask"):
        open_dataset("DAVIS", root)


def test_an_instance_mask_has_one_channel(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_set(tmp_path, "folder", {"a": blank(6, 8, 3)}))
    with pytest.raises(ValueError, match="one channel, not 3"):
        dataset[0]
