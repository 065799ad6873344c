"""A stand-in for the package of MobileSAM with the calls that `bench.baselines.mobile_sam` makes of it.

Of three masks at the first click, discs around it, the middle one has the best score; later ones add discs to the mask
that is fed back, or take them away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Model:
    def __init__(self, checkpoint: str) -> None:
        self.radius = int(Path(checkpoint).read_text())

    def eval(self) -> _Model:
        return self

    def to(self, device: Any) -> _Model:
        return self


sam_model_registry = {"vit_t": lambda checkpoint: _Model(checkpoint)}


class SamPredictor:
    def __init__(self, model: _Model) -> None:
        self.model = model
        self.is_image_set = False

    def set_image(self, image: NDArray[np.uint8]) -> None:
        assert image.flags.c_contiguous
        self.features = float(image.mean())
        self.original_size = self.input_size = (image.shape[0], image.shape[1])
        self.is_image_set = True

    def predict(
        self,
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None = None,
        multimask_output: bool = True,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
        """Masks (C, H, W), scores (C,), logits (C, h, w); here h and w are the photo's."""
        assert self.is_image_set
        height, width = self.original_size
        y, x = np.ogrid[:height, :width]
        (column, row), positive = point_coords[-1], point_labels[-1]
        radii = (
            [self.model.radius // 2, self.model.radius, 2 * self.model.radius]
            if multimask_output
            else [self.model.radius]
        )
        logits = []
        for radius in radii:
            known = np.full((height, width), -self.features, np.float32) if mask_input is None else mask_input[0].copy()
            known[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1.0 if positive else -1.0
            logits.append(known)
        scores = np.array([0.5, 0.9, 0.4] if multimask_output else [0.8], np.float32)
        return np.stack(logits) > 0, scores, np.stack(logits)
