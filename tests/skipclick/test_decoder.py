"""Protects the decoder's short cut: fusing each level at its own size equals fusing the concatenation (Eq. 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from skipclick.decoder import Decoder


@torch.inference_mode()
def test_fusing_level_by_level_equals_fusing_the_concatenation() -> None:
    torch.manual_seed(0)
    decoder = Decoder([8, 16, 24, 32], 12).eval()
    sizes = [(20, 28), (10, 14), (5, 7), (2, 3)]  # the coarsest is floored, as at odd grids
    levels = [torch.randn(2, channels, *size) for channels, size in zip([8, 16, 24, 32], sizes, strict=True)]
    projected = [F.relu(layer(level)) for layer, level in zip(decoder.levels, levels, strict=True)]
    resized = [F.interpolate(level, size=sizes[0], mode="bilinear", align_corners=False) for level in projected]
    expected = F.relu(decoder.fusion(torch.cat(resized, dim=1)))
    torch.testing.assert_close(decoder.fuse(levels), expected, atol=1e-5, rtol=1e-5)
