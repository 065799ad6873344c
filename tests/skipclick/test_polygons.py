"""Protects masks on their way to polygons and back: nothing is lost but what the IoU floor allows."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from skimage import data

from skipclick import polygons
from skipclick.masks import BoxMask
from skipclick.polygons import MAX_CROSSINGS, Polygon, Ring, outline, rasterize, signed_area
from skipclick.polygons import bridged as join

masks = array_shapes(min_dims=2, max_dims=2, max_side=24).flatmap(lambda shape: arrays(np.bool_, shape))


def all_rings(polygons: tuple[Polygon, ...]) -> list[Ring]:
    return [ring for polygon in polygons for ring in polygon.rings]


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def disk_with_a_hole() -> NDArray[np.bool_]:
    y, x = np.ogrid[:240, :320]
    disk: NDArray[np.bool_] = ((x - 150) ** 2 + (y - 120) ** 2 < 100**2) & ((x - 170) ** 2 + (y - 110) ** 2 >= 30**2)
    return disk


@given(mask=masks)
def test_with_a_floor_of_one_polygons_are_exact(mask: NDArray[np.bool_]) -> None:
    found = outline(BoxMask.of(mask), 1.0)
    assert found.iou == 1
    np.testing.assert_array_equal(rasterize(all_rings(found.polygons), mask.shape), mask)


@given(mask=masks, floor=st.floats(0, 1))
def test_the_iou_that_is_told_is_that_of_the_polygons_and_not_below_the_floor(
    mask: NDArray[np.bool_], floor: float
) -> None:
    found = outline(BoxMask.of(mask), floor)
    assert found.iou >= floor
    assert found.iou == pytest.approx(iou(rasterize(all_rings(found.polygons), mask.shape), mask))


@given(mask=masks, floor=st.floats(0, 1), place=st.randoms(use_true_random=False))
def test_held_pixels_stay_on_their_side(mask: NDArray[np.bool_], floor: float, place: random.Random) -> None:
    """Whatever the floor allows; and of a mask in the corner of a larger photo."""
    photo = np.pad(mask, ((3, 1), (2, 4)))
    held = np.array([[place.randrange(side) for side in photo.shape] for _ in range(4)])
    found = outline(BoxMask.of(photo), floor, held=held)
    assert found.iou >= floor
    rows, columns = held.T
    np.testing.assert_array_equal(
        rasterize(all_rings(found.polygons), photo.shape)[rows, columns], photo[rows, columns]
    )


@given(mask=masks)
def test_bridges_keep_holes_in_a_single_ring(mask: NDArray[np.bool_]) -> None:
    bridged = [polygon.with_bridges() for polygon in outline(BoxMask.of(mask), 1.0).polygons]
    np.testing.assert_array_equal(rasterize(bridged, mask.shape), mask)
    if mask.any():
        everything = join(all_rings(outline(BoxMask.of(mask), 1.0).polygons))
        np.testing.assert_array_equal(rasterize([everything], mask.shape), mask)


@given(mask=masks, most=st.integers(3, 8))
def test_no_ring_has_more_points_than_asked_for(mask: NDArray[np.bool_], most: int) -> None:
    found = outline(BoxMask.of(mask), 1.0, most)
    assert all(len(ring) <= most for ring in all_rings(found.polygons))
    assert found.iou == pytest.approx(iou(rasterize(all_rings(found.polygons), mask.shape), mask))


def test_holes_belong_to_the_part_around_them_and_run_the_other_way() -> None:
    mask = disk_with_a_hole()
    mask[10:30, 290:310] = True
    large, small = outline(BoxMask.of(mask)).polygons
    assert (len(large.holes), len(small.holes)) == (1, 0)
    assert signed_area(large.outer) > 0 > signed_area(large.holes[0])


def test_a_smooth_object_needs_few_points() -> None:
    found = outline(BoxMask.of(disk_with_a_hole()))
    assert found.iou >= 0.99
    assert sum(len(ring) for ring in all_rings(found.polygons)) < 60


def test_a_real_silhouette_agrees_with_pycocotools() -> None:
    """Which fills polygons by a rule of its own: an outline through the centres of pixels would lose half a pixel."""
    horse = ~data.horse().astype(bool)
    found = outline(BoxMask.of(horse), 1.0)
    rings = [polygon.with_bridges().ravel().tolist() for polygon in found.polygons]
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *horse.shape))).astype(bool)
    assert iou(theirs, horse) > 0.995
    assert outline(BoxMask.of(horse), 0.99).iou >= 0.99


def test_an_empty_mask_has_no_polygons() -> None:
    found = outline(BoxMask.of(np.zeros((5, 7), bool)))
    assert (found.polygons, found.iou) == ((), 1.0)


def test_what_lies_outside_the_photo_is_cut_off() -> None:
    square = np.array([[-5.0, -5.0], [3.0, -5.0], [3.0, 2.0], [-5.0, 2.0]])
    expected = np.zeros((4, 6), bool)
    expected[:2, :3] = True
    np.testing.assert_array_equal(rasterize([square], (4, 6)), expected)


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_out_of_range_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        outline(BoxMask.of(np.ones((2, 2), bool)), floor)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        outline(BoxMask.of(np.ones((2, 2), bool)), 0.9, 2)


@pytest.mark.parametrize("ring", [np.zeros((2, 2)), np.zeros((3, 3)), np.full((3, 2), np.nan)])
def test_a_ring_that_is_none_is_refused(ring: Ring) -> None:
    with pytest.raises(ValueError, match="at least 3 points"):
        rasterize([ring], (4, 4))


def test_in_parts_it_is_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.random.default_rng(0).uniform(-5, 45, (60, 2))
    expected = rasterize([ring, ring[:7] + 1], (40, 40))
    assert 0 < expected.sum() < expected.size
    for at_once in (1, 7, 100):
        monkeypatch.setattr(polygons, "_CROSSINGS_AT_ONCE", at_once)
        np.testing.assert_array_equal(rasterize([ring, ring[:7] + 1], (40, 40)), expected)


def test_a_zigzag_over_a_large_photo_is_refused_before_it_takes_memory() -> None:
    zigzag = np.array([[0.0, -1e8], [1e8, 1e8]] * 30_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"480000000 rows, more than {MAX_CROSSINGS}"):
            rasterize([zigzag], (8000, 10_000))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.reset_peak()
        rasterize([zigzag[: MAX_CROSSINGS // 8000]], (8000, 10))
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()
