"""Which floating-point type to serve a model in, measured where it will run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipclick.metrics import mask_iou
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest, Prediction, Predictor
from skipclick.prompts import Click

SAME_MASK = 0.995  # IoU from which on two masks count as the same


def choose_dtype(
    model: SkipClick,
    photo: NDArray[np.uint8],
    objects: Sequence[Sequence[Click]],
    resolution: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
) -> Literal["float32", "bfloat16"]:
    """The type to serve in: bfloat16 where it is faster here and gives the masks of float32, measured on a photo.

    Args:
        photo: uint8 RGB (H, W, 3).
        objects: clicks of some objects in it; each mask on the way must reach an IoU of `SAME_MASK` with float32's.

    A small network's soft edges may move by more than that in bfloat16, a slow device may not have it at all: then
    it is float32.
    """
    try:
        exact, fast = (
            _Trial(Predictor(model, resolution, device, dtype), photo, objects) for dtype in ("float32", "bfloat16")
        )
        rounds = [(exact.seconds(), fast.seconds()) for _ in range(3)]  # taking turns, so that both meet the same noise
    except (RuntimeError, NotImplementedError):
        return "float32"
    faster = min(fast for _, fast in rounds) < min(exact for exact, _ in rounds)
    same = all(_same(*masks) for masks in zip(exact.masks(), fast.masks(), strict=True))
    return "bfloat16" if faster and same else "float32"


class _Trial:
    """A predictor that has answered some clicks on a photo."""

    def __init__(self, predictor: Predictor, photo: NDArray[np.uint8], objects: Sequence[Sequence[Click]]) -> None:
        self.predictor = predictor
        self.features = predictor.encode(photo)
        self.objects = objects
        self.predictions = [prediction for clicks in objects for prediction in self._session(clicks)]

    def _session(self, clicks: Sequence[Click]) -> Iterator[Prediction]:
        state: Tensor | None = None
        for count in range(1, len(clicks) + 1):
            (prediction,) = self.predictor.predict([ClickRequest(self.features, clicks[:count], state)])
            state = prediction.state
            yield prediction

    def seconds(self) -> float:
        begin = time.perf_counter()
        list(self._session(self.objects[0]))
        return time.perf_counter() - begin

    def masks(self) -> list[NDArray[np.bool_]]:
        return [prediction.mask.full() for prediction in self.predictions]


def _same(exact: NDArray[np.bool_], fast: NDArray[np.bool_]) -> bool:
    return mask_iou(fast, exact) >= SAME_MASK or not (fast.any() or exact.any())
