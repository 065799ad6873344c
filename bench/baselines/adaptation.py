"""Adaptation during use: a late-fusion model whose decoder learns from what the annotator does (Schön et al.).

After each click the decoder takes a step towards all clicks of the object so far, which are sparse labels (arXiv
2404.08421); when a photo is done, a step towards each of its accepted masks, dense labels that are left out near the
outline (arXiv 2407.09288). What it has learnt stays for the photos after: results depend on their order. The features
of photos do not change. Learning rate, number of steps and widths here are this project's, not the papers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from skipclick import Click, Predictor
from skipclick.evaluation.evaluate import ClickModel
from skipclick.features import ImageFeatures
from skipclick.masks import MASK_THRESHOLD
from skipclick.model import PreparedFeatures
from skipclick.prompts import click_points, prompt_maps, scale_clicks

Labels = Literal["clicks", "masks", "both"]

LEARNING_RATE = 1e-5
"""Of Adam."""
ERODED = 0.01
"""Pixels nearer than this to the outline of a mask are no labels; in parts of the photo's shorter side."""
GRID = 64
"""Points along either side of a photo at which a mask is a label."""


@runtime_checkable
class Adaptable(Protocol):
    """A model of `ClickModel` whose decoder can learn."""

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """What learns."""

    def trainable_logits(
        self, features: Any, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> tuple[Tensor, tuple[float, float]]:
        """Logits (1, 1, h, w) with gradients, and the part of their height and width that the photo takes."""


class AdaptablePredictor:
    """A model of this project. Its mixer, pyramid and decoder learn: all that a click runs but the prompts' encoder."""

    def __init__(self, predictor: Predictor) -> None:
        """Raises ValueError where the network does not run in PyTorch with float32."""
        if predictor.runtime != "torch" or predictor.dtype != torch.float32:
            raise ValueError("adaptation needs gradients of PyTorch in float32: omit --runtime and --dtype")
        self.version, self.encode, self.click = predictor.version, predictor.encode, predictor.click
        self._predictor = predictor

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """What learns."""
        model = self._predictor.model
        return model.mixer, model.pyramid, model.decoder

    def trainable_logits(
        self, features: ImageFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> tuple[Tensor, tuple[float, float]]:
        """Of the photo as it is, without its mirrored view."""
        predictor, size = self._predictor, features.image_size
        before = np.zeros(size, np.float32) if previous is None else previous
        small = F.interpolate(
            torch.from_numpy(before)[None, None].to(predictor.device),
            size=predictor.resolution,
            mode="bilinear",
            align_corners=True,
        )
        points = click_points([scale_clicks(clicks, size, predictor.resolution)], predictor.device)
        prompt = prompt_maps(small, *points, predictor.model.config.click_radius)
        whole = features.prepared
        prepared = PreparedFeatures(whole.tokens[:1], tuple(skip[:1] for skip in whole.skips)).clone()
        return predictor.model.decode_coarse(prepared, prompt), (1.0, 1.0)


class Adapted:
    """A model that learns while it is used. For objects that are clicked photo by photo, in one process."""

    def __init__(self, model: ClickModel[Any], labels: Labels) -> None:
        """
        Args:
            model: of this project or of SAM's family; it is changed.
            labels: what the decoder learns from.

        Raises:
            ValueError: the model cannot be adapted.
        """
        adaptable = AdaptablePredictor(model) if isinstance(model, Predictor) else model
        if not isinstance(adaptable, Adaptable):
            raise ValueError(f"{model.version} cannot be adapted: --adapt is for models of ours and of SAM's family")
        self.version = f"{model.version}, adapted to {'clicks and masks' if labels == 'both' else labels}"
        self.side = getattr(model, "side", 0)
        self.device = getattr(model, "device", torch.device("cpu"))
        self._model: Any = adaptable
        self._labels = labels
        learning = [parameter for part in adaptable.decoder for parameter in part.parameters()]
        for parameter in learning:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.Adam(learning, LEARNING_RATE)
        self._answers: dict[tuple[int, tuple[Click, ...]], tuple[Any, Any, NDArray[np.float32]]] = {}
        """Of the photo: by features and clicks so far, what the last click was given and gave."""

    def encode(self, image: NDArray[np.uint8]) -> Any:
        """The photo, uint8 RGB (H, W, 3). The masks of the photo before are accepted by this."""
        answers, self._answers = self._answers, {}
        if self._labels != "clicks":
            for (_, clicks), (features, previous, answer) in answers.items():
                points, labels = dense_labels(answer > MASK_THRESHOLD)
                self._step(features, clicks, previous, points, labels, (answer.shape[0], answer.shape[1]))
        return self._model.encode(image)

    def click(
        self, features: Any, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The answer of the model, float32 (H, W), after it has learnt from the clicks."""
        if self._labels != "masks":
            points = np.array([(click.x, click.y) for click in clicks], np.float32)
            labels = np.array([click.positive for click in clicks], np.float32)
            self._step(features, clicks, previous, points, labels, features.image_size)
        answer: NDArray[np.float32] = self._model.click(features, clicks, previous)
        self._answers.pop((id(features), tuple(clicks[:-1])), None)
        self._answers[id(features), tuple(clicks)] = features, previous, answer
        return answer

    def _step(
        self,
        features: Any,
        clicks: Sequence[Click],
        previous: NDArray[np.float32] | None,
        points: NDArray[np.float32],
        labels: NDArray[np.float32],
        size: tuple[int, int],
    ) -> None:
        """One step towards the labels, (N,), at the points, (N, 2) as (x, y) in pixels of a photo of `size` (H, W)."""
        with torch.enable_grad():
            logits, (height, width) = self._model.trainable_logits(features, clicks, previous)
            scale = np.array([2 * width / size[1], 2 * height / size[0]], np.float32)
            places = torch.from_numpy((points + 0.5) * scale - 1).to(logits.device)[None, None]  # (1, 1, N, 2)
            found = F.grid_sample(logits.float(), places, padding_mode="border", align_corners=False)[0, 0, 0]
            loss = F.binary_cross_entropy_with_logits(found, torch.from_numpy(labels).to(found.device))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def dense_labels(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points (N, 2) as (x, y) of a grid over a mask, bool (H, W), and their labels (N,); none near its outline.

    All points if none is far enough.
    """
    height, width = mask.shape
    radius = max(1, round(ERODED * min(height, width)))
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    inside = cv2.erode(mask.astype(np.uint8), kernel) > 0
    outside = cv2.erode((~mask).astype(np.uint8), kernel) > 0
    rows = np.unique(np.linspace(0, height - 1, GRID).round().astype(int))
    columns = np.unique(np.linspace(0, width - 1, GRID).round().astype(int))
    y, x = (one.ravel() for one in np.meshgrid(rows, columns, indexing="ij"))
    certain = (inside | outside)[y, x]
    if certain.any():
        y, x = y[certain], x[certain]
    return np.stack([x, y], axis=1).astype(np.float32), mask[y, x].astype(np.float32)
