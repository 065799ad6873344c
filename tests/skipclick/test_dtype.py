"""Protects bfloat16: masks stay those of float32, and it is chosen only where it is faster and they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from skipclick import Click, Predictor, load_checkpoint
from skipclick import dtype as dtype_module
from skipclick.dtype import choose_dtype
from skipclick.predictor import ClickRequest


@pytest.fixture(scope="module")
def coffee() -> NDArray[np.uint8]:
    return np.array(Image.open(Path(__file__).parents[1] / "e2e" / "photos" / "coffee.jpg").convert("RGB"))


def test_masks_in_bfloat16_agree_with_float32_on_a_real_photo(coffee: NDArray[np.uint8]) -> None:
    """Three clicks on the cup and below it, every state carried on: the median IoU is at least 0.995."""
    clicks = [Click(290, 150), Click(250, 60), Click(300, 235, positive=False)]
    answers = {}
    for dtype in ("float32", "bfloat16"):
        predictor = Predictor(load_checkpoint("bundled"), dtype=dtype)
        features, state, masks = predictor.encode(coffee), None, []
        for count in range(1, len(clicks) + 1):
            answer = predictor.predict([ClickRequest(features, clicks[:count], state)])[0]
            state = answer.state
            masks.append(answer.mask.full())
        answers[dtype] = masks
    overlaps = []
    for exact, fast in zip(answers["float32"], answers["bfloat16"], strict=True):
        assert exact.any()
        overlaps.append((exact & fast).sum() / (exact | fast).sum())
    assert np.median(overlaps) >= 0.995
    assert min(overlaps) >= 0.98  # soft edges move most at the first click


def test_the_measured_type_is_one_that_works_here(coffee: NDArray[np.uint8]) -> None:
    objects = [[Click(290, 150), Click(250, 60)], [Click(60, 60)]]
    dtype = choose_dtype(load_checkpoint("bundled"), coffee, objects)
    assert Predictor(load_checkpoint("bundled"), dtype=dtype).encode(coffee).prepared.tokens.isfinite().all()


@pytest.mark.parametrize(
    ("failure", "expected"),
    [("slower", "float32"), ("other masks", "float32"), ("raises", "float32"), ("", "bfloat16")],
)
def test_bfloat16_is_chosen_only_if_it_is_faster_and_agrees(
    failure: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that stand in for the model, since which type is faster depends on the processor."""

    class FakeTrial:
        def __init__(self, given: Predictor, *photo_and_objects: object) -> None:
            self.fast = given.dtype == torch.bfloat16
            if self.fast and failure == "raises":
                raise RuntimeError("no kernel for bfloat16")

        def seconds(self) -> float:
            return (2.0 if failure == "slower" else 0.5) if self.fast else 1.0

        def masks(self) -> list[NDArray[np.bool_]]:
            return [np.full((10, 10), self.fast and failure == "other masks")]

    monkeypatch.setattr(dtype_module, "_Trial", FakeTrial)
    assert choose_dtype(load_checkpoint("bundled"), np.zeros((10, 10, 3), np.uint8), []) == expected
