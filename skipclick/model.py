"""SkipClick as a whole, in two calls: what depends on the image alone is computed once and cached.

    encode (image)             backbone -> prepare        once per image
    decode (features, prompt)  prompts -> mixer -> pyramid -> decoder   once per click

B batch, (H, W) network resolution, (h, w) token grid, N = h * w tokens, C mixer width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipclick.backbone import Backbone
from skipclick.config import ModelConfig
from skipclick.decoder import Decoder
from skipclick.mixer import Mixer
from skipclick.prompts import PromptEmbedding, prompt_maps
from skipclick.pyramid import ParallelPyramid, TopDownPyramid


@dataclass(frozen=True)
class PreparedFeatures:
    """What one head makes of an image's taps before any click."""

    tokens: Tensor  # (B, N, C), the fused taps (Eq. 7) plus the position embedding of the mixer (Eq. 3)
    skips: tuple[Tensor, ...]  # what the pyramid keeps of the taps (Eq. 8, see there); empty without skips

    @staticmethod
    def cat(features: Sequence[PreparedFeatures]) -> PreparedFeatures:
        """Features of several images of one network resolution as one batch."""
        if len(features) == 1:
            return features[0]
        skips = zip(*(f.skips for f in features), strict=True)
        return PreparedFeatures(torch.cat([f.tokens for f in features]), tuple(torch.cat(level) for level in skips))

    def clone(self) -> PreparedFeatures:
        """The same in memory of its own."""
        return PreparedFeatures(self.tokens.clone(), tuple(skip.clone() for skip in self.skips))

    def put(self, place: int, features: PreparedFeatures) -> None:
        """Overwrite one place of the batch with the features of a single image."""
        self.tokens[place].copy_(features.tokens[0])
        for mine, theirs in zip(self.skips, features.skips, strict=True):
            mine[place].copy_(theirs[0])

    def repeat(self, num_objects: int) -> PreparedFeatures:
        """Features for `num_objects` objects of each image, (B * num_objects, ...), objects of an image adjacent."""
        # Repeating loses the memory format, and maps of two formats are slow to add.
        skips = [skip.repeat_interleave(num_objects, dim=0) for skip in self.skips]
        return PreparedFeatures(
            self.tokens.repeat_interleave(num_objects, dim=0),
            tuple(skip.contiguous(memory_format=torch.channels_last) for skip in skips),
        )


class SkipClick(nn.Module):
    """The network. `version` names the weights; it travels with checkpoints and predictions."""

    def __init__(self, config: ModelConfig, *, pretrained: bool = False, version: str = "untrained") -> None:
        """`pretrained=True` fetches the backbone's published weights through timm; the head starts fresh."""
        super().__init__()
        self.config = config
        self.version = version
        self.backbone = Backbone(config, pretrained)
        self.fuse = nn.Linear(sum(config.tap_widths), config.mixer_width) if config.fuse else None
        self.prompts = PromptEmbedding(config.patch_size, config.mixer_width)
        self.mixer = Mixer(config.mixer_width, config.mixer_depth, config.mixer_heads, config.mixer_grid)
        self.pyramid: ParallelPyramid | TopDownPyramid = (
            ParallelPyramid(config) if config.pyramid == "parallel" else TopDownPyramid(config)
        )
        self.decoder = Decoder(config.pyramid_channels, config.decoder_channels)

    def forward(self, image: Tensor, previous: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Logits (B, 1, H, W) from an image (B, 3, H, W) in [0, 1] and a prompt (see `prompts.prompt_maps`)."""
        prompt = prompt_maps(previous, positives, negatives, self.config.click_radius)
        return self.decode(self.encode(image), prompt)

    def encode(self, image: Tensor) -> PreparedFeatures:
        """All that depends on the image alone: backbone, then this head's preparation."""
        return self.encode_with_taps(image)[1]

    def encode_with_taps(self, image: Tensor) -> tuple[tuple[Tensor, ...], PreparedFeatures]:
        """The same with the backbone's taps, which other heads work on too."""
        taps = self.backbone(image)
        return taps, self.prepare(taps)

    def prepare(self, taps: Sequence[Tensor], *, compact: bool = False) -> PreparedFeatures:
        """This head's part of the image's features; linear in the taps.

        `compact` saves memory at the cost of some work per click, see `ParallelPyramid.prepare`.
        """
        tokens = self.fuse_taps(taps) + self.mixer.positions(self._grid(taps))
        return PreparedFeatures(tokens, self.pyramid.prepare(taps, compact=compact))

    def fuse_taps(self, taps: Sequence[Tensor]) -> Tensor:
        """The fused image feature (B, N, C) of Eq. 7."""
        grid = self._grid(taps)
        tokens = [to_grid(tap, grid).flatten(2).transpose(1, 2) for tap in taps]  # each (B, N, C_i)
        return tokens[0] if self.fuse is None else self.fuse(torch.cat(tokens, dim=-1))

    def decode(self, features: PreparedFeatures, prompt: Tensor) -> Tensor:
        """Logits (B, 1, H, W) from prepared features and prompt maps (B, 3, H, W); the only work of a click."""
        size = (prompt.shape[-2], prompt.shape[-1])
        return enlarge_logits(self.decode_coarse(features, prompt), size)

    def decode_coarse(self, features: PreparedFeatures, prompt: Tensor) -> Tensor:
        """The same before `enlarge_logits`: (B, 1, 4h, 4w)."""
        grid = (prompt.shape[-2] // self.config.patch_size, prompt.shape[-1] // self.config.patch_size)
        x = self.mixer(features.tokens, self.prompts(prompt))  # (B, N, C)                               Eq. 3-4
        mixed = x.transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)
        logits: Tensor = self.decoder(self.pyramid(mixed, features.skips, prompt))  #                     Eq. 8-9
        return logits

    def _grid(self, taps: Sequence[Tensor]) -> tuple[int, int]:
        """The mixer's token grid for these taps: theirs for a ViT, that of stride `patch_size` for a ConvNet."""
        stride, patch = self.config.tap_strides[0], self.config.patch_size
        return taps[0].shape[-2] * stride // patch, taps[0].shape[-1] * stride // patch


def enlarge_logits(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    """The decoder's logits (B, 1, 4h, 4w) at the network's resolution (H, W)."""
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=True)


def to_grid(tap: Tensor, grid: tuple[int, int]) -> Tensor:
    """A tap at the mixer's grid: averaged where finer, interpolated where coarser, untouched where equal."""
    if tap.shape[-2:] == grid:
        return tap
    if tap.shape[-2] > grid[0]:
        return F.adaptive_avg_pool2d(tap, grid)
    return F.interpolate(tap, size=grid, mode="bilinear", align_corners=False)
