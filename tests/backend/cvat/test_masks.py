"""Protects masks on their way to CVAT: its own coder and its browser's rules are the oracles."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
from cvat_sdk.masks import decode_mask, encode_mask
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from backend.cvat.masks import run_lengths
from backend.cvat.protocol import answer
from skipclick.masks import BoxMask
from tests.support.cvat_browser import shown_masks

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


def frame(height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


@given(MASKS)
@example(np.ones((1, 1), np.bool_))
@example(np.ones((5, 7), np.bool_))
@example(frame(5, 7))
@example(np.eye(6, dtype=np.bool_))
@example(np.eye(6, dtype=np.bool_)[::-1].copy())
def test_run_lengths_are_those_of_cvat_s_own_coder(mask: NDArray[np.bool_]) -> None:
    if not mask.any():
        with pytest.raises(ValueError, match="empty"):
            run_lengths(BoxMask.of(mask))
        return
    points = run_lengths(BoxMask.of(mask))
    assert points == encode_mask(mask)
    assert np.array_equal(decode_mask(points, image_width=mask.shape[1], image_height=mask.shape[0]), mask)


@given(MASKS)
@example(np.zeros((4, 4), np.bool_))
@example(np.ones((1, 1), np.bool_))
def test_the_browser_shows_the_same_mask_by_either_form(mask: NDArray[np.bool_]) -> None:
    shown = [
        shown_masks(json.loads(orjson.dumps(answer(BoxMask.of(mask), form), option=orjson.OPT_SERIALIZE_NUMPY)), size)
        for form in ("mask", "shapes")
        if (size := (mask.shape[0], mask.shape[1]))
    ]
    assert [len(masks) for masks in shown] == [int(mask.any())] * 2
    assert all(np.array_equal(one, mask) for masks in shown for one in masks)
