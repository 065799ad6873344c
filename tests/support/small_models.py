"""Networks small enough for tests: a ViT and a ConvNet, and the bundled weights at half their resolution."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from skipclick.checkpoint import load_checkpoint
from skipclick.config import (
    TINY,
    ConvNetConfig,
    ModelConfig,
    VitConfig,
)
from skipclick.model import SkipClick

SMALL = ModelConfig(
    backbone=VitConfig(embed_dim=24, num_heads=2, depth=4, taps=(0, 1, 2, 3)),
    mixer_width=24,
    mixer_heads=2,
    mixer_depth=1,
    mixer_grid=4,
    pyramid_channels=(8, 8, 16, 16),
    decoder_channels=8,
)


SMALL_CONV = replace(
    TINY,
    backbone=ConvNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_width=8),
    mixer_width=24,
    mixer_depth=1,
)


@cache
def bundled() -> SkipClick:
    """The bundled model, loaded once, which takes as long as many clicks: make a copy to change it."""
    return load_checkpoint("bundled")


@cache
def bundled_at_160_pixels() -> SkipClick:
    """The bundled model for 160 x 160 pixels: it knows what an object is, and learns at a small part of the cost.

    The same for everybody, as `bundled`.
    """
    model = load_checkpoint("bundled")
    model.config = replace(model.config, resolution=(160, 160))
    return model
