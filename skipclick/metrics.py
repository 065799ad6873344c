"""Measures of interactive segmentation: IoU, and the number of clicks (NoC) that reaches a given IoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_CLICKS = 20


def mask_iou(prediction: NDArray[np.bool_], target: NDArray[np.int8] | NDArray[np.bool_]) -> float:
    """Intersection over union of a mask and the object, in [0, 1]; nan if both are empty.

    prediction: bool (H, W). target: another mask, or int8 (H, W): 1 object, 0 background, -1 ignored (counts nowhere).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape: resize one of them")
    is_object = target == 1
    intersection = np.count_nonzero(prediction & is_object)
    union = np.count_nonzero((prediction | is_object) & (target != -1))
    return intersection / union if union else float("nan")


def noc(ious: Sequence[float], threshold: float, cap: int = MAX_CLICKS) -> int:
    """Number of clicks until the IoU first reaches the threshold; `cap` if none of the first `cap` does.

    ious: the IoU after click 1, 2, …. Compared in float32, as the released code does.
    """
    reached = np.asarray(ious[:cap], np.float32) >= np.float32(threshold)
    return int(np.argmax(reached)) + 1 if reached.any() else cap


def mean_noc(ious_per_object: Sequence[Sequence[float]], threshold: float, cap: int = MAX_CLICKS) -> float:
    """NoC@threshold of a data set: the mean over its objects."""
    return float(np.mean([noc(ious, threshold, cap) for ious in ious_per_object]))


def num_failures(ious_per_object: Sequence[Sequence[float]], threshold: float, cap: int = MAX_CLICKS) -> int:
    """How many objects have a NoC of `cap`: the tables' "≥20@threshold".

    An object that reaches the threshold with its very last click counts too (released code).
    """
    return sum(noc(ious, threshold, cap) == cap for ious in ious_per_object)


def mean_iou_at(ious_per_object: Sequence[Sequence[float]], num_clicks: int) -> float:
    """Mean IoU after `num_clicks` clicks; an object that stopped earlier keeps its last IoU."""
    return float(np.mean([ious[min(num_clicks, len(ious)) - 1] for ious in ious_per_object]))
