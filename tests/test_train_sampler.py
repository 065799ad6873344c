"""Protects the choice of objects and starting clicks against the released sampler's tables and statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from parity_files import for_each_golden, load_golden

from train.sampler import (
    IGNORED_ID,
    NUM_SLOTS,
    SamplerConfig,
    border,
    border_width,
    count_probabilities,
    eroded,
    sample_object,
    sample_points,
)

RELEASED = SamplerConfig()
NUM_DRAWS = 2000


@pytest.fixture
def ids() -> NDArray[np.uint8]:
    """Two objects of 2000 and 2800 pixels on 120 x 140, as in the golden histograms, and a strip to ignore."""
    ids = np.zeros((120, 140), np.uint8)
    ids[10:50, 10:60] = 1
    ids[60:100, 50:120] = 2
    ids[115:, :] = IGNORED_ID
    return ids


@for_each_golden("golden_sampler*.npz")
def test_count_probabilities_equal_the_released_tables(golden: Path) -> None:
    data = load_golden(golden)
    np.testing.assert_allclose(count_probabilities(NUM_SLOTS, 0.8), data["pos_probs_24"], rtol=1e-12)
    np.testing.assert_allclose(count_probabilities(NUM_SLOTS + 1, 0.8), data["neg_probs_25"], rtol=1e-12)
    np.testing.assert_allclose(count_probabilities(12, 0.7), data["default_pos_12_07"], rtol=1e-12)


@for_each_golden("golden_sampler*.npz")
def test_eroded_objects_and_borders_equal_the_released_ones(golden: Path) -> None:
    data = load_golden(golden)
    cases = sorted(name.removesuffix("_mask") for name in data if name.endswith("_mask"))
    assert cases
    for case in cases:
        mask = data[f"{case}_mask"].astype(bool)
        np.testing.assert_array_equal(eroded(mask), data[f"{case}_eroded"].astype(bool), err_msg=case)
        np.testing.assert_array_equal(border(mask), data[f"{case}_border"].astype(bool), err_msg=case)
        assert border_width(mask) == data[f"{case}_expand_r"]


@for_each_golden("golden_sampler*.npz")
def test_numbers_of_clicks_are_distributed_as_the_released_ones(golden: Path, ids: NDArray[np.uint8]) -> None:
    """Total variation between two samples of this size is about 0.05 for equal distributions."""
    data = load_golden(golden)
    ids[ids == IGNORED_ID] = 0
    counts = {"pos": np.zeros(25), "neg": np.zeros(25)}
    rng = np.random.default_rng(0)
    for _ in range(NUM_DRAWS):
        points = sample_points(sample_object(ids, RELEASED, rng), RELEASED, rng)
        counts["pos"][(points.positives >= 0).all(axis=1).sum()] += 1
        counts["neg"][(points.negatives >= 0).all(axis=1).sum()] += 1
    for polarity, histogram in counts.items():
        expected = data[f"emp_hist_{polarity}"] / data[f"emp_hist_{polarity}"].sum()
        assert 0.5 * np.abs(histogram / NUM_DRAWS - expected).sum() < 0.07, polarity
        mean = (histogram * np.arange(25)).sum() / NUM_DRAWS
        assert mean == pytest.approx(float(data[f"emp_mean_{polarity}"]), abs=0.4)


def test_clicks_fall_where_they_should(ids: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    in_border = total = 0
    for _ in range(300):
        sample = sample_object(ids, RELEASED, rng)
        points = sample_points(sample, RELEASED, rng)
        target = sample.target == 1
        for row, column in points.positives[points.positives[:, 0] >= 0].astype(int):
            assert target[row, column]
        for row, column in points.negatives[points.negatives[:, 0] >= 0].astype(int):
            assert not target[row, column]
            in_border += bool(border(target)[row, column])
            total += 1
    assert in_border / total == pytest.approx(0.5 + 0.04, abs=0.08)  # half by choice, a few of the others by chance


def test_shares_of_merged_objects_and_ignored_pixels(ids: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(2)
    samples = [sample_object(ids, RELEASED, rng) for _ in range(NUM_DRAWS)]
    assert np.mean([len(sample.parts) == 2 for sample in samples]) == pytest.approx(0.15, abs=0.03)
    for sample in samples[:50]:
        assert (sample.target[115:] == -1).all()
        assert not sample.others[sample.target == 1].any()


def test_merged_objects_have_a_click_each(ids: NDArray[np.uint8]) -> None:
    config = replace(RELEASED, merge_prob=1.0)
    rng = np.random.default_rng(3)
    for _ in range(50):
        sample = sample_object(ids, config, rng)
        points = sample_points(sample, config, rng)
        clicked = {int(ids[int(r), int(c)]) for r, c in points.positives if r >= 0}
        assert clicked == {1, 2}


def test_small_objects_are_background(ids: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(4)
    sample = sample_object(ids, replace(RELEASED, min_object_area=2500, merge_prob=0.0), rng)
    np.testing.assert_array_equal(sample.target == 1, ids == 2)
    nothing = sample_object(ids, replace(RELEASED, min_object_area=9999), rng)
    points = sample_points(nothing, RELEASED, rng)
    assert not nothing.parts
    assert (nothing.target <= 0).all()
    assert (points.positives == -1).all()


def test_a_single_central_click_lies_in_the_middle(ids: NDArray[np.uint8]) -> None:
    config = replace(RELEASED, single_centre_prob=1.0, merge_prob=0.0, min_object_area=2500)
    rng = np.random.default_rng(5)
    points = sample_points(sample_object(ids, config, rng), config, rng)
    assert (points.positives >= 0).all(axis=1).sum() == 1
    assert (points.negatives == -1).all()
    row, column = points.positives[0]
    assert 75 <= row <= 84
    assert 65 <= column <= 105
