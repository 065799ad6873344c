"""The frozen image encoder and its four taps (paper section 3.2, Eq. 6). Networks come from timm."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from skipclick.config import ConvNetConfig, ModelConfig, VitConfig
from skipclick.mixer import attend


def _create(name: str, pretrained: bool, **options: Any) -> Any:
    """timm's model. Raises `ValueError` if its published weights cannot be loaded, for whatever reason."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise
        raise ValueError(
            f"the published weights of {name} could not be loaded ({type(error).__name__}); "
            "timm downloads them once and then reads them from its cache"
        ) from error


class VitAttention(Attention):
    """timm's attention with the mixer's kernel, which is faster for bfloat16 on a CPU."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C). There is no mask: the other two arguments only complete timm's signature."""
        assert attn_mask is None
        assert not is_causal
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, C / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, C / heads)
        projected: Tensor = self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        return projected


class VitBackbone(nn.Module):
    """Patch tokens of the tapped blocks of a ViT; class and register tokens are dropped."""

    def __init__(self, config: VitConfig, patch_size: int, pretrained: bool = False) -> None:
        super().__init__()
        self.vit: Any = _create(
            config.name,
            pretrained,
            num_classes=0,
            dynamic_img_size=True,
            patch_size=patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            # DINOv3 has rotary position embeddings, in an attention class of its own.
            **({} if "dinov3" in config.name else {"attn_layer": VitAttention}),
        )
        self.taps = list(config.taps)
        self.final_norm = config.final_norm
        self.patch_size = patch_size

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size
        blocks = self.vit.forward_intermediates(
            image,
            indices=self.taps,
            norm=self.final_norm,
            stop_early=True,  # blocks after the last tap are not run
            output_fmt="NLC",
            intermediates_only=True,
        )
        # (B, N, C) -> (B, C, h, w) as views: the memory stays token by token (channels last)
        return tuple(tokens.transpose(1, 2).unflatten(2, (height, width)) for tokens in blocks)


class ConvBackbone(nn.Module):
    """Outputs of the tapped stages of a ConvNet.

    Raises `ValueError` if timm's network of this name has other strides or widths than the configuration says.
    """

    def __init__(self, config: ConvNetConfig, pretrained: bool = False) -> None:
        super().__init__()
        sizes = {"layers": config.depths, "channels": config.widths, "stem_width": config.stem_width}
        self.stages = _create(
            config.name,
            pretrained,
            features_only=True,
            out_indices=tuple(tap + 1 for tap in config.taps),  # timm counts stride 2 as 0
            **({} if config.depths is None else sizes),
        )
        expected = [(4 << tap, config.widths[tap]) for tap in config.taps]
        info = self.stages.feature_info
        found = list(zip(info.reduction(), info.channels(), strict=True))
        if found != expected:
            raise ValueError(
                f"the stages of {config.name} have (stride, channels) {found}, the configuration says {expected}"
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.stages(image))


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
        self.encoder: VitBackbone | ConvBackbone = (
            VitBackbone(config.backbone, config.patch_size, pretrained)
            if isinstance(config.backbone, VitConfig)
            else ConvBackbone(config.backbone, pretrained)
        )
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
