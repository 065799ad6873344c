"""Prompts: clicks, the disks that the network sees in their place, and their embedding (paper section 3.1, Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Click:
    """One click of the annotator, in pixels of the original image: x to the right, y down."""

    x: float
    y: float
    positive: bool = True


def scale_clicks(clicks: Sequence[Click], image_size: tuple[int, int], resolution: tuple[int, int]) -> list[Click]:
    """Clicks moved from an image of `image_size` (H, W) to the network's `resolution` (H, W).

    The factor is resolution / size with no half-pixel shift, as in the released code (evaluation and demo).
    """
    scale_y, scale_x = resolution[0] / image_size[0], resolution[1] / image_size[1]
    return [Click(click.x * scale_x, click.y * scale_y, click.positive) for click in clicks]


def click_points(
    clicks: Sequence[Sequence[Click]], device: torch.device | str = "cpu", places: int = 1
) -> tuple[Tensor, Tensor]:
    """Clicks of B objects as padded tensors.

    Returns positives and negatives, each (B, N, 2) float32 as (row, column), N at least `places`, padded with -1.
    """

    def padded(positive: bool) -> Tensor:
        rows = [[(c.y, c.x) for c in object_clicks if c.positive == positive] for object_clicks in clicks]
        longest = max([places, *map(len, rows)])
        filled = [row + [(-1.0, -1.0)] * (longest - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.float32, device=device)

    return padded(True), padded(False)


def disk_map(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """Disks around points: 1 where the squared distance to any point is at most radius² (released code: radius 5).

    Args:
        points: (B, N, 2) as (row, column), fractional coordinates allowed; a point whose coordinates are both
            negative is padding.
        height, width: size of the map in pixels; pixel centres lie at integer coordinates.
        radius: in pixels, inclusive.

    Returns:
        (B, 1, height, width) float32, values 0 and 1.
    """
    batch = points.shape[0]
    # Only the pixels of each disk's bounding square are visited: a disk per click, not an image per click.
    span = torch.arange(math.ceil(2 * radius) + 2, dtype=points.dtype, device=points.device)  # (S,)
    first = torch.floor(points - radius)  # (B, N, 2)
    rows = first[..., 0:1] + span  # (B, N, S)
    columns = first[..., 1:2] + span  # (B, N, S)
    # Squares are compared in float32 whatever the points' type is: it decides pixels that lie exactly on the radius.
    row_distance = (rows - points[..., 0:1]).float() ** 2
    column_distance = (columns - points[..., 1:2]).float() ** 2
    inside = row_distance.unsqueeze(-1) + column_distance.unsqueeze(-2) <= radius**2  # (B, N, S, S)
    inside &= ((rows >= 0) & (rows < height)).unsqueeze(-1) & ((columns >= 0) & (columns < width)).unsqueeze(-2)
    inside &= (points.amax(dim=-1) >= 0)[..., None, None]
    index = rows.long().unsqueeze(-1) * width + columns.long().unsqueeze(-2)  # (B, N, S, S)
    index = torch.where(inside, index, height * width).view(batch, -1)  # all else lands in one spare pixel
    flat = torch.zeros(batch, height * width + 1, device=points.device).scatter_(1, index, 1.0)
    return flat[:, :-1].view(batch, 1, height, width)


def prompt_maps(previous: Tensor, positives: Tensor, negatives: Tensor, radius: float) -> Tensor:
    """The prompt as the network sees it: channels [previous probability, positive disks, negative disks].

    Args:
        previous: (B, 1, H, W) probability of the step before, zeros at the first click. Soft, not thresholded: the
            released code does so in training and inference although the paper writes m in {0, 1} (Eq. 2).
        positives, negatives: (B, N, 2) points as `click_points` makes them, in pixels of H x W.

    Returns:
        (B, 3, H, W) in the dtype of `previous`.
    """
    height, width = previous.shape[-2:]
    disks = [disk_map(points, height, width, radius).to(previous.dtype) for points in (positives, negatives)]
    return torch.cat([previous, *disks], dim=1)


class PromptEmbedding(nn.Module):
    """Patch embedding of the prompt maps (Eq. 2): (B, 3, H, W) -> tokens (B, N, C)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, prompt: Tensor) -> Tensor:
        tokens: Tensor = self.proj(prompt).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)
        return tokens
