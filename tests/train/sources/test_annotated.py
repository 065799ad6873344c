"""Protects COCO JSON and Label Studio exports as training sources: overlapping objects stay whole, crowds ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from skipclick.evaluation.datasets import LAYOUTS, open_dataset
from skipclick.evaluation.datasets.left_out import count_by_reason
from skipclick.evaluation.datasets.sample import mask_targets
from tests.support.coco_files import SQUARE, SQUARE_PIXELS, run_lengths, write_set
from tests.support.drawn_pictures import HEIGHT, WIDTH, blank, save
from tests.support.recorded import recorded_requests
from train.scene import scene_of_masks
from train.sources import open_sources
from train.sources.annotated import scene_of_targets

MASKS = st.lists(arrays(np.bool_, (HEIGHT, WIDTH)), max_size=5)


@given(MASKS)
def test_overlapping_masks_come_back_whole(masks: list[NDArray[np.bool_]]) -> None:
    scene = scene_of_masks(masks, (HEIGHT, WIDTH))
    for part, mask in zip(scene.objects, masks, strict=True):
        np.testing.assert_array_equal(scene.mask(part), mask)
    np.testing.assert_array_equal(scene.covered(range(len(masks))), np.any([blank() > 0, *masks], axis=0))


def test_a_layer_has_255_objects_at_most() -> None:
    masks = [np.arange(300) == i for i in range(300)]
    scene = scene_of_masks([mask.reshape(10, 30) for mask in masks], (10, 30))
    assert scene.layers.shape == (2, 10, 30)
    assert scene.areas == (1,) * 300


@given(MASKS.filter(len), arrays(np.bool_, (HEIGHT, WIDTH)))
def test_what_is_ignored_for_an_evaluation_is_ignored_for_training(
    masks: list[NDArray[np.bool_]], ignored: NDArray[np.bool_]
) -> None:
    targets = mask_targets(dict(enumerate(masks)), ignored)
    scene = scene_of_targets(targets, (HEIGHT, WIDTH))
    for part, target in zip(scene.objects, targets.values(), strict=True):
        again = scene.mask(part).astype(np.int8)
        if scene.ignored is not None:
            again[scene.ignored & (again == 0)] = -1
        np.testing.assert_array_equal(again, target)


def test_coco_with_overlapping_objects_and_a_crowd(tmp_path: Path) -> None:
    other, crowd = blank() > 0, blank() > 0
    other[2:, 3:], crowd[4:] = True, True
    write_set(tmp_path, {1: [SQUARE], 2: run_lengths(other), 3: run_lengths(crowd)}, crowds=(3,))
    (source,) = open_sources([str(tmp_path)], "all").parts
    assert source.kind == "coco"
    image, scene = source.photos[0].load()
    assert image.shape == (HEIGHT, WIDTH, 3)
    square = blank() > 0
    square[SQUARE_PIXELS] = True
    first, second = (scene.mask(part) for part in scene.objects)
    np.testing.assert_array_equal(first, square)
    np.testing.assert_array_equal(second, other)
    assert len(scene.layers) == 2
    assert scene.ignored is not None
    np.testing.assert_array_equal(scene.ignored, crowd)


def test_a_task_that_label_studio_sent(tmp_path: Path) -> None:
    """Recorded: two discs, of Ski and Helmet, that were submitted in Label Studio 1.23.2."""
    tasks = [request["body"]["tasks"][0] for request in recorded_requests("18", "/predict")]
    recorded = next(task for task in reversed(tasks) if task["annotations"])
    (tmp_path / "export.json").write_text(json.dumps([recorded]))
    save(tmp_path / "images" / "im16.png", np.zeros((120, 160, 3), np.uint8))
    (source,) = open_sources([str(tmp_path)], "all").parts
    assert source.kind == "label-studio"
    _, scene = source.photos[0].load()
    (sample,) = (photo.load() for photo in LAYOUTS["label-studio"].list_photos(tmp_path).photos)
    assert len(scene.objects) == len(sample.targets) == 2
    for part, target in zip(scene.objects, sample.targets.values(), strict=True):
        np.testing.assert_array_equal(scene.mask(part), target == 1)


def test_training_reads_what_the_benchmark_reads(tmp_path: Path) -> None:
    """The objects, what is left out, and crowds as objects where that is asked for."""
    crowd = run_lengths(blank() == 0)
    write_set(tmp_path, {1: [SQUARE], 2: [], 3: crowd, 4: [SQUARE[:4]]}, crowds=(3,))
    for kind, num_objects in (("coco", 1), ("coco-with-crowds", 2)):
        (source,) = open_sources([f"{kind}:{tmp_path}"], "all").parts
        dataset = open_dataset(kind, tmp_path)
        _, scene = source.photos[0].load()
        assert len(scene.objects) == len(dataset.load(0).targets) == num_objects
        assert scene.left_out == tuple(count_by_reason(dataset.load(0).left_out))
        assert source.left_out == dataset.left_out
    assert [one.count for one in scene.left_out] == [1, 1]
