"""Masks as Label Studio itself reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from label_studio_sdk.converter.brush import decode_rle


def brush_alpha(rle: Sequence[int], height: int, width: int) -> np.ndarray:
    """What a brush region covers, uint8 (H, W) from 0 to 255, by Label Studio's own decoder and none of ours."""
    return np.reshape(decode_rle(rle), (height, width, 4))[:, :, 3]
