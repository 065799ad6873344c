"""MobileSAM (arXiv 2306.14289) by its authors' package `mobile_sam`, which transformers does not have.

Its predictor holds one photo at a time: what it knows of that photo is taken out and put back for each click, so that
photos and objects can take turns. It is clicked as the rest of SAM's family (`bench.baselines.sam`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.baselines.checkout import import_checkout, reading_checkpoint
from skipclick import Click

_PHOTO = ("features", "original_size", "input_size", "is_image_set")
"""What its predictor holds of a photo."""


@dataclass(frozen=True, eq=False)
class MobileSamFeatures:
    """A photo as the predictor holds it, and the logits that its objects are waiting with for their next click."""

    photo: dict[str, Any]
    logits: dict[tuple[Click, ...], NDArray[np.float32]] = field(default_factory=dict)
    """By an object's clicks so far: (1, h, w). A memo: what is missing is computed again."""


class MobileSam:
    """One checkpoint. An answer depends on the photo and the clicks alone."""

    def __init__(self, checkpoint: str, device: str = "cpu", *, mask_feedback: bool = True) -> None:
        """
        Args:
            checkpoint: `mobile_sam.pt`.
            mask_feedback: whether a click is also given the low-resolution logits of the click before.

        Raises:
            ValueError: the package is missing, or the checkpoint cannot be read by it.
        """
        (package,) = import_checkout("mobile-sam", "mobile_sam")
        with reading_checkpoint("mobile-sam", checkpoint):
            model = package.sam_model_registry["vit_t"](checkpoint=checkpoint)
        self._predictor = package.SamPredictor(model.eval().to(torch.device(device)))
        self._mask_feedback = mask_feedback
        self.version = f"mobile-sam:{checkpoint}" + ("" if mask_feedback else ", clicks alone")

    def encode(self, image: NDArray[np.uint8]) -> MobileSamFeatures:
        """The image embedding; uint8 RGB (H, W, 3)."""
        self._predictor.set_image(np.ascontiguousarray(image))
        return MobileSamFeatures({name: getattr(self._predictor, name) for name in _PHOTO})

    def click(
        self, features: MobileSamFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The mask after all clicks, float32 (H, W), 0 or 1.

        `previous` is not looked at: the network is fed the logits it was made of, which `features` remembers.
        """
        done = tuple(clicks[:-1])
        if self._mask_feedback and done and done not in features.logits:
            self.click(features, done, None)
        for name, value in features.photo.items():
            setattr(self._predictor, name, value)
        masks, scores, logits = self._predictor.predict(
            point_coords=np.array([[click.x, click.y] for click in clicks], np.float32),
            point_labels=np.array([click.positive for click in clicks], np.int64),
            mask_input=features.logits.pop(done, None),
            multimask_output=not done,
        )
        best = int(np.argmax(scores))
        if self._mask_feedback:
            features.logits[tuple(clicks)] = logits[best : best + 1]
        return np.asarray(masks[best], np.float32)
