"""What CVAT's browser makes of an interactor's answer, written after the rules of its wrapper: an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from cvat_sdk.masks import decode_mask
from numpy.typing import NDArray

HIDDEN_BELOW = 0.5
"""Start of the confidence slider: shapes whose confidence is lower are not drawn."""
FEWEST_NUMBERS = 6
"""Shapes with fewer are ignored."""


def shown_masks(answer: Mapping[str, Any], size: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """The masks, bool (H, W), that an annotator sees on a picture of `size` (H, W), with their offset in it.

    Raises `AssertionError` where the browser would break or show nothing in place of something.
    """
    if "mask" in answer:
        rows = answer["mask"]
        assert isinstance(rows, list), "rows of a whole picture"
        assert (len(rows), {len(row) for row in rows}) == (size[0], {size[1]}), "the mask covers the whole picture"
        mask = np.array([[bool(value) for value in row] for row in rows])
        return [mask] if mask.any() else []
    assert isinstance(answer["shapes"], list), "cannot read properties of undefined (response.shapes)"
    found = []
    for shape in answer["shapes"]:
        assert isinstance(shape["attributes"], list)
        for attribute in shape["attributes"]:
            assert type(attribute["spec_id"]) is int
            assert isinstance(attribute["value"], str), "else all attributes of the shape are dropped"
            assert attribute["spec_id"] != 0 or float(attribute["value"]) >= HIDDEN_BELOW, "hidden"
        if shape["type"] == "mask" and len(shape["points"]) >= FEWEST_NUMBERS:
            found.append(decode_mask(shape["points"], image_width=size[1], image_height=size[0]))
    return found
