"""OpenCV's GrabCut, seeded with the clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import Click


@dataclass(frozen=True, eq=False)
class GrabCutFeatures:
    """The photo as GrabCut works on it, uint8 BGR (h, w, 3), and the (H, W) of the original."""

    image: NDArray[np.uint8]
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GrabCutModel:
    """OpenCV's GrabCut (Rother et al., SIGGRAPH 2004).

    A disc at each click is certain, object or background by the click's sign. Everything else starts as what the
    previous mask says, which also gives the two colour models; at the first click a large disc around the click
    takes the mask's place. Both radii are parts of the shorter side of the photo.

    The defaults were the best of those tried on photos of the GrabCut set, which favours this baseline there.
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
        small = np.ascontiguousarray(reduced(image, self.max_side)[:, :, ::-1])
        return GrabCutFeatures(small, (image.shape[0], image.shape[1]))

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
        return enlarged(is_object.astype(np.float32), features.image_size)

    def _start(
        self, features: GrabCutFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """GrabCut's labels, uint8 (h, w) at the reduced size, before its first iteration."""
        height, width = features.image.shape[:2]
        size = (height, width)
        is_object = np.zeros(size, np.bool_)
        if previous is not None:
            is_object |= np.asarray(cv2.resize(previous, (width, height), interpolation=cv2.INTER_AREA)) > 0.5
        if not is_object.any():
            for click in clicks:
                if click.positive:
                    is_object |= disc(click, features.image_size, size, self.first_radius)
        labels = np.where(is_object, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        for click in clicks:
            certain = disc(click, features.image_size, size, self.disc_radius)
            labels[certain] = cv2.GC_FGD if click.positive else cv2.GC_BGD
        return labels


def reduced(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """The photo, uint8 RGB (H, W, 3), shrunk until its longer side is at most `max_side` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def enlarged(mask: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A mask of the reduced photo, float32 in [0, 1], at the photo's `size` (H, W), with soft edges."""
    return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR))


def disc(click: Click, image_size: tuple[int, int], size: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """The pixels around a click, bool (h, w).

    The click is in pixels of the photo, whose size is `image_size` (H, W); the disc is drawn at `size` (h, w). radius:
    in parts of the shorter side.
    """
    height, width = size
    centre = (int(click.x * width / image_size[1]), int(click.y * height / image_size[0]))
    canvas = np.zeros(size, np.uint8)
    cv2.circle(canvas, centre, max(1, round(radius * min(size))), (1,), cv2.FILLED)
    return canvas.astype(np.bool_)
