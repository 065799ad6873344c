"""Protects the way back to the starting weights: a candidate goes as far as is safe, and no further."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipclick.model import SkipClick
from tests.support.small_models import SMALL_CONV
from tests.support.tuned_models import tuned_model
from train.finetune.interpolate import SHARES, interpolate, largest_safe_share

START = SkipClick(SMALL_CONV).eval()


def distance(one: SkipClick, other: SkipClick) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float((a - b).detach().double().square().sum()) for a, b in pairs) ** 0.5


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1))
def test_a_share_of_the_way_is_that_share_of_the_distance(share: float) -> None:
    start, learnt = START, tuned_model(1, START)
    way, model = distance(start, learnt), interpolate(start, learnt, share)
    assert distance(start, model) == pytest.approx(share * way, abs=1e-3 * way)
    assert distance(model, learnt) == pytest.approx((1 - share) * way, abs=1e-3 * way)


def test_the_ends_are_the_models_themselves() -> None:
    start, learnt = START, tuned_model(1, START)
    before = {name: weight.clone() for name, weight in start.named_parameters()}
    assert distance(interpolate(start, learnt, 1.0), learnt) == 0
    assert distance(interpolate(start, learnt, 0.0), start) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in start.named_parameters())


@pytest.mark.parametrize("allowed", [1.0, 0.8, 0.5, 0.1])
def test_a_candidate_goes_as_far_as_is_safe(allowed: float) -> None:
    start, learnt = START, tuned_model(1, START)
    way = distance(start, learnt)
    asked: list[float] = []

    def is_safe(model: SkipClick) -> bool:
        asked.append(distance(start, model) / way)
        return asked[-1] <= allowed + 1e-3

    share, model = largest_safe_share(start, learnt, is_safe)
    assert share == next((one for one in SHARES if one <= allowed), SHARES[-1])
    assert distance(start, model) == pytest.approx(share * way, rel=1e-3)
    assert asked == sorted(asked, reverse=True)
