"""Networks of timm as image encoders: every vision transformer, and ConvNets other than the bundled model's."""

from __future__ import annotations

from typing import Any

import timm
from timm.layers.attention import Attention
from torch import Tensor, nn

from skipclick.config import ConvNetConfig, VitConfig
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


def convnet_stages(config: ConvNetConfig, pretrained: bool = False) -> nn.Module:
    """A ConvNet that returns the maps of the tapped stages.

    Raises `ValueError` if timm's network of this name has other strides or widths than the configuration says.
    """
    sizes = {"layers": config.depths, "channels": config.widths, "stem_width": config.stem_width}
    stages: nn.Module = _create(
        config.name,
        pretrained,
        features_only=True,
        out_indices=tuple(tap + 1 for tap in config.taps),  # timm counts stride 2 as 0
        **({} if config.depths is None else sizes),
    )
    expected = [(4 << tap, config.widths[tap]) for tap in config.taps]
    info: Any = stages.feature_info
    found = list(zip(info.reduction(), info.channels(), strict=True))
    if found != expected:
        raise ValueError(
            f"the stages of {config.name} have (stride, channels) {found}, the configuration says {expected}"
        )
    return stages
