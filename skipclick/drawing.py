"""Pictures of a result as in the paper's figures: blue mask, green positive and red negative clicks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.prompts import Click

MASK_COLOUR = (40, 90, 255)
POSITIVE_COLOUR = (30, 200, 60)
NEGATIVE_COLOUR = (230, 40, 40)
MASK_OPACITY = 0.5


def draw_overlay(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], clicks: Sequence[Click] = (), opacity: float = MASK_OPACITY
) -> NDArray[np.uint8]:
    """The photo, uint8 RGB (H, W, 3), with a mask, bool (H, W), and clicks drawn over it; a new array.

    With an opacity of 0 only the mask's outline is drawn.
    """
    tinted = image.astype(np.float32)
    tinted[mask] = (1 - opacity) * tinted[mask] + opacity * np.array(MASK_COLOUR, np.float32)
    canvas = tinted.round().astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    unit = max(1, round(max(image.shape[:2]) / 400))  # line width that suits the photo's size
    cv2.drawContours(canvas, contours, -1, MASK_COLOUR, unit)
    for click in clicks:
        centre = (round(click.x), round(click.y))
        colour = POSITIVE_COLOUR if click.positive else NEGATIVE_COLOUR
        cv2.circle(canvas, centre, 5 * unit, colour, -1, cv2.LINE_AA)
        cv2.circle(canvas, centre, 5 * unit, (255, 255, 255), unit, cv2.LINE_AA)
    return canvas
