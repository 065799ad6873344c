"""From a photo and clicks to a probability map: the two calls that everything else is built on.

    features = predictor.encode(image)                               the expensive step, once per photo
    probability = predictor.click(features, clicks, previous)        once per click

A predictor remembers nothing between calls; `ImageFeatures` is a value that the caller keeps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from skipclick.features import ImageFeatures
from skipclick.model import SkipClick
from skipclick.prompts import Click, click_points, prompt_maps, scale_clicks

MASK_THRESHOLD = 0.5  # a pixel is the object's where its probability exceeds this (released demo)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Predictor:
    """Runs one model at one resolution on one device. Raises `ValueError` for input that cannot be right."""

    def __init__(
        self,
        model: SkipClick,
        resolution: tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        *,
        flip: bool = False,
    ) -> None:
        """
        Args:
            resolution: (H, W) that every photo is squeezed to; default: the model's.
            dtype: "float32" or "bfloat16".
            flip: also look at the mirrored photo and average the logits, at twice the cost. The published figures
                were measured so; serving does not need it.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        self.resolution = resolution or model.config.resolution
        multiple = model.config.size_multiple
        if any(side < multiple or side % multiple for side in self.resolution):
            raise ValueError(
                f"resolution {self.resolution} does not fit this model: both sides must be multiples of {multiple}"
            )
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.flip = flip
        # A copy, so that the caller's model keeps its device and type; kernels prefer channels last.
        self.model: SkipClick = copy.deepcopy(model).eval().to(self.device, self.dtype)
        self.model.to(memory_format=torch.channels_last)
        self.model.requires_grad_(False)

    @property
    def version(self) -> str:
        """Name of the weights in use."""
        return self.model.version

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures:
        """All that depends on the photo alone.

        image: uint8 RGB (H, W, 3), turned as the annotator sees it.
        """
        _check_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None]  # (1, 3, H, W)
        if self.model.config.antialias:
            resized = self._resize(pixels, self.resolution).float()  # shrinking bytes is many times faster
        else:
            resized = self._resize(pixels.float(), self.resolution)
        network_input = self._both_ways(resized / 255).to(self.dtype, memory_format=torch.channels_last)
        blocks = self.model.backbone(network_input)
        return ImageFeatures(blocks, self.model.prepare(blocks), (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def click(
        self, features: ImageFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The object's probability after its clicks so far.

        Args:
            features: of `encode`, by a predictor with the same model and resolution.
            clicks: all clicks of the object, oldest first, in pixels of the photo.
            previous: float32 (H, W) in [0, 1], the answer to all clicks but the last; None at the first.

        Returns:
            float32 (H, W) in [0, 1] at the photo's size; the mask is where it exceeds 0.5.
        """
        size = features.image_size
        _check_clicks(clicks, size)
        prompt = self._prompt(clicks, self._previous(previous, size), size)
        logits = self.model.decode(features.prepared, prompt).float()  # (1 or 2, 1, h, w)
        if self.flip:
            logits = 0.5 * (logits[:1] + logits[1:].flip(-1))
        probability = self._resize(logits.sigmoid(), size)
        result: NDArray[np.float32] = probability[0, 0].cpu().numpy()
        return result

    def _prompt(self, clicks: Sequence[Click], previous: Tensor, size: tuple[int, int]) -> Tensor:
        """Prompt maps (1 or 2, 3, h, w) at network resolution, the second one mirrored."""
        scaled = scale_clicks(clicks, size, self.resolution)
        views = [scaled]
        if self.flip:
            views.append([Click(self.resolution[1] - 1 - c.x, c.y, c.positive) for c in scaled])
        positives, negatives = click_points(views, self.device)
        prompt = prompt_maps(self._both_ways(previous), positives, negatives, self.model.config.click_radius)
        return prompt.to(self.dtype)

    def _previous(self, previous: NDArray[np.float32] | None, size: tuple[int, int]) -> Tensor:
        if previous is None:
            return torch.zeros(1, 1, *self.resolution, device=self.device)
        if previous.shape != size or previous.dtype != np.float32:
            raise ValueError(
                f"previous is {previous.dtype} {previous.shape}; give what the last click returned, float32 {size}"
            )
        return self._resize(torch.from_numpy(previous).to(self.device)[None, None], self.resolution)

    def _resize(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        if self.model.config.antialias:
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)

    def _both_ways(self, maps: Tensor) -> Tensor:
        return torch.cat([maps, maps.flip(-1)]) if self.flip else maps


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image is {kind}; give a NumPy array of uint8, 0 to 255")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the image has shape {image.shape}; give RGB as (height, width, 3)")


def _check_clicks(clicks: Sequence[Click], size: tuple[int, int]) -> None:
    if not clicks:
        raise ValueError("there are no clicks; give at least one")
    for click in clicks:
        if not (0 <= click.x <= size[1] and 0 <= click.y <= size[0]):
            raise ValueError(
                f"click ({click.x}, {click.y}) lies outside the image, which is {size[1]} wide and {size[0]} high; "
                "give pixels of the original image, x to the right and y down"
            )
