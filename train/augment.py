"""Augmentation of a photo and its ids together, by torchvision's functional transforms and one numpy generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Defaults are the released code's."""

    crop: int = 448  # side of the square that the network sees, pixels
    view: Literal["crop", "window"] = "crop"  # see `_random_crop` and `_random_window`
    scale: Range = (0.75, 1.40)  # "crop": the photo is resized by a factor of this range, both axes alike
    area: Range = (0.25, 1.0)  # "window": share of the photo's area that the window covers
    stretch: float = 1.35  # "window": its aspect ratio departs from the photo's by up to this factor
    whole_prob: float = 0.3  # "window": probability of the whole photo
    flip_prob: float = 0.5
    brightness: Range = (-0.25, 0.25)  # added, share of the full range
    contrast: Range = (-0.15, 0.40)  # relative to 1
    brightness_contrast_prob: float = 0.75
    rgb_shift: float = 10.0  # added to each channel, of 255
    rgb_shift_prob: float = 0.75


def augment(
    image: NDArray[np.uint8], ids: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random view of a photo: uint8 RGB (H, W, 3) and ids uint8 (H, W) -> both of size crop x crop."""
    pixels, labels = (
        torch.from_numpy(image).permute(2, 0, 1),
        torch.from_numpy(ids)[None],
    )  # (3, H, W), (1, H, W)
    view = _random_crop if config.view == "crop" else _random_window
    pixels, labels = view(pixels, labels, config, rng)
    if rng.random() < config.flip_prob:
        pixels, labels = V.hflip(pixels), V.hflip(labels)
    pixels = _random_colours(pixels, config, rng)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), np.ascontiguousarray(labels[0].numpy())


def _random_crop(
    pixels: Tensor, labels: Tensor, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The released code's view: resize by one factor, pad with zeros where too small, crop anywhere."""
    factor = rng.uniform(*config.scale)
    size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
    pixels, labels = _resize(pixels, labels, size)
    missing = [max(0, config.crop - side) for side in size]
    left, top = missing[1] // 2, missing[0] // 2
    padding = [left, top, missing[1] - left, missing[0] - top]
    pixels, labels = V.pad(pixels, padding, fill=0), V.pad(labels, padding, fill=0)
    y, x = (int(rng.integers(side - config.crop + 1)) for side in pixels.shape[-2:])
    return V.crop(pixels, y, x, config.crop, config.crop), V.crop(labels, y, x, config.crop, config.crop)


def _random_window(
    pixels: Tensor, labels: Tensor, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A window of the photo squeezed into the square, as whole photos are squeezed at serving: objects keep the size,
    relative to the view, that they will have there, however small the crop is."""
    height, width = pixels.shape[-2:]
    share, stretch = 1.0, 1.0
    if rng.random() >= config.whole_prob:
        share = rng.uniform(*config.area)
        stretch = math.exp(rng.uniform(-1, 1) * math.log(config.stretch))
    window_height = min(height, max(1, round(height * math.sqrt(share * stretch))))
    window_width = min(width, max(1, round(width * math.sqrt(share / stretch))))
    y, x = int(rng.integers(height - window_height + 1)), int(rng.integers(width - window_width + 1))
    pixels, labels = (V.crop(t, y, x, window_height, window_width) for t in (pixels, labels))
    return _resize(pixels, labels, [config.crop, config.crop])


def _resize(pixels: Tensor, labels: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    return V.resize(pixels, size, antialias=True), V.resize(labels, size, InterpolationMode.NEAREST)


def _random_colours(pixels: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and channel shifts in one affine map per channel."""
    gain, offset = 1.0, torch.zeros(3, 1, 1)
    if rng.random() < config.brightness_contrast_prob:
        gain = 1.0 + rng.uniform(*config.contrast)
        offset += 255.0 * rng.uniform(*config.brightness)
    if rng.random() < config.rgb_shift_prob:
        offset += torch.from_numpy(rng.uniform(-config.rgb_shift, config.rgb_shift, size=(3, 1, 1)))
    return (pixels.float() * gain + offset).clamp_(0, 255).round_().to(torch.uint8)
