"""Methods of the `isegm` code base, from a checkout that lies on PYTHONPATH: docs/baselines.md says which.

RITM, FocalClick, SimpleClick and the released SkipClick share its predictor: it is given a photo, then all clicks of an
object, and keeps the last mask and the zoomed-in region of the object by itself. So each object has a predictor of its
own here, around one network.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.baselines.checkout import import_checkout, reading_checkpoint
from skipclick import Click


@dataclass(frozen=True)
class Evaluation:
    """How a method's own script evaluates it."""

    mode: str
    """Of `get_predictor`."""
    square: bool
    """Whether the network looks at squares, the whole photo squeezed; else at crops, by their longer side."""
    zoom_in: dict[str, Any] = field(default_factory=dict)
    """Further options of its zoom-in."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of `get_predictor`."""
    resizes_positions: bool = False
    """Whether the position embedding of its backbone has to be brought to the side."""


METHODS = {
    "ritm": Evaluation("NoBRS", square=False),
    "focalclick": Evaluation("FocalClick", False, {"expansion_ratio": 1.4}, {"infer_size": 384, "focus_crop_r": 1.4}),
    "simpleclick": Evaluation("NoBRS", square=True, resizes_positions=True),
    "skipclick-release": Evaluation("NoBRS", True, {"suppress": True}),
}


def published_side(method: str, side: int) -> int:
    """The pixels with which a method is evaluated where those that look at squares have this side."""
    return side if METHODS[method].square else {448: 400, 672: 600, 896: 1024}.get(side, side)


@dataclass(frozen=True, eq=False)
class IsegmFeatures:
    """A photo, uint8 RGB (H, W, 3), and the predictors of its objects with their clicks so far."""

    image: NDArray[np.uint8]
    predictors: dict[tuple[Click, ...], tuple[Any, Any]] = field(default_factory=dict)
    """By an object's clicks: predictor and `Clicker`. A memo: what is missing is computed again."""


class IsegmModel:
    """One checkpoint of a method. An answer depends on the photo and the clicks alone."""

    def __init__(self, method: str, checkpoint: str, device: str = "cpu", side: int = 448) -> None:
        """
        Args:
            method: a key of `METHODS`.
            side: in pixels, of the square that its network looks at, or the longer one of crops.

        Raises:
            ValueError: there is no checkout, or the checkpoint cannot be read by it.
        """
        self.device = torch.device(device)
        self.side = side
        how = METHODS[method]
        self.version = f"{method}:{checkpoint}"
        names = (f"isegm.inference.{name}" for name in ("utils", "predictors", "clicker"))
        utils, predictors, self._clicker = import_checkout(method, *names)
        older = {"eval_ritm": False} if "eval_ritm" in inspect.signature(utils.load_is_model).parameters else {}
        with reading_checkpoint(method, checkpoint):
            network = utils.load_is_model(checkpoint, self.device, **older)
        size = (self.side, self.side)
        if how.resizes_positions:
            positions = importlib.import_module("isegm.model.modeling.pos_embed")
            positions.interpolate_pos_embed_inference(network.backbone, size, self.device)
        zoom_in = how.zoom_in | ({"skip_clicks": -1, "target_size": size} if how.square else {"target_size": self.side})
        self._new_predictor: Callable[[], Any] = lambda: predictors.get_predictor(
            network, how.mode, self.device, prob_thresh=0.49, zoom_in_params=zoom_in, **how.options
        )

    def encode(self, image: NDArray[np.uint8]) -> IsegmFeatures:
        """The photo, uint8 RGB (H, W, 3): its network sees photo and clicks together, at each click."""
        return IsegmFeatures(np.ascontiguousarray(image))

    @torch.no_grad()
    def click(
        self, features: IsegmFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The probability, float32 (H, W), after all clicks; `previous` counts at the first one, later it is known."""
        done, last = tuple(clicks[:-1]), clicks[-1]
        if done and done not in features.predictors:
            self.click(features, done, None)
        predictor, clicker = features.predictors.pop(done) if done else self._begin(features.image)
        start = None
        if previous is not None and not done:
            start = torch.from_numpy(previous)[None, None].to(self.device)
        clicker.add_click(self._clicker.Click(is_positive=last.positive, coords=(round(last.y), round(last.x))))
        probability = predictor.get_prediction(clicker, prev_mask=start)
        features.predictors[tuple(clicks)] = predictor, clicker
        return np.asarray(probability, np.float32)

    def _begin(self, image: NDArray[np.uint8]) -> tuple[Any, Any]:
        predictor = self._new_predictor()
        predictor.set_input_image(image)
        return predictor, self._clicker.Clicker()
