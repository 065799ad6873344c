"""Protects WSESeg and SHSeg: mask_X.png beside X.jpg, ten classes, no EXIF, photos that are published elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.datasets.winter_sports import WSESEG_FOLDERS
from tests.support.drawn_pictures import PHOTO, blank, save


def test_wseseg_has_ten_classes(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2], ids[3] = 1, 128, 255  # nothing is ignored
    for folder in WSESEG_FOLDERS.values():
        save(tmp_path / folder / "2.jpg")
        save(tmp_path / folder / "mask_2.png", ids)
    samples = list(open_dataset("WSESeg", tmp_path))
    assert len(samples) == 10
    assert [sample.category for sample in samples] == list(WSESEG_FOLDERS)
    assert samples[0].name == "flickr_bobsleighs/2"
    assert samples[-1].name == "yt_sports/2"
    for sample in samples:
        assert list(sample.targets) == [1, 128, 255]
        for object_id, target in sample.targets.items():
            np.testing.assert_array_equal(target, ids == object_id)


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    save(tmp_path / "flickr_bobsleighs" / "mask_1.png", blank())
    with pytest.raises(ValueError, match=r"there is no folder .*flickr_curling_brooms; expected nine folders"):
        open_dataset("WSESeg", tmp_path)


def test_shseg_is_a_flat_folder_of_photos_as_stored(tmp_path: Path) -> None:
    ids = blank()
    ids[1], ids[2] = 1, 2
    save(tmp_path / "mask_AL_001_7.png", ids)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PHOTO[:, :, 0]).save(tmp_path / "AL_001_7.jpg", exif=exif, quality=100)  # a grey one, upside down
    (sample,) = open_dataset("SHSeg", tmp_path)
    assert (sample.name, sample.category, list(sample.targets)) == ("AL_001_7", None, [1, 2])
    assert sample.image.shape == PHOTO.shape
    assert sample.image[0, 0].tolist() > sample.image[-1, -1].tolist()


def test_masks_come_without_photos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no mask_\*\.png in"):
        open_dataset("SHSeg", tmp_path)
    save(tmp_path / "mask_a.png", blank())
    with pytest.raises(ValueError, match=r"a\.jpg: there is no such file"):
        open_dataset("SHSeg", tmp_path).load(0)
