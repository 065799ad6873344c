"""Protects the simulated annotator: the released code's clicks, exact and the same on every machine."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from skipclick import Click
from skipclick.simulation import (
    correcting_clicks,
    error_regions,
    jittered_click,
    next_click,
    training_click,
    training_click_region,
)
from tests.support.parity_files import for_each_golden, load_golden, unpack_bits


@for_each_golden("golden_clicker*.npz")
def test_next_click_equals_the_exact_clicks(golden: Path) -> None:
    z = load_golden(golden)
    cases = [name.removesuffix("_gt") for name in z if name.endswith("_gt")]
    assert cases
    for case in cases:
        target = z[f"{case}_gt"]
        prediction = unpack_bits(z[f"{case}_pred"], target.shape)
        tie_masks = unpack_bits(z[f"{case}_tie_masks"], (len(z[f"{case}_clicks_exact"]), *target.shape))
        clicked: list[tuple[int, int]] = []
        for step, (positive, row, col) in enumerate(z[f"{case}_clicks_exact"]):
            click = next_click(prediction, target, clicked)
            where = f"{z[f'{case}_name']}, click {step + 1}"
            assert click == Click(x=float(col), y=float(row), positive=bool(positive)), where
            assert tie_masks[step, int(click.y), int(click.x)], where
            clicked.append((int(row), int(col)))


@for_each_golden("golden_next_points*.npz")
def test_training_candidates_equal_the_released_code(golden: Path) -> None:
    z = load_golden(golden)
    regions = unpack_bits(z["region"], z["gt"].shape)
    num_slots = z["points_in"].shape[1] // 2
    samples = zip(z["pred"], z["gt"], regions, z["region_count"], z["click1_slot"], strict=True)
    for probability, target, expected, count, slot in samples:
        region = training_click_region(probability, target)
        if region is None:
            assert count == 0
            assert slot == -1
            continue
        candidates, positive = region
        np.testing.assert_array_equal(candidates, expected)
        assert np.count_nonzero(candidates) == count
        assert positive == (slot < num_slots)


def _blobs(seed: int, shape: tuple[int, int], sigma: float) -> NDArray[np.float64]:
    """Smooth noise of mean 0: thresholded, it has regions of every shape."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return cv2.GaussianBlur(noise, (0, 0), sigma).reshape(shape)


def _squared_depth(region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Integer squared distance to the nearest pixel outside, by SciPy's feature transform."""
    nearest = distance_transform_edt(np.pad(region, 1), return_distances=False, return_indices=True)
    offsets = nearest - np.indices(nearest.shape[1:])
    return (offsets**2).sum(axis=0)[1:-1, 1:-1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 120),
    width=st.integers(1, 400),
    sigma=st.floats(0.5, 20),
    cut=st.floats(-1.5, 1.5),
    num_clicked=st.integers(0, 5),
)
def test_next_click_is_the_first_exact_maximum(
    seed: int, height: int, width: int, sigma: float, cut: float, num_clicked: int
) -> None:
    noise = _blobs(seed, (height, width), sigma)
    target = (noise > cut * noise.std()).astype(np.int8)
    target[_blobs(seed + 1, (height, width), sigma) > 2 * noise.std()] = -1
    prediction = _blobs(seed + 2, (height, width), sigma) > 0
    clicked = [divmod(int(i), width) for i in np.random.default_rng(seed).integers(height * width, size=num_clicked)]

    depth_fn, depth_fp = (_squared_depth(region) for region in error_regions(prediction, target))
    for row, col in clicked:
        depth_fn[row, col] = depth_fp[row, col] = 0
    positive = bool(depth_fn.max() > depth_fp.max())
    row, col = divmod(int(np.argmax(depth_fn if positive else depth_fp)), width)
    assert next_click(prediction, target, clicked) == Click(x=float(col), y=float(row), positive=positive)


def test_ties_go_to_the_first_pixel_and_to_negative() -> None:
    target = np.zeros((20, 40), np.int8)
    target[3:8, 4:9] = target[3:8, 24:29] = target[12:17, 4:9] = 1
    nothing = np.zeros(target.shape, bool)
    assert next_click(nothing, target, []) == Click(6.0, 5.0, True)
    equally_wrong = nothing.copy()
    equally_wrong[12:17, 24:29] = True
    assert next_click(equally_wrong, target, []) == Click(26.0, 14.0, False)
    assert next_click(nothing, target, [(5, 6), (5, 26)]) == Click(6.0, 14.0, True)


def test_nothing_wrong_clicks_the_corner() -> None:
    target = np.ones((5, 6), np.int8)
    assert next_click(target == 1, target, []) == Click(0.0, 0.0, False)
    one_pixel = np.zeros((5, 6), np.int8)
    one_pixel[2, 3] = 1
    assert next_click(one_pixel == 2, one_pixel, [(2, 3)]) == Click(0.0, 0.0, False)


def test_memory_layout_does_not_matter() -> None:
    target = (_blobs(1, (61, 83), 5) > 0).astype(np.int8)
    prediction = _blobs(2, (61, 83), 5) > 0
    expected = next_click(prediction, target, [])
    assert next_click(np.asfortranarray(prediction), np.asfortranarray(target), []) == expected
    assert next_click(np.repeat(prediction, 2, 1)[:, ::2], np.repeat(target, 2, 1)[:, ::2], []) == expected


def test_a_jittered_click_falls_on_all_of_the_inner_half_and_nowhere_else() -> None:
    target = np.zeros((30, 40), np.int8)
    target[4:17, 5:30] = 1  # 13 rows: depth 7 in the middle
    target[4:17, 30:35] = -1
    prediction = np.zeros(target.shape, bool)
    prediction[22:27, :] = True  # the smaller error, although it has more pixels
    inner = np.zeros(target.shape, bool)
    inner[7:14, 8:27] = True  # deeper than 3.5
    inner[10, 17] = False  # clicked before
    drawn = np.zeros(target.shape, bool)
    for seed in range(1500):
        click = jittered_click(prediction, target, [(10, 17)], np.random.default_rng(seed))
        assert click.positive
        drawn[int(click.y), int(click.x)] = True
    np.testing.assert_array_equal(drawn, inner)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 60), width=st.integers(1, 80), sigma=st.floats(0.5, 9))
def test_a_jittered_click_corrects_an_error_and_repeats(seed: int, height: int, width: int, sigma: float) -> None:
    target = (_blobs(seed, (height, width), sigma) > 0).astype(np.int8)
    prediction = _blobs(seed + 1, (height, width), sigma) > 0
    click = jittered_click(prediction, target, [], np.random.default_rng(seed))
    assert click == jittered_click(prediction, target, [], np.random.default_rng(seed))
    false_negative, false_positive = error_regions(prediction, target)
    if not (false_negative | false_positive).any():
        assert click == Click(0.0, 0.0, False)
    else:
        assert (false_negative if click.positive else false_positive)[int(click.y), int(click.x)]


def test_training_click_falls_on_every_candidate_and_nowhere_else() -> None:
    target = np.zeros((12, 15), np.int8)
    target[2:9, 3:12] = 1
    region = training_click_region(np.zeros(target.shape, np.float32), target)
    assert region is not None
    candidates, positive = region
    rng = np.random.default_rng(0)
    drawn = np.zeros(target.shape, bool)
    for _ in range(400):
        click = training_click(np.zeros(target.shape, np.float32), target, rng)
        assert click is not None
        assert click.positive == positive
        drawn[int(click.y), int(click.x)] = True
    np.testing.assert_array_equal(drawn, candidates)


def test_training_treats_ignored_pixels_as_background_and_the_threshold_as_right() -> None:
    target = np.full((9, 9), -1, np.int8)
    region = training_click_region(np.ones((9, 9), np.float32), target)
    assert region is not None
    assert not region[1]
    undecided = np.full((9, 9), 0.49, np.float32)
    assert training_click_region(undecided, target) is None
    assert training_click(undecided, target, np.random.default_rng(0)) is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        next_click(np.zeros((3, 4), bool), np.zeros((4, 3), np.int8), [])
    with pytest.raises(ValueError, match="differ in shape"):
        training_click_region(np.zeros((3, 4), np.float32), np.zeros((4, 3), np.int8))


def test_a_correction_that_begins_with_a_negative_click_has_a_positive_one_before_it() -> None:
    mask = np.zeros((60, 80), np.bool_)
    mask[10:50, 10:70] = True
    negative, positive = Click(39, 29, positive=False), Click(20, 20)
    before, after = correcting_clicks(mask, [negative])
    assert after == negative
    assert before.positive
    assert mask[int(before.y), int(before.x)]
    assert np.hypot(before.x - negative.x, before.y - negative.y) > 10
    assert correcting_clicks(mask, [negative, positive])[0] == before, "later clicks move nothing"
    assert correcting_clicks(mask, [positive, negative]) == (positive, negative)
    assert correcting_clicks(np.zeros((60, 80), np.bool_), [negative]) == (negative,)
