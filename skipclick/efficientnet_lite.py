"""EfficientNet-Lite without its classifier, the backbone of the bundled model: timm's `tf_efficientnet_lite0` to `2`.

Weights have timm's names, and the same weights give the same bits. It stands here because timm and torchvision, which
timm imports, take longer to import than everything else that a server needs, and need not be installed for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-3  # TensorFlow's, of batch norm
_STEM = 32  # channels
_KERNELS = (3, 3, 5, 3, 5, 5, 3)  # of each group of blocks
_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of its first block
_STAGES = (1, 2, 4, 6)  # the last group at the strides 4, 8, 16 and 32


@dataclass(frozen=True)
class _Size:
    widths: tuple[int, ...]  # channels behind each group of blocks
    depths: tuple[int, ...]  # blocks


SIZES = {
    "tf_efficientnet_lite0": _Size((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite1": _Size((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "tf_efficientnet_lite2": _Size((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
"""By timm's name."""


class EfficientNetLite(nn.Module):
    """The stem and all blocks, with random weights.

    `forward(image: (B, 3, H, W))` returns the last map of each of the `taps`, stages 0 to 3 at the strides 4, 8, 16
    and 32.
    """

    def __init__(self, name: str, taps: tuple[int, ...]) -> None:
        super().__init__()
        size = SIZES[name]
        self.conv_stem = _Convolution(3, _STEM, 3, stride=2)
        self.bn1 = _Norm(_STEM)
        groups: list[nn.Module] = []
        channels = _STEM
        for width, depth, kernel, stride in zip(size.widths, size.depths, _KERNELS, _STRIDES, strict=True):
            block = _Block if groups else _FirstBlock
            strides = (stride, *(1,) * (depth - 1))
            inputs = (channels, *(width,) * (depth - 1))
            groups.append(nn.Sequential(*(block(c, width, kernel, s) for c, s in zip(inputs, strides, strict=True))))
            channels = width
        self.blocks = nn.Sequential(*groups)
        self.tapped = tuple(_STAGES[tap] for tap in taps)
        self.widths = tuple(size.widths[group] for group in _STAGES)
        for module in self.modules():
            if isinstance(module, _Convolution):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))  # as in TensorFlow

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(image))
        maps = []
        for index, group in enumerate(self.blocks):
            x = group(x)
            if index in self.tapped:
                maps.append(x)
        return maps


class _Block(nn.Module):
    """An inverted residual block: six times as many channels, a convolution of each, and back."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = 6 * channels
        self.conv_pw = _Convolution(channels, wide, 1)
        self.bn1 = _Norm(wide)
        self.conv_dw = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.bn2 = _Norm(wide)
        self.conv_pwl = _Convolution(wide, width, 1)
        self.bn3 = nn.BatchNorm2d(width, _EPSILON)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv_pw(x))
        y = self.bn2(self.conv_dw(y))
        y = self.bn3(self.conv_pwl(y))
        return y + x if self.residual else y


class _FirstBlock(nn.Module):
    """The first block does not widen: a convolution of each channel, then fewer channels."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _Convolution(channels, channels, kernel, stride, groups=channels)
        self.bn1 = _Norm(channels)
        self.conv_pw = _Convolution(channels, width, 1)
        self.bn2 = nn.BatchNorm2d(width, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return y


class _Norm(nn.BatchNorm2d):
    """Batch norm and ReLU6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, _EPSILON)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(super().forward(input), inplace=True)


class _Convolution(nn.Conv2d):
    """Without a bias, and padded as TensorFlow does: at stride 2 as little as the size asks for, rather at the right
    and at the bottom."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(channels, width, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride[0] > 1:
            down, across = (_missing(int(side), self.kernel_size[0], self.stride[0]) for side in input.shape[-2:])
            input = F.pad(input, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(input)


def _missing(side: int, kernel: int, stride: int) -> int:
    """Pixels that `side` lacks so that a convolution gives ceil(side / stride)."""
    return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
