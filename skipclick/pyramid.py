"""The feature pyramid with skip connections from the backbone (paper section 3.2, Eq. 8).

A pyramid is computed in two halves. The first layer of each level is linear in the concatenation [mixed, f_i], hence
the sum of a part that sees `mixed` and a part that sees `f_i`. The latter depends on the image alone, and
`prepare(taps)` computes it once per image. `forward(mixed, skips, prompt)` is the rest, once per click.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from skipclick.config import ModelConfig


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)  # one group, eps 1e-5, as released


class ParallelPyramid(nn.Module):
    """The paper's pyramid over a ViT: four independent branches from one token grid (released: `SimpleFPN`).

    Nominal strides for patch size 14 are 3.5, 7, 14 and 28 pixels; odd grids are floored at the coarsest level.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, tap_width, (o4, o8, o16, o32) = config.mixer_width, config.tap_widths[0], config.pyramid_channels
        # Inner widths follow from the channels that enter: more of them where a skip is concatenated.
        entering = width + tap_width if config.skip_connections else width
        w4, w8, w32 = max(2 * o4, entering // 2), max(o8, entering // 2), max(o32, 2 * entering)

        def firsts(inputs: int, bias: bool) -> list[nn.Module]:
            return [
                nn.ConvTranspose2d(inputs, w4, 2, stride=2, bias=bias),
                nn.ConvTranspose2d(inputs, w8, 2, stride=2, bias=bias),
                nn.Conv2d(inputs, o16, 1, bias=bias),
                nn.Conv2d(inputs, w32, 2, stride=2, bias=bias),
            ]

        # The two halves are one convolution and have one bias.
        self.mixed = nn.ModuleList(firsts(width, bias=True))
        self.skips = nn.ModuleList(firsts(tap_width, bias=False) if config.skip_connections else [])
        self.refine = nn.ModuleList(
            [
                nn.Sequential(
                    _group_norm(w4),
                    nn.GELU(),
                    nn.ConvTranspose2d(w4, w4 // 2, 2, stride=2),
                    _group_norm(w4 // 2),
                    nn.Conv2d(w4 // 2, o4, 1),
                    _group_norm(o4),
                    nn.GELU(),
                ),
                nn.Sequential(_group_norm(w8), nn.Conv2d(w8, o8, 1), _group_norm(o8), nn.GELU()),
                nn.Sequential(_group_norm(o16), nn.GELU()),
                nn.Sequential(_group_norm(w32), nn.Conv2d(w32, o32, 1), _group_norm(o32), nn.GELU()),
            ]
        )

    def prepare(self, taps: Sequence[Tensor], *, compact: bool = False) -> tuple[Tensor, ...]:
        """taps: (B, C, h, w) each. Returns the image halves of the levels' first convolutions; none without skips.

        The halves of the two levels that are finer than the token grid hold four times as much as their taps.
        `compact` keeps those two taps instead and leaves their halves to every click.
        """
        return tuple(
            tap if compact and isinstance(skip, nn.ConvTranspose2d) else skip(tap)
            for skip, tap in zip(self.skips, taps, strict=False)
        )

    def forward(self, mixed: Tensor, skips: Sequence[Tensor], prompt: Tensor) -> list[Tensor]:
        """mixed: (B, C, h, w); skips: from `prepare`. Returns the levels: 4h x 4w, 2h x 2w, h x w, h/2 x w/2.

        The prompt maps are not used here: the paper's pyramid sees clicks through the mixer only.
        """
        levels = [first(mixed) for first in self.mixed]
        if skips:
            halves = [
                kept if kept.shape == level.shape else skip(kept)  # a tap that `compact` kept
                for kept, level, skip in zip(skips, levels, self.skips, strict=True)
            ]
            levels = [level + half for level, half in zip(levels, halves, strict=True)]
        return [refine(level) for refine, level in zip(self.refine, levels, strict=True)]


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def _strided(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class TopDownPyramid(nn.Module):
    """The pyramid for a convolutional backbone, whose stages lie at strides 4, 8, 16 and 32: each enters at its own.

    Coarse levels flow into fine ones, and the prompt maps also enter directly at strides 4 and 8: with tokens of 16
    pixels alone, a small network places late clicks too coarsely.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, (o4, o8, o16, o32) = config.mixer_width, config.pyramid_channels
        self.skips = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1)
            for inputs, outputs in zip(config.tap_widths, config.pyramid_channels, strict=False)
            if config.skip_connections
        )
        self.mixed16 = nn.Conv2d(width, o16, 1)
        self.mixed32 = nn.Conv2d(width, o32, 2, stride=2)
        self.from32 = nn.Conv2d(o32, o16, 1)
        self.from16 = nn.Conv2d(o16, o8, 1)
        self.from8 = nn.Conv2d(o8, o4, 1)
        self.prompt4 = nn.Sequential(_strided(3, 16), _strided(16, o4))
        self.prompt8 = _strided(o4, o8)
        self.blocks = nn.ModuleList(ConvBlock(channels) for channels in config.pyramid_channels)

    def prepare(self, taps: Sequence[Tensor], *, compact: bool = False) -> tuple[Tensor, ...]:
        """taps: (B, C_i, H/s, W/s) for s in 4, 8, 16, 32. Returns them projected to the levels' channels; none
        without skips.

        That is less than the taps hold, so `compact` changes nothing.
        """
        return tuple(skip(tap) for skip, tap in zip(self.skips, taps, strict=False))

    def forward(self, mixed: Tensor, skips: Sequence[Tensor], prompt: Tensor) -> list[Tensor]:
        """mixed: (B, C, H/16, W/16); prompt: (B, 3, H, W). Returns the levels fine to coarse, strides 4, 8, 16, 32."""
        block4, block8, block16, block32 = self.blocks
        fine4 = self.prompt4(prompt)  # (B, o4, H/4, W/4)
        fine8 = self.prompt8(fine4)  # (B, o8, H/8, W/8)
        levels = [fine4, fine8, self.mixed16(mixed), self.mixed32(mixed)]
        if skips:
            levels = [level + skip for level, skip in zip(levels, skips, strict=True)]
        x32 = block32(levels[3])
        x16 = block16(levels[2] + _double(self.from32(x32)))
        x8 = block8(levels[1] + _double(self.from16(x16)))
        x4 = block4(levels[0] + _double(self.from8(x8)))
        return [x4, x8, x16, x32]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
