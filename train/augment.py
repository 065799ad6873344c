"""Augmentation of a photo and its masks together, by one numpy generator.

First a `Frame` is drawn, which says where the view lies; then photo and masks are transformed to it. Masks are sampled
only where the view shows them. Both are as torchvision would resize them, masks in a third of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from train.scene import Scene

Range = tuple[float, float]
Label = TypeVar("Label", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Defaults are the released code's."""

    crop: int = 448  # side of the square view, pixels
    view: Literal["crop", "window"] = "crop"  # see `random_crop` and `random_window`
    scale: Range = (0.75, 1.40)  # "crop": the photo is resized by a factor in this range, the same for both axes
    area: Range = (0.25, 1.0)  # "window": share of the photo's area that the window covers
    stretch: float = 1.35  # "window": its aspect ratio differs from the photo's by up to this factor
    whole_prob: float = 0.3  # "window": probability of the whole photo
    flip_prob: float = 0.5
    brightness: Range = (-0.25, 0.25)  # added, share of the full range
    contrast: Range = (-0.15, 0.40)  # relative to 1
    brightness_contrast_prob: float = 0.75
    rgb_shift: float = 10.0  # added to each channel, of 255
    rgb_shift_prob: float = 0.75


@dataclass(frozen=True)
class Frame:
    """Where a view lies: the window of the photo that is resized, and the view's place in the resized window."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    """(h, w) that the window is resized to."""
    corner: tuple[int, int] = (0, 0)
    """(row, column) of the view in the resized window; negative where padding comes first."""
    flipped: bool = False
    """Whether the view is mirrored, left and right."""


def augment(
    image: NDArray[np.uint8], scene: Scene, config: AugmentConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Scene]:
    """A random view of a photo, uint8 RGB (H, W, 3), and its scene (H, W): both of size crop x crop."""
    draw_frame = random_crop if config.view == "crop" else random_window
    frame = draw_frame((image.shape[0], image.shape[1]), config, rng)
    frame = replace(frame, flipped=rng.random() < config.flip_prob)
    pixels = cv2.LUT(pixels_in(frame, image, config.crop), random_colours(config, rng))
    layers = labels_in(frame, scene.layers, config.crop)
    ignored = None if scene.ignored is None else labels_in(frame, scene.ignored[None], config.crop)[0]
    return np.asarray(pixels, np.uint8), replace(scene, layers=layers, ignored=ignored)


def random_crop(photo: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Frame:
    """The released code's view of a photo (H, W): resize by one factor, pad with 0 where too small, crop anywhere."""
    factor = rng.uniform(*config.scale)
    height, width = (max(1, round(side * factor)) for side in photo)
    row, column = (int(rng.integers(max(side, config.crop) - config.crop + 1)) for side in (height, width))
    padding_above, padding_left = (max(0, config.crop - side) // 2 for side in (height, width))
    return Frame(0, 0, *photo, (height, width), (row - padding_above, column - padding_left))


def random_window(photo: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Frame:
    """A window of a photo (H, W) resized to the square, as whole photos are when serving: whatever the crop's size,
    objects take up as much of the view as they will then."""
    height, width = photo
    share, stretch = 1.0, 1.0
    if rng.random() >= config.whole_prob:
        share = rng.uniform(*config.area)
        stretch = math.exp(rng.uniform(-1, 1) * math.log(config.stretch))
    window_height = min(height, max(1, round(height * math.sqrt(share * stretch))))
    window_width = min(width, max(1, round(width * math.sqrt(share / stretch))))
    top, left = int(rng.integers(height - window_height + 1)), int(rng.integers(width - window_width + 1))
    return Frame(top, left, window_height, window_width, (config.crop, config.crop))


def pixels_in(frame: Frame, image: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    """A view of a photo, (H, W, 3) -> (crop, crop, 3): bilinear with antialiasing, black beyond the photo."""
    window = image[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    layers = torch.from_numpy(window).permute(2, 0, 1)[None]  # (1, 3, h, w), bytes
    (resized,) = F.interpolate(layers, size=frame.size, mode="bilinear", align_corners=False, antialias=True)
    (rows, to_rows), (columns, to_columns) = (
        _overlap(corner, size, crop) for corner, size in zip(frame.corner, frame.size, strict=True)
    )
    pixels = np.zeros((crop, crop, 3), np.uint8)
    pixels[to_rows, to_columns] = resized[:, rows, columns].permute(1, 2, 0).numpy()
    return np.asarray(cv2.flip(pixels, 1), np.uint8) if frame.flipped else pixels


def labels_in(frame: Frame, planes: NDArray[Label], crop: int) -> NDArray[Label]:
    """A view of masks, (L, H, W) -> (L, crop, crop): nearest pixels, 0 beyond the photo."""
    (rows, to_rows), (columns, to_columns) = (
        _overlap(corner, size, crop) for corner, size in zip(frame.corner, frame.size, strict=True)
    )
    from_rows = frame.top + _nearest(frame.height, frame.size[0])[rows]
    from_columns = frame.left + _nearest(frame.width, frame.size[1])[columns]
    if frame.flipped:
        from_columns, to_columns = from_columns[::-1], slice(crop - to_columns.stop, crop - to_columns.start)
    labels = np.zeros((len(planes), crop, crop), planes.dtype)
    labels[:, to_rows, to_columns] = planes[:, from_rows].take(from_columns, axis=2)
    return labels


def _overlap(corner: int, size: int, crop: int) -> tuple[slice, slice]:
    """Along one axis, the part of the resized window that a view shows, and where in the view it lies."""
    start, end = max(corner, 0), min(corner + crop, size)
    return slice(start, end), slice(start - corner, end - corner)


def _nearest(length: int, size: int) -> NDArray[np.int64]:
    """The pixel, of `length`, that each of `size` pixels takes its value from (torchvision's nearest)."""
    places = np.arange(size, dtype=np.float32) * np.float32(length / size)
    return np.asarray(np.minimum(places.astype(np.int64), length - 1))


def random_colours(config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast and channel shifts as a look-up table, (256, 1, 3), of each channel's new values."""
    gain, offset = 1.0, np.zeros(3, np.float32)
    if rng.random() < config.brightness_contrast_prob:
        gain = 1.0 + rng.uniform(*config.contrast)
        offset += np.float32(255.0 * rng.uniform(*config.brightness))
    if rng.random() < config.rgb_shift_prob:
        offset += rng.uniform(-config.rgb_shift, config.rgb_shift, size=3)
    values = np.arange(256, dtype=np.float32)[:, None] * np.float32(gain) + offset
    return np.asarray(values.clip(0, 255).round()[:, None], np.uint8)
