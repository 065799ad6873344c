"""Protects id maps of 8 and 16 bits as scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from skipclick.evaluation.datasets import open_dataset
from tests.support.drawn_pictures import HEIGHT, PHOTO, WIDTH, blank, save
from train.sources.folder import NO_MASK, NO_PHOTO, list_folder, scene_of_ids


def write(root: Path, mask: NDArray[np.generic], name: str = "a") -> Path:
    save(root / "images" / f"{name}.png")
    save(root / "masks" / f"{name}.png", mask)
    return root


@given(
    st.one_of(
        arrays(np.uint8, (HEIGHT, WIDTH), elements=st.sampled_from([0, 1, 7, 128, 255])),
        arrays(np.uint16, (HEIGHT, WIDTH), elements=st.sampled_from([0, 1, 128, 300, 65534, 65535])),
    )
)
def test_each_id_is_an_object(ids: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    ignored_id = 128 if ids.dtype == np.uint8 else 65535
    scene = scene_of_ids(ids)
    values = [value for value in np.unique(ids) if value not in (0, ignored_id)]
    assert len(scene.objects) == len(values)
    for part, value in zip(scene.objects, values, strict=True):
        np.testing.assert_array_equal(scene.mask(part), ids == value)
    ignored = np.zeros(ids.shape, np.bool_) if scene.ignored is None else scene.ignored
    np.testing.assert_array_equal(ignored, ids == ignored_id)
    assert scene.areas == tuple(int((ids == value).sum()) for value in values)


def test_more_than_255_objects_take_several_layers(tmp_path: Path) -> None:
    ids = (np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) // 2) * 100 % 60_000
    save(tmp_path / "images" / "a.png", blank(30, 40, 3))
    save(tmp_path / "masks" / "a.png", ids)
    _, scene = list_folder(tmp_path, "all").photos[0].load()
    assert scene.layers.shape == (3, 30, 40)
    assert [int(ids[scene.mask(part)].mean()) for part in scene.objects] == list(range(100, 60_000, 100))


def test_photos_without_mask_are_left_out_and_kinds_are_read(tmp_path: Path) -> None:
    write(write(tmp_path, blank(), "a"), blank(), "b")
    save(tmp_path / "images" / "c.png")
    save(tmp_path / "masks" / "d.png", blank())
    (tmp_path / "index.csv").write_text("name,kind\na,person\n", encoding="utf-8-sig")  # as Excel writes it
    listing = list_folder(tmp_path, "all")
    assert [(photo.name, photo.kind) for photo in listing.photos] == [("a", "person"), ("b", None)]
    assert [(one.reason, Path(one.example).name) for one in listing.left_out] == [
        (NO_MASK, "c.png"),
        (NO_PHOTO, "d.png"),
    ]
    (tmp_path / "index.csv").write_text("photo,kind\na,person\n")
    with pytest.raises(ValueError, match=r"index\.csv lacks the column name"):
        list_folder(tmp_path, "all")


def test_broken_masks_are_named(tmp_path: Path) -> None:
    (photo,) = list_folder(write(tmp_path, blank(4, 4)), "all").photos
    with pytest.raises(ValueError, match=r"a: a mask of shape \(4, 4\) does not fit"):
        photo.load()
    (tmp_path / "masks" / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"masks/a\.png"):
        photo.load()


def test_a_photo_lies_as_its_mask_does(tmp_path: Path) -> None:
    """One that EXIF turns, with masks drawn on it as stored and as shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, shape in (("a", (HEIGHT, WIDTH)), ("b", (WIDTH, HEIGHT))):
        write(tmp_path, blank(*shape) + 1, name)
        Image.fromarray(PHOTO).save(tmp_path / "images" / f"{name}.png", exif=exif)
    loaded = [photo.load()[0].shape[:2] for photo in list_folder(tmp_path, "all").photos]
    assert loaded == [(HEIGHT, WIDTH), (WIDTH, HEIGHT)]
    assert [sample.image.shape[:2] for sample in open_dataset("folder", tmp_path)] == loaded
