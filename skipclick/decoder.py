"""The decoder: SegFormer's all-1x1 head over the pyramid (paper section 3.2, Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Brings all levels to one width and the finest size, fuses them and gives one logit per position."""

    def __init__(self, level_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(inputs, channels, 1) for inputs in level_channels)
        self.fusion = nn.Conv2d(len(level_channels) * channels, channels, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(channels, 1, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """pyramid: maps (B, C_i, h_i, w_i), fine to coarse. Returns logits (B, 1, h_0, w_0)."""
        logits: Tensor = self.classify(self.dropout(self.fuse(pyramid)))
        return logits

    def fuse(self, pyramid: Sequence[Tensor]) -> Tensor:
        """The fused map (B, channels, h_0, w_0) before classification."""
        # The fusion of the concatenated levels is a sum over levels, and a 1x1 convolution commutes with bilinear
        # interpolation. So each level is fused at its own size: a third of the work, and no concatenation in memory.
        weights = self.fusion.weight.chunk(len(self.levels), dim=1)  # each (channels, channels, 1, 1)
        projected = [F.relu(project(level)) for project, level in zip(self.levels, pyramid, strict=True)]
        fused = F.conv2d(projected[0], weights[0], self.fusion.bias)
        for level, weight in zip(projected[1:], weights[1:], strict=True):
            coarse = F.conv2d(level, weight)
            fused = fused + F.interpolate(coarse, size=fused.shape[-2:], mode="bilinear", align_corners=False)
        return F.relu(fused)
