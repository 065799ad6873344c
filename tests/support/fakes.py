"""Stand-ins for the model and for images: discs around clicks on images of one colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from backend.images.decode import DecodedImage
from backend.images.loader import Look
from backend.prompts import ImageReference
from skipclick.masks import BoxMask
from skipclick.predictor import ClickRequest, Prediction
from skipclick.prompts import Click

T = TypeVar("T")

RADIUS = 12
"""Of the discs that `DiscPredictor` draws, in pixels."""


@dataclass(frozen=True)
class DiscFeatures:
    """What `DiscPredictor` knows of an image: its size and mean colour."""

    image_size: tuple[int, int]
    mean: float
    nbytes: int = 1000
    head: str = "discs"


@dataclass
class DiscPredictor:
    """A disc for each positive click, a hole for each negative one, drawn into the previous mask.

    Only the newest click is drawn, so a wrong or missing previous mask shows.
    """

    calls: list[tuple[Click, ...]] = field(default_factory=list)
    encoded: list[tuple[int, int]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    head: str = "discs"

    def prepare(self, features: DiscFeatures) -> DiscFeatures:
        return replace(features, head=self.head)

    def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
        with self.lock:
            self.encoded.append((image.shape[0], image.shape[1]))
        return DiscFeatures((image.shape[0], image.shape[1]), float(image.mean()), head=self.head)

    def start_state(self, area: NDArray[np.bool_], probability_inside: float = 1.0) -> torch.Tensor:
        return probability_inside * torch.from_numpy(area.astype(np.float32))

    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        return [self._predict(request) for request in requests]

    def _predict(self, request: ClickRequest) -> Prediction:
        with self.lock:
            self.calls.append(tuple(request.clicks))
        height, width = request.features.image_size
        probability = np.zeros((height, width)) if request.previous is None else 0.99 * request.previous.numpy()
        rows, columns = np.ogrid[:height, :width]
        newest = request.clicks[-1]
        disc = (rows - newest.y) ** 2 + (columns - newest.x) ** 2 <= RADIUS**2
        probability[disc] = 0.9 if newest.positive else 0.1
        if request.within is not None:
            probability *= request.within
        mask = probability > 0.5
        score = float(probability[mask].mean()) if mask.any() else 0.0
        return Prediction(BoxMask.of(mask), score, torch.from_numpy(probability.astype(np.float32)))


class HeldPredictor(DiscPredictor):
    """Encodes until it is told to go on, 10 s at most."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = Event(), Event()

    def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
        self.inside.set()
        self.go_on.wait(10)
        return super().encode(image)


@dataclass
class FlatImages:
    """Images of one colour, 160 x 120 unless `sizes` says otherwise (width, height by address)."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)

    def place(self, reference: ImageReference) -> str:
        return reference.url

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        return reference.url

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        kept = None if doubt else find(reference.url)
        if kept is not None:
            return Look(reference.url, kept, asked=False)
        return Look(reference.url, photo=self.load(reference))

    def load(self, reference: ImageReference) -> DecodedImage:
        self.loaded.append(reference.url)
        width, height = self.sizes.get(reference.url, (160, 120))
        return DecodedImage(np.full((height, width, 3), sum(reference.url.encode()) % 256, np.uint8), (height, width))
