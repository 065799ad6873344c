"""What to serve a model with, measured where it will run: a runtime, and a floating-point type to compute in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipclick.metrics import mask_iou
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest, Prediction, Predictor
from skipclick.prompts import Click

EXACT = ("torch", "float32")
SAME_MASK = 0.995  # IoU from which on two masks count as the same


def choose_runtime(
    model: SkipClick,
    photo: NDArray[np.uint8],
    objects: Sequence[Sequence[Click]],
    candidates: Sequence[tuple[str, str]],
    resolution: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    graphs: Sequence[Path] = (),
) -> tuple[str, str]:
    """The candidate that is fastest here among those that give the masks of PyTorch in float32, measured on a photo.

    Args:
        photo: uint8 RGB (H, W, 3).
        objects: clicks of some objects in it; each mask on the way must reach an IoU of `SAME_MASK` with float32's.
        candidates: runtimes and types, as `Predictor` takes them. Where none gives the same masks, it is the first.
        graphs: folders for OpenVINO's graphs, as of `Predictor`.

    A small network's soft edges may move by more than that in bfloat16, a device may not have it at all, OpenVINO may
    not be installed: such a candidate is left out.
    """
    exact = _Trial(Predictor(model, resolution, device), photo, objects)
    trials = {EXACT: exact}
    for runtime, dtype in candidates:
        if (runtime, dtype) not in trials:
            with suppress(RuntimeError, NotImplementedError, ValueError):
                predictor = Predictor(model, resolution, device, dtype, runtime=runtime, graphs=graphs)
                trials[runtime, dtype] = _Trial(predictor, photo, objects)
    masks = exact.masks()
    same = [
        candidate
        for candidate in candidates
        if candidate in trials and all(map(_same, masks, trials[candidate].masks()))
    ]
    if len(same) < 2:
        return same[0] if same else candidates[0]
    # Taking turns, so that all meet the same noise.
    rounds = [{candidate: trials[candidate].seconds() for candidate in same} for _ in range(3)]
    return min(same, key=lambda candidate: min(times[candidate] for times in rounds))


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
