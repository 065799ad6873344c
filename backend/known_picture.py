"""A photo with a known mask, which a model must find before it serves anybody.

Weights can be damaged in ways that no check of shapes finds; they would answer with empty masks or noise.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from backend.images.decode import decode_image
from skipclick import Click
from skipclick.predictor import ClickRequest, Predictor

CUP = (Click(290, 150), Click(250, 60), Click(300, 235, positive=False))
"""Clicks on the cup of the photo."""

_OUTLINE = (
    (181, 72), (173, 91), (172, 123), (187, 159), (201, 172), (235, 193), (272, 208), (289, 211), (325, 209),
    (371, 186), (379, 186), (399, 157), (406, 138), (411, 106), (396, 75), (364, 40), (332, 25), (306, 19),
    (264, 19), (226, 30), (204, 45),
)  # fmt: skip
"""Of the cup, as (x, y) in pixels."""

MIN_IOU = 0.5
"""Every known model reaches more than 0.9; one for another domain may be worse at cups."""


def known_photo() -> NDArray[np.uint8]:
    """The photo of the page /ui: uint8 RGB (400, 600, 3)."""
    with (Path(__file__).parent / "ui" / "sample.jpg").open("rb") as file:
        return decode_image(file, max_pixels=1_000_000).pixels


def known_mask() -> NDArray[np.bool_]:
    """The cup, bool (400, 600)."""
    mask = np.zeros((400, 600), np.uint8)
    cv2.fillPoly(mask, [np.array(_OUTLINE, np.int32)], 1)
    return mask.astype(bool)


def check_known_picture(predictor: Predictor) -> None:
    """Raise `ValueError` if the predictor does not find the cup with its three clicks."""
    features = predictor.encode(known_photo())
    state: torch.Tensor | None = None
    for count in range(1, len(CUP) + 1):
        found = predictor.predict([ClickRequest(features, CUP[:count], state)])[0]
        state = found.state
    mask, cup = found.mask.full(), known_mask()
    iou = float((mask & cup).sum() / (mask | cup).sum())
    if not iou >= MIN_IOU:
        raise ValueError(
            f"the weights do not segment: on a known photo they find a mask with IoU {iou:.2f} where at least "
            f"{MIN_IOU} is expected; CHECKPOINT is damaged, was not trained, or RESOLUTION does not suit it"
        )
