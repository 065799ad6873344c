"""Protects masks at the photo's size: only a box is enlarged, and nothing may be lost or gained by that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor

from skipclick.masks import MASK_THRESHOLD, BoxMask, enlarge, overlap, replace_within
from skipclick.metrics import mask_iou

sides = st.integers(2, 40)
ROUNDING = 2e-6  # of two ways to interpolate values up to 1 in float32


def drawn(kind: str, height: int, width: int, seed: int) -> Tensor:
    """Probabilities (height, width): noise, a soft blob somewhere, a single pixel, or nothing above the threshold."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    row, column = rng.integers(height), rng.integers(width)
    blob = 1 / (1 + np.exp(np.hypot(y - row, x - column) - rng.uniform(0, 10)))
    values = {
        "noise": rng.random((height, width)),
        "blob": blob,
        "pixel": ((y == row) & (x == column)).astype(float),
        "nothing": 0.5 * rng.random((height, width)),
    }[kind]
    return torch.from_numpy(values.astype(np.float32))


def interpolated(probability: Tensor, size: tuple[int, int], antialias: bool) -> NDArray[np.float32]:
    align = None if antialias else True
    whole = F.interpolate(probability[None, None], size, mode="bilinear", align_corners=align, antialias=antialias)
    values: NDArray[np.float32] = whole[0, 0].numpy()
    return values


@given(
    kind=st.sampled_from(["noise", "blob", "pixel", "nothing"]),
    shape=st.tuples(sides, sides),
    size=st.tuples(st.integers(2, 130), st.integers(2, 130)),
    antialias=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
@example(kind="blob", shape=(40, 40), size=(130, 2), antialias=True, seed=0)  # higher and narrower
@example(kind="pixel", shape=(40, 40), size=(7, 7), antialias=True, seed=1)  # much smaller
@example(kind="noise", shape=(33, 20), size=(33, 20), antialias=False, seed=2)  # the same size
def test_the_box_equals_the_whole_photo_thresholded(
    kind: str, shape: tuple[int, int], size: tuple[int, int], antialias: bool, seed: int
) -> None:
    probability = drawn(kind, *shape, seed)
    mask, score = enlarge(probability, size, antialias=antialias).fetch()
    whole = interpolated(probability, size, antialias)
    expected = whole > MASK_THRESHOLD
    differing = mask.full() != expected
    assert (np.abs(whole[differing] - MASK_THRESHOLD) < ROUNDING).all()
    if not differing.any():
        assert score == pytest.approx(whole[expected].mean() if expected.any() else 0.0, abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (60, 1)])
def test_photos_of_a_single_row_or_column(size: tuple[int, int]) -> None:
    mask, score = enlarge(torch.full((32, 32), 0.75), size, antialias=False).fetch()
    assert mask.full().all()
    assert score == 0.75


def test_many_rows_are_enlarged_piece_by_piece() -> None:
    """More rows than are held at a time, an object across all of them."""
    probability = drawn("blob", 32, 32, 3)
    mask, _ = enlarge(probability, (700, 500), antialias=False).fetch()
    np.testing.assert_array_equal(mask.full(), interpolated(probability, (700, 500), False) > MASK_THRESHOLD)


@given(array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(lambda shape: arrays(np.bool_, shape)))
def test_a_box_is_the_smallest_and_gives_the_mask_back(mask: NDArray[np.bool_]) -> None:
    boxed = BoxMask.of(mask)
    np.testing.assert_array_equal(boxed.full(), mask)
    assert boxed.empty == (not mask.any())
    if mask.any():
        for edge in (boxed.pixels[0], boxed.pixels[-1], boxed.pixels[:, 0], boxed.pixels[:, -1]):
            assert edge.any()
    else:
        assert boxed.box == (0, 0, 0, 0)


def test_a_box_mask_holds_no_more_than_its_box() -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[10:20, 30:50] = True
    boxed = BoxMask.of(mask)
    assert boxed.box == (10, 30, 20, 50)
    assert boxed.nbytes == 200
    assert boxed.pixels.base is None or boxed.pixels.base.nbytes == 200


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialias", [False, True])
def test_a_gpu_gives_the_same_mask(antialias: bool) -> None:
    probability = drawn("blob", 64, 64, 5)
    ours, score = enlarge(probability, (301, 407), antialias=antialias).fetch()
    theirs, other_score = enlarge(probability.cuda(), (301, 407), antialias=antialias).fetch()
    assert (ours.full() != theirs.full()).mean() < 1e-4
    assert score == pytest.approx(other_score, abs=1e-4)


pixels = array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12).flatmap(lambda shape: arrays(np.bool_, shape))


@given(pixels, st.data())
def test_a_part_of_a_mask_takes_another_parts_place(whole: NDArray[np.bool_], data: st.DataObject) -> None:
    rows, columns = (sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in whole.shape)
    view = rows[0], columns[0], rows[1], columns[1]
    inner = data.draw(arrays(np.bool_, (rows[1] - rows[0], columns[1] - columns[0])))
    expected = whole.copy()
    expected[rows[0] : rows[1], columns[0] : columns[1]] = inner
    mask = BoxMask.of(whole)
    np.testing.assert_array_equal(mask.within(view), whole[rows[0] : rows[1], columns[0] : columns[1]])
    found = replace_within(mask, view, BoxMask.of(inner)) if inner.size else mask
    np.testing.assert_array_equal(found.full(), expected)
    assert found.box == BoxMask.of(expected).box
    assert found.size == whole.shape
    assert found.area == expected.sum()


@given(array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(lambda shape: arrays(np.bool_, (2, *shape))))
def test_a_clipped_mask_is_what_it_shares_with_the_area(masks: NDArray[np.bool_]) -> None:
    mask, area = masks
    expected = BoxMask.of(mask & area)
    clipped = BoxMask.of(mask).clipped(area)
    assert (clipped.size, clipped.box) == (expected.size, expected.box)
    np.testing.assert_array_equal(clipped.pixels, expected.pixels)


@given(array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(lambda shape: arrays(np.bool_, (2, *shape))))
def test_overlap_is_intersection_over_union(masks: NDArray[np.bool_]) -> None:
    one, other = masks
    expected = mask_iou(one, other.astype(np.int8)) if (one | other).any() else 1.0
    assert overlap(BoxMask.of(one), BoxMask.of(other)) == pytest.approx(expected)
