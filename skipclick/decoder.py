"""The decoder: SegFormer's all-1x1 head over the pyramid (paper section 3.2, Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
        finest = pyramid[0].shape[-2:]
        levels = [F.relu(project(level)) for project, level in zip(self.levels, pyramid, strict=True)]
        resized = [
            level
            if level.shape[-2:] == finest
            else F.interpolate(level, size=finest, mode="bilinear", align_corners=False)
            for level in levels
        ]
        return F.relu(self.fusion(torch.cat(resized, dim=1)))
