"""What the head is shown of a photo: all of it, a window, or the crop around an object that zoom-in takes.

A view of the last kind starts as in serving, from the answer to one or two clicks on the whole photo. That is only
roughly right: it may reach beyond the crop, or be much larger than the object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import Click, Predictor
from skipclick.masks import NOTHING, Box
from skipclick.prompts import scale_clicks
from skipclick.simulation import TRAINING_THRESHOLD, jittered_click, next_click
from skipclick.zoom import DEFAULT_RULE, ZoomRule, around, new_view
from train.augment import AugmentConfig, Frame, labels_in, pixels_in, random_colours, random_window
from train.sampler import SamplerConfig, sample_object
from train.scene import Scene

ViewKind = Literal["whole", "window", "zoom"]
SHARES: dict[ViewKind, float] = {"whole": 0.35, "window": 0.25, "zoom": 0.4}
MIN_AREA = 1e-3  # of a photo; a smaller object is not zoomed in on

MARGINS = (1.2, 2.0)  # around the object itself, in half of the crops; the others are those of serving


@dataclass(frozen=True, eq=False)
class Start:
    """The state of a view's object before the first click in this view."""

    target: NDArray[np.int8]  # (H, W): 1 object, 0 background, -1 ignored
    clicks: tuple[Click, ...]  # so far, in the view's pixels; those outside it are left out
    probability: NDArray[np.uint8]  # (H, W), of 255


@dataclass(frozen=True, eq=False)
class DrawnView:
    """One view of one photo."""

    kind: ViewKind
    image: NDArray[np.uint8]  # RGB (H, W, 3)
    scene: Scene
    start: Start | None


def draw_view(
    image: NDArray[np.uint8],
    scene: Scene,
    crop: int,
    first_look: Predictor,
    rng: np.random.Generator,
    shares: Mapping[ViewKind, float] = SHARES,
) -> DrawnView:
    """A random view of a photo, crop x crop.

    first_look: the model that answers clicks on the whole photo before zoom-in. shares: probability of each kind.
    """
    colours = AugmentConfig(crop=crop)
    kind: ViewKind = rng.choice(list(shares), p=list(shares.values()))
    size = (image.shape[0], image.shape[1])
    image = np.asarray(cv2.LUT(image, random_colours(colours, rng)), np.uint8)
    start, frame = None, Frame(0, 0, *size, (crop, crop))
    if kind == "zoom":
        first = _first_answer(image, scene, first_look, rng)
        if first is None:
            kind = "whole"
        else:
            target, clicks, probability = first
            frame = zoom_frame(target == 1, clicks, probability, crop, rng)
    elif kind == "window":
        frame = random_window(size, replace(colours, view="window", area=(0.3, 1.0), whole_prob=0.0), rng)
    frame = replace(frame, flipped=bool(rng.random() < colours.flip_prob))
    if kind == "zoom":
        start = _start_in(frame, target, clicks, probability, crop)
        start = start if (start.target == 1).any() else None
    ignored = None if scene.ignored is None else labels_in(frame, scene.ignored[None], crop)[0]
    seen = replace(scene, layers=labels_in(frame, scene.layers, crop), ignored=ignored)
    return DrawnView(kind, pixels_in(frame, image, crop), seen, start)


def _first_answer(
    image: NDArray[np.uint8], scene: Scene, first_look: Predictor, rng: np.random.Generator
) -> tuple[NDArray[np.int8], list[Click], NDArray[np.float32]] | None:
    """A target, one or two clicks on the whole photo, and the answer to them; None if no object is large enough."""
    height, width = image.shape[:2]
    sampler = SamplerConfig(min_object_area=int(MIN_AREA * height * width), merge_prob=0.0)
    chosen = sample_object(scene, sampler, rng)
    if not chosen.parts:
        return None
    features = first_look.encode(image)
    probability: NDArray[np.float32] = np.zeros((height, width), np.float32)
    clicks: list[Click] = []
    for _ in range(int(rng.integers(1, 3))):
        clicks.append(simulated_click(probability, chosen.target, clicks, rng))
        probability = first_look.click(features, clicks, probability if len(clicks) > 1 else None)
    return chosen.target, clicks, probability


def simulated_click(
    probability: NDArray[np.float32], target: NDArray[np.int8], clicks: Sequence[Click], rng: np.random.Generator
) -> Click:
    """A next click: half of the time that of the evaluation, otherwise a random one in the inner half of the error."""
    prediction = probability > TRAINING_THRESHOLD
    clicked = [(int(click.y), int(click.x)) for click in clicks]
    if rng.random() < 0.5:
        return next_click(prediction, target, clicked)
    return jittered_click(prediction, target, clicked, rng)


def zoom_frame(
    target: NDArray[np.bool_],
    clicks: Sequence[Click],
    probability: NDArray[np.float32],
    crop: int,
    rng: np.random.Generator,
) -> Frame:
    """The crop that serving would take, or one around the object itself with a random margin and shift."""
    if rng.random() < 0.5:
        return framed(_box(probability > TRAINING_THRESHOLD), clicks, target, DEFAULT_RULE, (0, 0), crop)
    margin = math.exp(rng.uniform(*np.log(MARGINS)))
    top, left, bottom, right = box = _box(target)
    rows, columns = (margin - 1) / 2 * rng.uniform(-1, 1, size=2)
    shift = round(rows * (bottom - top)), round(columns * (right - left))
    return framed(box, [], target, replace(DEFAULT_RULE, margin=margin), shift, crop)


def framed(
    box: Box, clicks: Sequence[Click], target: NDArray[np.bool_], rule: ZoomRule, shift: tuple[int, int], crop: int
) -> Frame:
    """Serving's crop for a box and clicks, moved by `shift` within the photo, which has the size of `target`."""
    size = (target.shape[0], target.shape[1])
    top, left, bottom, right = new_view(around(clicks, size, box), size, (crop, crop), rule)
    height, width = bottom - top, right - left
    top, left = min(max(top + shift[0], 0), size[0] - height), min(max(left + shift[1], 0), size[1] - width)
    return Frame(top, left, height, width, (crop, crop))


def _box(mask: NDArray[np.bool_]) -> Box:
    """The box around a mask; `NOTHING` if it is empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (top, left, top + height, left + width) if width else NOTHING


def _start_in(
    frame: Frame, target: NDArray[np.int8], clicks: Sequence[Click], probability: NDArray[np.float32], crop: int
) -> Start:
    window = probability[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    resized = np.asarray(cv2.resize(window, (crop, crop), interpolation=cv2.INTER_LINEAR))
    moved = [replace(click, x=click.x - frame.left, y=click.y - frame.top) for click in clicks]
    inside = [click for click in moved if 0 <= click.x < frame.width and 0 <= click.y < frame.height]
    scaled = scale_clicks(inside, (frame.height, frame.width), (crop, crop))
    if frame.flipped:
        resized = resized[:, ::-1]
        scaled = [replace(click, x=crop - 1 - click.x) for click in scaled]
    return Start(labels_in(frame, target[None], crop)[0], tuple(scaled), np.asarray((resized * 255).round(), np.uint8))
