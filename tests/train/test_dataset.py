"""Protects training samples: views of photos and masks together, their reproducibility, broken photos passed over."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from skipclick.evaluation.datasets.left_out import LeftOut
from tests.support.photo_folder import dataset
from train.augment import AugmentConfig, augment, labels_in, pixels_in, random_crop, random_window
from train.dataset import NO_USABLE, Batch, ObjectDataset, collate, report_left_out, watched
from train.sampler import SamplerConfig
from train.scene import Scene, SceneObject
from train.sources import Photo, Source, Sources, open_sources

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECK_SET = Path(__file__).parents[2] / "skipclick" / "evaluation" / "check_set"


@pytest.mark.parametrize("view", ["crop", "window"])
def test_samples_of_a_plain_folder_never_change(view: str) -> None:
    """Runs on a plain folder can be repeated and resumed while they stay: recorded before layers came (b85a1cb).

    Targets and clicks to the bit; pixels within 1, as resizing may round otherwise on other processors.
    """
    recorded = np.load(FIXTURES / "train_stream.npz")
    samples = ObjectDataset(
        open_sources([str(CHECK_SET)]),
        num_objects=2,
        augment_config=AugmentConfig(crop=192, view=view),  # type: ignore[arg-type]
        sampler_config=SamplerConfig(single_centre_prob=0.5),
        seed=3,
    )
    for position, (pixels, checksums) in enumerate(
        zip(recorded[f"{view}_image"], recorded[f"{view}_checksum"], strict=True)
    ):
        sample = samples[position]
        found = [
            zlib.crc32(tensor.contiguous().numpy().tobytes())
            for tensor in (sample.target, sample.positives, sample.negatives)
        ]
        assert found == checksums.tolist(), position
        np.testing.assert_allclose(sample.image[:, ::16, ::16].numpy().astype(int), pixels, atol=1)


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
    batch = collate([samples[0], replace(samples[1], left_out=(LeftOut("missing", "a.jpg"),))])
    assert isinstance(batch, Batch)
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.target.shape == (4, 64, 64)
    assert batch.target[2:].equal(samples[1].target)
    assert batch.positives.shape == (4, 24, 2)
    assert batch.left_out == (LeftOut("missing", "a.jpg"),)


@pytest.mark.parametrize("view", ["crop", "window"])
def test_views_have_the_crops_size_whatever_the_photos(view: str) -> None:
    config = AugmentConfig(crop=48, view=view)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for height, width in [(10, 300), (300, 10), (48, 48), (100, 90)]:
        image: NDArray[np.uint8] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        scene = Scene(rng.integers(0, 3, (2, height, width), dtype=np.uint8), ())
        for _ in range(5):
            new_image, new_scene = augment(image, scene, config, rng)
            assert new_image.shape == (48, 48, 3)
            assert new_scene.layers.shape == (2, 48, 48)
            assert set(np.unique(new_scene.layers)) <= {0, 1, 2}


@pytest.mark.parametrize("view", ["crop", "window"])
def test_all_layers_and_ignored_pixels_are_cut_alike(view: str) -> None:
    """One picture in every layer must come out as one picture: overlapping masks stay aligned."""
    rng = np.random.default_rng(0)
    layer = np.kron(rng.integers(0, 2, (9, 11), dtype=np.uint8), np.ones((7, 9), np.uint8))
    photo = np.repeat(layer[..., None] * np.uint8(200), 3, axis=2)
    scene = Scene(np.stack([layer, 3 * layer]), (SceneObject(0, 1), SceneObject(1, 3)), ignored=layer > 0)
    config = AugmentConfig(crop=40, view=view)  # type: ignore[arg-type]
    for _ in range(20):
        image, seen = augment(photo, scene, config, rng)
        assert seen.ignored is not None
        np.testing.assert_array_equal(seen.layers[0], seen.ignored)
        np.testing.assert_array_equal(seen.layers[1], 3 * seen.layers[0])
        brightness = image.mean(axis=2)
        if 0 < seen.ignored.mean() < 1:
            assert brightness[seen.ignored].mean() > brightness[~seen.ignored].mean() + 60


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["crop", "window"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_photo_and_masks_are_what_torchvision_would_make_of_them(
    height: int, width: int, view: str, flipped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = AugmentConfig(crop=40)
    frame = (random_crop if view == "crop" else random_window)((height, width), config, rng)
    frame = replace(frame, flipped=flipped)

    def by_torchvision(planes: NDArray[np.uint8], mode: InterpolationMode) -> NDArray[np.uint8]:
        whole = V.crop(torch.from_numpy(planes), frame.top, frame.left, frame.height, frame.width)
        resized = V.resize(whole, list(frame.size), mode, antialias=True)
        view = V.crop(resized, *frame.corner, config.crop, config.crop)  # pads with 0 beyond the edges
        return np.asarray((V.hflip(view) if flipped else view).numpy())

    seen = labels_in(frame, layers, config.crop)
    np.testing.assert_array_equal(seen, by_torchvision(layers, InterpolationMode.NEAREST))
    pixels = by_torchvision(photo.transpose(2, 0, 1), InterpolationMode.BILINEAR).transpose(1, 2, 0)
    # within 1: without AVX2 torchvision resizes floats
    np.testing.assert_allclose(pixels_in(frame, photo, config.crop).astype(int), pixels, atol=1)


def test_scaling_by_the_released_range_shows_in_object_sizes() -> None:
    ids = np.zeros((1, 64, 64), np.uint8)
    ids[0, 24:40, 24:40] = 1
    scene = Scene(ids, (SceneObject(0, 1),))
    image = np.zeros((64, 64, 3), np.uint8)
    rng = np.random.default_rng(0)
    areas = [augment(image, scene, AugmentConfig(crop=128), rng)[1].areas[0] for _ in range(200)]
    assert min(areas) >= 0.9 * 256 * 0.75**2
    assert max(areas) <= 1.1 * 256 * 1.40**2
    assert np.std(areas) > 50


def test_a_view_has_an_object_save_for_a_small_share() -> None:
    """An object in a corner of a large photo, seen by 3.5 % of the views; any other is kept with a probability."""
    ids = np.zeros((1, 200, 200), np.uint8)
    ids[0, :30, :30] = 1
    scene = Scene(ids, (SceneObject(0, 1),))
    sources = as_sources([Photo("corner", partial(answer, (np.zeros((200, 200, 3), np.uint8), scene)))])
    seen = (30 / 161) ** 2
    for keep in (0.0, 0.05, 1.0):
        samples = ObjectDataset(
            sources,
            num_objects=1,
            augment_config=AugmentConfig(crop=40, scale=(1.0, 1.0)),
            sampler_config=SamplerConfig(min_object_area=1, keep_background_prob=keep, max_draws=400),
            seed=0,
        )
        empty = np.mean([not (samples[i].target == 1).any() for i in range(150)])
        assert empty == pytest.approx(keep * (1 - seen) / (keep * (1 - seen) + seen), abs=0.12), keep


def answer(value: tuple[NDArray[np.uint8], Scene]) -> tuple[NDArray[np.uint8], Scene]:
    return value


def fail(name: str) -> tuple[NDArray[np.uint8], Scene]:
    raise ValueError(f"{name}: cannot be read")


def as_sources(photos: list[Photo]) -> Sources:
    return Sources((Source("folder", Path("drawn"), 1.0, tuple(photos)),))


def with_broken(folder: Path, num_broken: int) -> ObjectDataset:
    (source,) = open_sources([str(folder)]).parts
    broken = [Photo(f"broken{i}", partial(fail, f"broken{i}.jpg")) for i in range(num_broken)]
    samples = dataset(folder)
    samples.sources = as_sources([*broken, *source.photos])
    return samples


def batches(samples: ObjectDataset, count: int = 200) -> Iterator[Batch]:
    return (collate([samples[i], samples[i + 1]]) for i in range(0, count, 2))


def test_a_broken_photo_is_counted_and_passed_over(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = with_broken(photo_folder, 2)
    left_out: set[LeftOut] = set()
    found = list(watched(batches(samples), left_out))
    assert len(found) == 100
    assert {one.example for one in left_out} == {f"broken{i}.jpg: cannot be read" for i in (0, 1)}
    assert all(batch.target.shape == (4, 64, 64) for batch in found)
    assert len(capsys.readouterr().err.splitlines()) == 1, "the reason, once"
    report_left_out(left_out)
    assert "left out: 2 × the photo or its masks cannot be used, for example broken0.jpg" in capsys.readouterr().err


def test_training_goes_on_while_there_is_an_object(photo_folder: Path) -> None:
    """However many photos are broken, and wherever the good one is."""
    samples = with_broken(photo_folder, 3000)
    good = samples.sources.parts[0].photos[-1]
    samples.sources = as_sources([*samples.sources.parts[0].photos[:3000], good])
    left_out: set[LeftOut] = set()
    found = list(watched(batches(samples, 4), left_out))
    assert all((batch.target == 1).any() for batch in found)
    assert len(left_out) == 3000
    assert samples[3].image.equal(found[1].image[1])


def test_a_photo_of_which_no_annotation_can_be_used_is_no_background(photo_folder: Path) -> None:
    """It holds objects, only nobody can tell where."""
    (source,) = open_sources([str(photo_folder)]).parts
    image = np.zeros((80, 110, 3), np.uint8)
    nothing = Scene(np.zeros((1, 80, 110), np.uint8), (), left_out=(LeftOut("no mask", "x.jpg, annotation 3"),))
    samples = dataset(photo_folder)
    samples.sources = as_sources([Photo("x.jpg", partial(answer, (image, nothing)))] * 5 + list(source.photos[:1]))
    left_out: set[LeftOut] = set()
    assert all((batch.target == 1).any() for batch in watched(batches(samples, 20), left_out))
    assert left_out == {LeftOut("no mask", "x.jpg, annotation 3"), LeftOut(NO_USABLE, "x.jpg")}


def test_where_all_is_broken_drawing_ends() -> None:
    broken = ObjectDataset(
        as_sources([Photo("a", partial(fail, "a.jpg"))]),
        num_objects=1,
        augment_config=AugmentConfig(crop=64),
        sampler_config=SamplerConfig(),
        seed=0,
    )
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read"):
        broken[0]
