"""A project with two versions of its head, whose predictor counts how often it encodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.annotator import Annotator, ObjectMask
from backend.images.decode import DecodedImage, decode_image
from backend.images.loader import Look
from backend.prompts import ImageReference, SmartClick
from skipclick.features import ImageFeatures
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest, Prediction, Predictor
from skipclick.prompts import Click
from tests.support.small_models import bundled
from tests.support.tuned_models import tuned_model

T = TypeVar("T")

PROJECT = 12

RESOLUTION = (160, 160)
"""Of all predictors here: a fraction of the model's own takes a fraction of the time."""


IMAGE = ImageReference("/data/upload/12/cup.jpg", 1)


CUP = [SmartClick("a", 290, 150, True), SmartClick("b", 250, 60, True), SmartClick("c", 300, 235, False)]


@cache
def photo() -> DecodedImage:
    """The sample photo of the page /ui: a cup of coffee."""
    with (Path(__file__).parents[2] / "backend" / "ui" / "sample.jpg").open("rb") as file:
        return decode_image(file, max_pixels=1_000_000)


@cache
def model(number: int | None) -> SkipClick:
    """The model of a version; None: the bundled one."""
    return bundled() if number is None else tuned_model(number, bundled())


class OnePhoto:
    """The same photo for every task."""

    def place(self, reference: ImageReference) -> str:
        return reference.url

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        return "cup"

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        kept = find("cup")
        return Look("cup", kept, asked=False) if kept is not None else Look("cup", photo=photo())


class Counting(Predictor):
    """Counts looks at images; `gate` holds answers back while it is closed."""

    def __init__(self, model: SkipClick) -> None:
        super().__init__(model, RESOLUTION, keep_taps=True)
        self.encoded: list[int] = []
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()

    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures:
        self.encoded.append(1)
        return super().encode(image)

    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        self.inside.set()
        assert self.gate.wait(30)
        return super().predict(requests)


@cache
def expected(number: int | None) -> list[NDArray[np.bool_]]:
    """The masks after each click of a server that has this version from the beginning, and nothing else."""
    predictor, state, masks = Predictor(model(number), RESOLUTION), None, []
    features = predictor.encode(photo().pixels)
    for count in (1, 2, 3):
        clicks = [Click(click.x, click.y, click.positive) for click in CUP[:count]]
        (answer,) = predictor.predict([ClickRequest(features, clicks, state)])
        state = answer.state
        masks.append(answer.mask.full())
    return masks


def asked(annotator: Annotator, num_clicks: int = 3, project: int | None = PROJECT) -> ObjectMask:
    return annotator.annotate(IMAGE, CUP[:num_clicks], None, photo().size, project=project)


def name(number: int | None) -> str:
    return "skipclick-lite" if number is None else f"skipclick-lite+p12.v{number}"


def assert_answered_by(number: int | None, answer: ObjectMask, num_clicks: int = 3) -> None:
    assert answer.version == name(number)
    np.testing.assert_array_equal(answer.mask.full(), expected(number)[num_clicks - 1])
