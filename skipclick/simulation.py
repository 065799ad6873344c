"""The simulated annotator: where the next click goes, in evaluation and in training (released code).

All rules look at the two kinds of wrong pixels and click in the middle of the larger one, "large" meaning
far from its border. The evaluation protocol is deterministic; training, and evaluation with the scatter of people's
clicks (ours), draw at random from the inner half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.prompts import Click

TRAINING_THRESHOLD = 0.49

# Twice the largest error of OpenCV's exact distance transform, with room to spare (pixels).
_DISTANCE_TOLERANCE = 0.01


def error_regions(
    prediction: NDArray[np.bool_], target: NDArray[np.int8]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The pixels where a mask is wrong: (false negatives, false positives), each bool (H, W).

    prediction: bool (H, W). target: int8 (H, W), 1 object, 0 background, -1 ignored (never wrong).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape: resize one of them")
    return (target == 1) & ~prediction, (target == 0) & prediction


def correcting_clicks(mask: NDArray[np.bool_], clicks: Sequence[Click]) -> tuple[Click, ...]:
    """Clicks that correct a known mask, bool (H, W): if the first one is negative, a positive one is put before it.

    Networks are not trained on objects without a positive click and would remove nearly all of the mask. The added
    click lies as deep inside the mask as possible, away from the first click, and depends on nothing else.
    """
    if not clicks or clicks[0].positive:
        return tuple(clicks)
    kept = mask.copy()
    height, width = mask.shape
    kept[min(int(clicks[0].y), height - 1), min(int(clicks[0].x), width - 1)] = False
    depth, (row, column) = _deepest_pixel(kept, ())
    return (Click(float(column), float(row)), *clicks) if depth else tuple(clicks)


def next_click(prediction: NDArray[np.bool_], target: NDArray[np.int8], clicked: Sequence[tuple[int, int]]) -> Click:
    """The evaluation protocol's next click: the pixel deepest inside the larger error.

    prediction: bool (H, W). target: int8 (H, W), 1 object, 0 background, -1 ignored. clicked: (row, col) of
    all earlier clicks, which are not chosen again. Depth is the Euclidean distance to the nearest pixel
    outside the error region (beyond the image is outside), compared as an integer square and thus exact.

    Ties: false negatives must be strictly deeper than false positives for a positive click, otherwise it is
    negative; among equally deep pixels the first in row-major order wins. Where nothing is wrong (or every
    wrong pixel has been clicked) the click is negative at (0, 0), as in the released code.
    """
    false_negative, false_positive = error_regions(prediction, target)
    depth_fn, location_fn = _deepest_pixel(false_negative, clicked)
    depth_fp, location_fp = _deepest_pixel(false_positive, clicked)
    positive = depth_fn > depth_fp
    row, col = location_fn if positive else location_fp
    return Click(x=float(col), y=float(row), positive=positive)


def jittered_click(
    prediction: NDArray[np.bool_],
    target: NDArray[np.int8],
    clicked: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    *,
    weighted: bool = False,
) -> Click:
    """A next click as people make it: anywhere in the inner half of the larger error, all pixels equally likely.

    Arguments, ties and the click where nothing is wrong are those of `next_click`. The inner half is deeper than half
    the deepest pixel by the 5×5 chamfer distance, as in training; beyond the image is outside. weighted: anywhere in
    the larger error instead, with a probability proportional to the depth.
    """
    regions = [chamfer_distance(region) for region in error_regions(prediction, target)]
    for distance in regions:
        for row, col in clicked:
            distance[row, col] = 0.0
    depth_fn, depth_fp = (float(distance.max()) for distance in regions)
    positive = depth_fn > depth_fp
    distance, depth = (regions[0], depth_fn) if positive else (regions[1], depth_fp)
    candidates = np.flatnonzero(distance > (0 if weighted else depth / 2))
    if not candidates.size:
        return Click(x=0.0, y=0.0, positive=False)
    depths = distance.ravel()[candidates].astype(np.float64)
    row, col = divmod(int(rng.choice(candidates, p=depths / depths.sum() if weighted else None)), target.shape[1])
    return Click(x=float(col), y=float(row), positive=positive)


def _deepest_pixel(region: NDArray[np.bool_], clicked: Iterable[tuple[int, int]]) -> tuple[int, tuple[int, int]]:
    """The largest squared distance to the outside over the pixels not clicked, and its first (row, col)."""
    left, top, width, height = cv2.boundingRect(region.view(np.uint8))
    if width == 0:
        return 0, (0, 0)
    # The ring of zeros around the bounding box stands in for everything beyond it: no outer zero is nearer.
    box = np.pad(region[top : top + height, left : left + width].view(np.uint8), 1)
    distance = cv2.distanceTransform(box, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    for row, col in clicked:
        if top <= row < top + height and left <= col < left + width:
            distance[row - top + 1, col - left + 1] = 0.0
    approximate_depth = float(distance.max())
    if approximate_depth == 0.0:
        return 0, (0, 0)
    # OpenCV's last bits vary from call to call: it only nominates, integers decide.
    rows, cols = np.nonzero(distance > approximate_depth - _DISTANCE_TOLERANCE)
    depths = _squared_distances(box, rows, cols, reach=int(approximate_depth) + 1)
    best = int(np.argmax(depths))
    return int(depths[best]), (int(rows[best]) + top - 1, int(cols[best]) + left - 1)


def _squared_distances(
    box: NDArray[np.uint8], rows: NDArray[np.int64], cols: NDArray[np.int64], reach: int
) -> NDArray[np.int64]:
    """Exact squared distances, int64 (N,), from N pixels to the nearest zero of `box` (uint8 (H, W)).

    `reach` is an upper bound of the distances, so the search stays within a window around all the pixels. In
    each column the nearest zero above or below a pixel's row comes first, then the best of the columns.
    """
    top, left = max(rows.min() - reach, 0), max(cols.min() - reach, 0)
    outside = box[top : rows.max() + reach + 1, left : cols.max() + reach + 1] == 0
    rows, cols = rows - top, cols - left
    height, width = outside.shape
    row_numbers = np.arange(height, dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(outside, row_numbers, -height), axis=0)
    below = np.minimum.accumulate(np.where(outside, row_numbers, 2 * height)[::-1], axis=0)[::-1]
    vertical = np.minimum(row_numbers - above, below - row_numbers)
    columns = np.clip(cols[:, None] + np.arange(-reach, reach + 1), 0, width - 1)
    squared = vertical[rows[:, None], columns].astype(np.int64) ** 2 + (cols[:, None] - columns) ** 2
    return np.asarray(squared.min(axis=1))


def training_click_region(
    probability: NDArray[np.float32], target: NDArray[np.int8]
) -> tuple[NDArray[np.bool_], bool] | None:
    """Where training may put its next click: (candidates bool (H, W), positive), or None if nothing is wrong.

    probability: float32 (H, W) in [0, 1]. target: int8 (H, W), 1 object, anything else background (ignored
    pixels too: released code). A probability of exactly 0.49 is neither kind of error. Of the deeper error
    region by the 5×5 chamfer distance (ties: negative) the pixels deeper than half the maximum are taken.
    """
    if probability.shape != target.shape:
        raise ValueError(
            f"probability {probability.shape} and target {target.shape} differ in shape: resize one of them"
        )
    is_object = target == 1
    distance_fn = chamfer_distance(is_object & (probability < TRAINING_THRESHOLD))
    distance_fp = chamfer_distance(~is_object & (probability > TRAINING_THRESHOLD))
    depth_fn, depth_fp = float(distance_fn.max()), float(distance_fp.max())
    positive = depth_fn > depth_fp
    distance, depth = (distance_fn, depth_fn) if positive else (distance_fp, depth_fp)
    return (distance > depth / 2, positive) if depth > 0 else None


def training_click(
    probability: NDArray[np.float32], target: NDArray[np.int8], rng: np.random.Generator
) -> Click | None:
    """Training's next click, a uniform draw from `training_click_region`; None if nothing is wrong."""
    region = training_click_region(probability, target)
    if region is None:
        return None
    candidates, positive = region
    indices = np.flatnonzero(candidates)
    row, col = divmod(int(indices[rng.integers(len(indices))]), candidates.shape[1])
    return Click(x=float(col), y=float(row), positive=positive)


def chamfer_distance(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """5×5 chamfer distance, float32 (H, W), to the nearest pixel outside; beyond the image is outside."""
    padded = cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)[1:-1, 1:-1]
