"""Protects the figures we publish: IoU, NoC and failures, counted as the released code counts them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from skipclick.metrics import mask_iou, mean_iou_at, mean_noc, noc, num_failures
from tests.support.parity_files import for_each_golden, load_golden


@for_each_golden("golden_metrics*.npz")
def test_iou_equals_the_released_code(golden: Path) -> None:
    z = load_golden(golden)
    ours = [
        mask_iou(prediction.astype(bool), target) for prediction, target in zip(z["iou_pred"], z["iou_gt"], strict=True)
    ]
    np.testing.assert_allclose(ours, z["iou"], rtol=0, atol=1e-12)


@for_each_golden("golden_metrics*.npz")
def test_noc_and_failures_equal_the_released_code(golden: Path) -> None:
    z = load_golden(golden)
    ious = [list(row[:length]) for row, length in zip(z["ious_padded_minus2"], z["lengths"], strict=True)]
    for threshold, mean, std, failures in zip(z["thresholds"], z["noc"], z["noc_std"], z["over_max"], strict=True):
        assert mean_noc(ious, threshold) == pytest.approx(mean, abs=1e-12)
        assert np.std([noc(object_ious, threshold) for object_ious in ious]) == pytest.approx(std, abs=1e-12)
        assert num_failures(ious, threshold) == failures
    for threshold, mean, failures in zip((0.85, 0.90), z["noc_max5"], z["over_max5"], strict=True):
        assert mean_noc(ious, threshold, cap=5) == pytest.approx(mean, abs=1e-12)
        assert num_failures(ious, threshold, cap=5) == failures


def test_noc_counts_from_one_and_caps() -> None:
    assert noc([0.9], 0.9) == 1
    assert noc([0.1, 0.95, 0.2], 0.9) == 2
    assert noc([0.1, 0.2], 0.9) == 20
    assert noc([0.1] * 5 + [0.95], 0.9, cap=5) == 5


def test_noc_compares_in_float32() -> None:
    just_below = float(np.float32(0.85))  # 0.85000002 or 0.84999996: as float64 it may miss the decimal 0.85
    assert noc([just_below], 0.85) == 1
    assert noc([0.85 - 1e-12], 0.85) == 1
    assert noc([0.85 - 1e-6], 0.85) == 20


def test_object_reached_at_the_cap_still_counts_as_failure() -> None:
    assert num_failures([[0.0] * 19 + [0.95], [0.0] * 18 + [0.95]], 0.9) == 1


def test_iou_of_two_empty_masks_is_nan_and_ignored_pixels_count_nowhere() -> None:
    empty = np.zeros((4, 4), bool)
    assert math.isnan(mask_iou(empty, np.zeros((4, 4), np.int8)))
    target = np.zeros((4, 4), np.int8)
    target[0, :2], target[3] = 1, -1
    prediction = np.zeros((4, 4), bool)
    prediction[0, 0], prediction[3] = True, True
    assert mask_iou(prediction, target) == 0.5


def test_finished_objects_keep_their_last_iou() -> None:
    assert mean_iou_at([[0.2, 0.96], [0.1, 0.2, 0.4]], 3) == pytest.approx((0.96 + 0.4) / 2)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        mask_iou(np.zeros((3, 4), bool), np.zeros((4, 3), np.int8))
