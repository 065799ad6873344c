"""Protects what a training run is said to cost: the arithmetic of the report, and that a real step is counted."""

from __future__ import annotations

import pytest
import torch

from bench.learning.training import StepCost, main, random_batch, report, step_cost
from skipclick.config import TINY
from skipclick.model import SkipClick
from train.config import TrainConfig
from train.step import Objective


def test_a_further_correction_costs_one_more_forward_pass_of_the_head() -> None:
    config = TrainConfig(model=TINY, backbone_weights=None)
    objective = Objective(SkipClick(TINY), config)
    batch = random_batch(2, 64, torch.device("cpu"))
    none, one, two = (step_cost(objective, batch, n, rounds=1).flops for n in range(3))
    assert 0 < one - none == two - one < none


def test_the_report_scales_by_the_share_that_was_reached() -> None:
    costs = [StepCost(0, 10**12, 1.0), StepCost(1, 3 * 10**12, 3.0)]  # of 2 photos: 1,000 GFLOP and 1 s per photo
    text = report(TrainConfig(steps=1000, batch_size=36), 2, costs, rate=2000.0, device="a device", peak=10.0)
    assert "On average 1,000 GFLOP and 1,000 ms per photo (1.00 photos/s) on a device" in text
    assert "The schedule, 36,000 photos: 10 hours here; 36 PFLOP" in text
    assert "At the same share of 10 TFLOP/s: 5 photos/s, 2.0 hours" in text


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--device", "abacus"]])
def test_options_that_cannot_be_end_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") >= 1
