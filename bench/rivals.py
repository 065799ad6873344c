"""Other ways to cut out an object by clicks, behind the same two calls as `skipclick.Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import Click


@dataclass(frozen=True)
class GrabCutFeatures:
    """The photo as GrabCut works on it, BGR, and the (H, W) of the original."""

    image: NDArray[np.uint8]
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GrabCutModel:
    """OpenCV's GrabCut (Rother et al., SIGGRAPH 2004), seeded with the clicks.

    A disc at each click is certain, object or background by the click's sign. Everything else starts as what the
    previous mask says, which also gives the two colour models; at the first click a large disc around the click
    takes the mask's place. Both radii are parts of the shorter side of the photo.

    The defaults were the best of those tried on photos of the GrabCut set, which favours this rival there.
    """

    max_side: int = 320
    """The longer side in pixels after reduction; full size took three times as long and was no better."""
    num_iterations: int = 2
    """Per click; each click starts from the previous mask, so iterations add up over the clicks."""
    disc_radius: float = 0.04
    first_radius: float = 0.2

    @property
    def version(self) -> str:
        """Name of the method."""
        return f"OpenCV {cv2.__version__} GrabCut"

    def encode(self, image: NDArray[np.uint8]) -> GrabCutFeatures:
        """The photo, uint8 RGB (H, W, 3), reduced to `max_side`."""
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return GrabCutFeatures(np.ascontiguousarray(np.asarray(reduced, np.uint8)[:, :, ::-1]), (height, width))

    def click(
        self, features: GrabCutFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The mask after all clicks, float32 (H, W), 0 or 1 but for a soft edge where it was enlarged."""
        labels = self._start(features, clicks, previous)
        is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if is_object.any() and not is_object.all():  # both colour models need pixels
            cv2.setRNGSeed(0)  # the colour models start from k-means with OpenCV's own random numbers
            background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
            no_box, mode = (0, 0, 0, 0), cv2.GC_INIT_WITH_MASK
            cv2.grabCut(features.image, labels, no_box, background, foreground, self.num_iterations, mode)
            is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        height, width = features.image_size
        mask = cv2.resize(is_object.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(mask)

    def _start(
        self, features: GrabCutFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """GrabCut's labels, uint8 (h, w) at the reduced size, before its first iteration."""
        height, width = features.image.shape[:2]
        scale_x, scale_y = width / features.image_size[1], height / features.image_size[0]
        centres = [(int(click.x * scale_x), int(click.y * scale_y)) for click in clicks]
        is_object = np.zeros((height, width), np.bool_)
        if previous is not None:
            is_object |= np.asarray(cv2.resize(previous, (width, height), interpolation=cv2.INTER_AREA)) > 0.5
        if not is_object.any():
            positives = [centre for click, centre in zip(clicks, centres, strict=True) if click.positive]
            is_object |= _discs(positives, self.first_radius, (height, width))
        labels = np.where(is_object, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        for click, centre in zip(clicks, centres, strict=True):
            disc = _discs([centre], self.disc_radius, (height, width))
            labels[disc] = cv2.GC_FGD if click.positive else cv2.GC_BGD
        return labels


def _discs(centres: Sequence[tuple[int, int]], radius: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels, bool (H, W), within discs around (x, y) centres; the radius in parts of the shorter side."""
    canvas = np.zeros(shape, np.uint8)
    for centre in centres:
        cv2.circle(canvas, centre, max(1, round(radius * min(shape))), (1,), cv2.FILLED)
    return canvas.astype(np.bool_)
