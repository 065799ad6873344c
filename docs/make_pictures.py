"""Draws the README's picture with the bundled model: `python docs/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from skipclick import Click, Predictor, load_checkpoint
from skipclick.drawing import draw_overlay
from skipclick.masks import MASK_THRESHOLD

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "tests" / "e2e" / "photos" / "coffee.jpg"
CLICKS = [Click(290, 150), Click(250, 60), Click(300, 235, positive=False)]


def main() -> None:
    """Writes docs/coffee.png: the photo and the mask after each click, side by side."""
    image = np.asarray(cv2.imread(str(PHOTO), cv2.IMREAD_COLOR_RGB), np.uint8)
    predictor = Predictor(load_checkpoint("bundled"))
    features = predictor.encode(image)
    probability = None
    pictures = []
    for count in range(1, len(CLICKS) + 1):
        probability = predictor.click(features, CLICKS[:count], probability)
        pictures.append(draw_overlay(image, probability > MASK_THRESHOLD, CLICKS[:count]))
    row = cv2.resize(np.concatenate(pictures, axis=1), None, fx=0.55, fy=0.55, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(ROOT / "docs" / "coffee.png"), row[:, :, ::-1])


if __name__ == "__main__":
    main()
