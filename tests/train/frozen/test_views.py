"""Protects the views that the head learns from: crops as zoom-in takes them, and starts that lie where they belong."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from skipclick import Click
from skipclick.zoom import DEFAULT_RULE, around, new_view
from train.frozen.views import draw_view, framed
from train.sources.folder import scene_of_ids


class Oracle:
    """Answers every click with the object itself, in place of a predictor."""

    def __init__(self, ids: NDArray[np.uint8]) -> None:
        self.ids = ids

    def encode(self, image: NDArray[np.uint8]) -> None:
        assert image.shape[:2] == self.ids.shape

    def click(self, features: None, clicks: list[Click], previous: object) -> NDArray[np.float32]:
        value = self.ids[int(clicks[0].y), int(clicks[0].x)]
        return (self.ids == value).astype(np.float32) * 0.8


@pytest.mark.parametrize("seed", range(40))
def test_a_crop_is_servings_view_or_one_moved_within_the_photo(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(30, 700, 2))
    rows, columns = np.sort(rng.integers(0, height, 2)), np.sort(rng.integers(0, width, 2))
    box = int(rows[0]), int(columns[0]), int(rows[1]) + 1, int(columns[1]) + 1
    target = np.zeros((height, width), np.bool_)
    clicks = [Click(float(rng.integers(width)), float(rng.integers(height)))]
    served = new_view(around(clicks, (height, width), box), (height, width), (64, 64))
    frame = framed(box, clicks, target, DEFAULT_RULE, (0, 0), 64)
    assert (frame.top, frame.left, frame.top + frame.height, frame.left + frame.width) == served
    moved = framed(box, clicks, target, DEFAULT_RULE, (int(rng.integers(-99, 99)), int(rng.integers(-99, 99))), 64)
    assert (moved.height, moved.width) == (frame.height, frame.width)
    assert 0 <= moved.top <= height - moved.height
    assert 0 <= moved.left <= width - moved.width


@pytest.mark.parametrize("seed", range(12))
def test_a_zoomed_start_fits_what_is_seen(seed: int) -> None:
    """Target, earlier answer and clicks are moved, scaled and mirrored like the pixels."""
    ids = np.zeros((90, 140), np.uint8)
    cv2.ellipse(ids, (50, 40), (30, 12), 20, 0, 360, (1,), cv2.FILLED)
    cv2.circle(ids, (110, 70), 9, (2,), cv2.FILLED)
    image = np.repeat(np.where(ids > 0, 220, 20).astype(np.uint8)[..., None], 3, axis=2)
    rng = np.random.default_rng(seed)
    view = draw_view(image, scene_of_ids(ids), 96, Oracle(ids), rng, {"zoom": 1.0})  # type: ignore[arg-type]
    assert view.kind == "zoom"
    assert view.start is not None
    target = view.start.target == 1
    assert target.any()
    for other in (view.start.probability > 100, view.image[..., 1] > int(view.image.min()) // 2 + 110):
        seen = other & ~view.scene.covered([1 if view.scene.mask(view.scene.objects[0])[target].any() else 0])
        assert (seen & target).sum() / (seen | target).sum() > 0.85
    assert view.start.clicks
    assert view.start.clicks[0].positive
    assert target[round(view.start.clicks[0].y), round(view.start.clicks[0].x)]
    assert target.mean() > 0.05  # the crop is about the object


def test_views_without_an_object_start_from_nothing() -> None:
    ids = np.zeros((90, 140), np.uint8)
    image = np.zeros((90, 140, 3), np.uint8)
    rng = np.random.default_rng(0)
    view = draw_view(image, scene_of_ids(ids), 96, Oracle(ids), rng, {"zoom": 1.0})  # type: ignore[arg-type]
    assert view.kind == "whole"
    assert view.start is None
