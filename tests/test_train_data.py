"""Protects what training reads: photos with masks, the held-out rule, views and their reproducibility."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from train.augment import AugmentConfig, augment
from train.dataset import Batch, ObjectDataset, collate, is_held_out, list_photos
from train.sampler import SamplerConfig

NUM_PHOTOS = 40


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photos: one or two bright discs on a dark, noisy ground."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    lines = ["name,kind"]
    for i in range(NUM_PHOTOS):
        ids = np.zeros((80, 110), np.uint8)
        for value in range(1, 2 + i % 2):
            centre = int(rng.integers(25, 85)), int(rng.integers(20, 60))
            cv2.circle(ids, centre, int(rng.integers(10, 20)), (value,), cv2.FILLED)
        image = rng.integers(0, 60, (80, 110, 3), dtype=np.uint8)
        image[ids > 0] += np.uint8(150)
        cv2.imwrite(str(folder / "images" / f"photo{i:02}.jpg"), image)
        cv2.imwrite(str(folder / "masks" / f"photo{i:02}.png"), ids)
        lines.append(f"photo{i:02},{'even' if i % 2 == 0 else 'odd'}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_photos_are_either_held_out_or_trained_on(photo_folder: Path) -> None:
    train = {p.name for p in list_photos(photo_folder, "train")}
    held_out = {f"photo{i:02}" for i in range(NUM_PHOTOS)} - train
    assert held_out == {name for name in held_out if is_held_out(name)}
    assert not any(is_held_out(name) for name in train)
    assert len(list_photos(photo_folder, "all")) == NUM_PHOTOS


def test_the_held_out_rule_never_moves() -> None:
    """Results on held-out photos are comparable only while this list stays as it is."""
    assert [i for i in range(100) if is_held_out(f"photo_{i}")] == [35, 40, 63, 68, 80]


def test_kinds_can_be_left_out(photo_folder: Path) -> None:
    names = {p.name for p in list_photos(photo_folder, "all", exclude_kinds=["odd"])}
    assert names == {f"photo{i:02}" for i in range(0, NUM_PHOTOS, 2)}
    with pytest.raises(ValueError, match="known: even, odd"):
        list_photos(photo_folder, "all", exclude_kinds=["strange"])


def test_a_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        list_photos(tmp_path)


def test_a_broken_mask_is_named(photo_folder: Path, tmp_path: Path) -> None:
    photo = replace(list_photos(photo_folder)[0], mask=tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"none\.png"):
        photo.read()
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="does not fit"):
        replace(photo, mask=tmp_path / "small.png").read()


def dataset(folder: Path, view: str = "window") -> ObjectDataset:
    return ObjectDataset(
        list_photos(folder),
        num_objects=2,
        augment_config=AugmentConfig(crop=64, view=view),  # type: ignore[arg-type]
        sampler_config=SamplerConfig(min_object_area=20),
        seed=5,
    )


@pytest.mark.parametrize("view", ["crop", "window"])
def test_a_sample_depends_on_its_position_alone(photo_folder: Path, view: str) -> None:
    first, again = dataset(photo_folder, view), dataset(photo_folder, view)
    again[3]
    sample, same, other = first[7], again[7], again[8]
    for name in ("image", "target", "positives", "negatives"):
        assert getattr(sample, name).equal(getattr(same, name))
    assert not sample.image.equal(other.image)


@pytest.mark.parametrize("view", ["crop", "window"])
def test_image_and_target_are_cut_alike(photo_folder: Path, view: str) -> None:
    """The discs are bright: inside the target the picture must be brighter than outside."""
    samples = dataset(photo_folder, view)
    for position in range(10):
        sample = samples[position]
        brightness = sample.image.float().mean(dim=0)
        for target in sample.target:
            assert brightness[target == 1].mean() > brightness[target == 0].mean() + 30


def test_batches_keep_the_objects_of_a_photo_together(photo_folder: Path) -> None:
    samples = dataset(photo_folder)
    batch = collate([samples[0], samples[1]])
    assert isinstance(batch, Batch)
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.target.shape == (4, 64, 64)
    assert batch.target[2:].equal(samples[1].target)
    assert batch.positives.shape == (4, 24, 2)


@pytest.mark.parametrize("view", ["crop", "window"])
def test_views_have_the_crops_size_whatever_the_photos(view: str) -> None:
    config = AugmentConfig(crop=48, view=view)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for height, width in [(10, 300), (300, 10), (48, 48), (100, 90)]:
        image: NDArray[np.uint8] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ids = rng.integers(0, 3, (height, width), dtype=np.uint8)
        for _ in range(5):
            new_image, new_ids = augment(image, ids, config, rng)
            assert new_image.shape == (48, 48, 3)
            assert new_ids.shape == (48, 48)
            assert set(np.unique(new_ids)) <= {0, 1, 2}


def test_scaling_by_the_released_range_shows_in_object_sizes() -> None:
    ids = np.zeros((64, 64), np.uint8)
    ids[24:40, 24:40] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    rng = np.random.default_rng(0)
    areas = [int((augment(image, ids, AugmentConfig(crop=128), rng)[1] == 1).sum()) for _ in range(200)]
    assert min(areas) >= 0.9 * 256 * 0.75**2
    assert max(areas) <= 1.1 * 256 * 1.40**2
    assert np.std(areas) > 50
