"""Protects the losses: the focal loss equals the released one in value and gradient; ignored pixels never count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_files import for_each_golden, load_golden
from train.losses import LOSSES, bce_dice_loss, normalised_focal_loss


@for_each_golden("golden_loss*.npz")
@pytest.mark.parametrize(("alpha", "name"), [(0.5, "a50"), (0.25, "a25")])
def test_normalised_focal_loss_equals_the_released_one(golden: Path, alpha: float, name: str) -> None:
    data = load_golden(golden)
    cases = sorted(key.removesuffix("_pred") for key in data if key.endswith("_pred"))
    assert cases
    for case in cases:
        logits = torch.from_numpy(data[f"{case}_pred"]).requires_grad_()
        loss = normalised_focal_loss(logits, torch.from_numpy(data[f"{case}_label"]), alpha)
        np.testing.assert_allclose(loss.detach(), data[f"{case}_{name}_per_sample"], rtol=1e-5, atol=1e-7)
        loss.mean().backward()
        assert logits.grad is not None
        np.testing.assert_allclose(logits.grad, data[f"{case}_{name}_grad_of_mean"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, generator=generator)
    target = torch.randint(0, 2, (2, 1, 8, 8), generator=generator).float()
    target[:, :, :3] = -1
    other = logits.clone()
    other[:, :, :3] = 7.0
    torch.testing.assert_close(LOSSES[name](logits, target), LOSSES[name](other, target))


@pytest.mark.parametrize("name", LOSSES)
def test_better_answers_cost_less(name: str) -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    right = 8 * (2 * target - 1)
    assert LOSSES[name](right, target) < LOSSES[name](0 * right, target) < LOSSES[name](-right, target)


def test_bce_dice_of_a_perfect_answer_is_zero() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    assert bce_dice_loss(50 * (2 * target - 1), target).item() == pytest.approx(0, abs=1e-5)
