"""Draws the scenes of the check set and their exact masks: `python skipclick/evaluation/check_set/draw_scenes.py`.

Shapes of their own colour and grain lie on uneven ground, lit from one side, slightly out of focus and with a camera's
noise. Some differ little from what surrounds them, so that a model has to look for edges.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent
NUM_SCENES = 8
HEIGHT, WIDTH = 300, 400
IGNORED_ID = 128
EDGE = np.ones((3, 3), np.uint8)  # a pixel on either side of an outline belongs to both


def draw_scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A scene, uint8 RGB (H, W, 3), and its ids, uint8 (H, W): 0 ground, 1 and 2 the objects, 128 their outlines."""
    rng = np.random.default_rng(seed)
    ground_colour = rng.uniform(60, 190, 3)
    scene = ground_colour + _grain(rng, coarseness=rng.uniform(4, 40), strength=18)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for object_id, column in ((1, WIDTH * 0.3), (2, WIDTH * 0.68)):
        mask = _blob(rng, (column, HEIGHT * rng.uniform(0.35, 0.65)), radius=rng.uniform(40, 85))
        shadow = cv2.GaussianBlur(np.roll(mask, (6, 8), axis=(0, 1)).astype(np.float64), (0, 0), 6)
        scene *= 1 - 0.35 * shadow[:, :, None]
        colour = ground_colour + rng.choice((-1, 1), 3) * rng.uniform(15, 60, 3)
        surface = colour + _grain(rng, coarseness=rng.uniform(3, 25), strength=14)
        light = np.linspace(1.15, 0.85, WIDTH)[None, :, None]
        soft = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 0.8)[:, :, None]
        scene = scene * (1 - soft) + surface * light * soft
        ids[mask == 1] = object_id
    scene = cv2.GaussianBlur(scene, (0, 0), 0.6) + rng.normal(0, 3, scene.shape)
    ids[cv2.dilate(ids, EDGE) != cv2.erode(ids, EDGE)] = IGNORED_ID
    return scene.clip(0, 255).round().astype(np.uint8), ids


def _grain(rng: np.random.Generator, coarseness: float, strength: float) -> NDArray[np.float64]:
    """Uneven brightness with a little colour, float64 (H, W, 3), of standard deviation `strength`."""
    grey = np.asarray(cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH, 1)), (0, 0), coarseness))[:, :, None]
    fine = np.asarray(cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH, 3)), (0, 0), coarseness / 3))
    return np.asarray(strength * (grey / grey.std() + 0.4 * fine / fine.std()))


def _blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> NDArray[np.uint8]:
    """A closed wavy outline, filled: uint8 (H, W), 1 inside."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = sum(rng.normal(0, 0.35 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 7))
    distance = radius * np.exp(waves)
    points = np.stack([centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)], axis=1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], (1,))
    return mask


def main() -> None:
    """Write all scenes and masks into the folder of this script."""
    for seed in range(NUM_SCENES):
        scene, ids = draw_scene(seed)
        cv2.imwrite(str(FOLDER / "images" / f"scene{seed}.jpg"), scene[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(str(FOLDER / "masks" / f"scene{seed}.png"), ids)


if __name__ == "__main__":
    main()
