"""The frozen image encoder and its four taps (paper section 3.2, Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skipclick.config import ConvNetConfig, ModelConfig
from skipclick.efficientnet_lite import SIZES, EfficientNetLite


class ConvBackbone(nn.Module):
    """Outputs of the tapped stages of a ConvNet.

    Raises `ValueError` if the network of this name has other strides or widths than the configuration says.
    """

    def __init__(self, config: ConvNetConfig, pretrained: bool = False) -> None:
        super().__init__()
        self.stages = _stages(config, pretrained)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.stages(image))


def _stages(config: ConvNetConfig, pretrained: bool) -> nn.Module:
    if config.name in SIZES and config.depths is None and not pretrained:
        lite = EfficientNetLite(config.name, config.taps)
        if lite.widths != config.widths:
            raise ValueError(
                f"the stages of {config.name} have {lite.widths} channels, the configuration says {config.widths}"
            )
        return lite
    from skipclick.timm_networks import convnet_stages

    return convnet_stages(config, pretrained)


def _encoder(config: ModelConfig, pretrained: bool) -> nn.Module:
    """Raises `ValueError` if it is a network of timm and timm is not installed."""
    try:
        if isinstance(config.backbone, ConvNetConfig):
            return ConvBackbone(config.backbone, pretrained)
        from skipclick.timm_networks import VitBackbone

        return VitBackbone(config.backbone, config.patch_size, pretrained)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the backbone {config.backbone.name} needs timm, and {error.name} is not installed: pip install timm, or "
            "use the full image instead of the one for CPUs"
        ) from None


class Backbone(nn.Module):
    """Normalises an image and returns its taps. Frozen unless the configuration says otherwise.

    `forward(image: (B, 3, H, W) float in [0, 1])` returns one (B, C_i, h_i, w_i) map per tap, shallow to deep.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        # Constants of the configuration, not weights: they do not belong in a state dict.
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(1, 3, 1, 1), persistent=False)
        self.encoder = _encoder(config, pretrained)
        self.frozen = not config.train_backbone
        self.fixed_statistics = False
        self.requires_grad_(config.train_backbone)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen encoder stays in evaluation mode whatever the rest of the model does; so does a trained one with
        `fixed_statistics`, which keeps the batch-norm statistics of its pretrained weights."""
        super().train(mode and not self.frozen and not self.fixed_statistics)
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            taps: tuple[Tensor, ...] = self.encoder((image - self.mean) / self.std)
        return taps
