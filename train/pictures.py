"""Training batches and predictions as pictures like the paper's figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skipclick import Click
from skipclick.drawing import draw_overlay
from train.dataset import Batch


def batch_picture(batch: Batch, probability: Tensor | None = None, max_rows: int = 6) -> NDArray[np.uint8]:
    """uint8 RGB: a row for each object with the photo, the clicks, the ground truth and the prediction.

    probability: (B * K, H, W) in [0, 1]; None leaves out the prediction.
    """
    per_photo = len(batch.target) // len(batch.image)
    rows = []
    for i in range(min(max_rows, len(batch.target))):
        photo = np.ascontiguousarray(batch.image[i // per_photo].permute(1, 2, 0).cpu().numpy())
        target, nothing = (batch.target[i] == 1).cpu().numpy(), np.zeros(photo.shape[:2], np.bool_)
        clicks = [*_clicks(batch.positives[i], True), *_clicks(batch.negatives[i], False)]
        panels = [photo, draw_overlay(photo, nothing, clicks), draw_overlay(photo, target)]
        if probability is not None:
            panels.append(draw_overlay(photo, (probability[i] > 0.5).cpu().numpy()))
        rows.append(np.concatenate([np.pad(panel, ((2, 2), (2, 2), (0, 0))) for panel in panels], axis=1))
    return np.concatenate(rows)


def _clicks(points: Tensor, positive: bool) -> list[Click]:
    """The clicks in slots (NUM_SLOTS, 2), some of which are empty."""
    return [Click(column, row, positive) for row, column in points.tolist() if max(row, column) >= 0]
