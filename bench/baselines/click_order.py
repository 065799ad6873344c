"""What it costs that CVAT sends clicks without their order: the bundled model, told the clicks in another one.

    python bench/noc.py --protocol serve --dataset GrabCut=DIR --model bench.baselines.click_order:true_order \
        bench.baselines.click_order:in_turn bench.baselines.click_order:positive_first \\
        bench.baselines.click_order:shuffled bench.baselines.click_order:at_once

At each click all clicks of the object are answered again in the order that is measured, as the server does, with
zoom-in; beginnings that were answered before are remembered, which changes nothing but the time. `in_turn` is what
serves CVAT (`backend/cvat/click_order.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from backend.cvat.click_order import canonical_order
from skipclick import Click, Predictor, load_checkpoint
from skipclick.features import ImageFeatures
from skipclick.masks import Box
from skipclick.zoom import ZoomPrediction, crop_encoder, predict_zoomed, zoom_request

Clicks = tuple[Click, ...]
Steps = Callable[[Clicks], Sequence[Clicks]]
"""From all clicks in their true order: the clicks of each answer on the way to the last, which has them all."""


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo while its objects are clicked, and the answers so far by the steps that led to them."""

    features: ImageFeatures
    encode_crop: Callable[[Box], ImageFeatures]
    answers: dict[tuple[Clicks, ...], ZoomPrediction] = field(default_factory=dict)


class ReorderedClicks:
    """The bundled model, which is told all clicks by `steps`."""

    def __init__(self, name: str, steps: Steps) -> None:
        self.version = f"bundled, clicks {name}"
        self._predictor = Predictor(load_checkpoint("bundled"))
        self._steps = steps

    def encode(self, image: NDArray[np.uint8]) -> _Photo:
        """All that depends on the photo alone; uint8 RGB (H, W, 3)."""
        return _Photo(self._predictor.encode(image), crop_encoder(self._predictor, image))

    def click(self, features: _Photo, clicks: Sequence[Click], previous: object) -> NDArray[np.float32]:
        """The mask after all clicks as 0 and 1, float32 (H, W); what came before (`previous`) is not asked."""
        steps = tuple(self._steps(tuple(clicks)))
        answer: ZoomPrediction | None = None
        for count in range(1, len(steps) + 1):
            done = steps[:count]
            if done not in features.answers:
                state = None if answer is None else answer.state
                request = zoom_request(features.features, steps[count - 1], state, features.encode_crop)
                (features.answers[done],) = predict_zoomed(self._predictor, [request])
            answer = features.answers[done]
        assert answer is not None
        return answer.mask.full().astype(np.float32)


def true_order() -> ReorderedClicks:
    """As they were made: what Label Studio sends."""
    return ReorderedClicks("in their order", _one_by_one)


def in_turn() -> ReorderedClicks:
    """Positive and negative ones in turn."""
    return ReorderedClicks("in turn", lambda clicks: _one_by_one(canonical_order(*_by_sign(clicks))))


def positive_first() -> ReorderedClicks:
    """All positive ones, then all negative ones."""
    return ReorderedClicks("positive first", lambda clicks: _one_by_one(tuple(chain(*_by_sign(clicks)))))


def shuffled() -> ReorderedClicks:
    """By chance, and another chance at each click; a positive one first, as every object has it."""
    return ReorderedClicks("shuffled", lambda clicks: _one_by_one(_shuffled(clicks)))


def at_once() -> ReorderedClicks:
    """All clicks in one answer that follows no other."""
    return ReorderedClicks("at once", lambda clicks: [clicks])


def first_then_all() -> ReorderedClicks:
    """The first positive click, then all in one answer."""
    return ReorderedClicks("first, then all", lambda clicks: [clicks[:1], clicks][: len(clicks)])


def _one_by_one(clicks: Clicks) -> list[Clicks]:
    return [clicks[:count] for count in range(1, len(clicks) + 1)]


def _by_sign(clicks: Clicks) -> tuple[list[Click], list[Click]]:
    return [one for one in clicks if one.positive], [one for one in clicks if not one.positive]


def _shuffled(clicks: Clicks) -> Clicks:
    order = list(clicks)
    random.Random(len(clicks)).shuffle(order)
    first = next(index for index, click in enumerate(order) if click.positive)
    return order[first], *order[:first], *order[first + 1 :]
