"""Protects a run from steps that would ruin its weights: losses and gradients that are no numbers end it, with the
photos that are to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from skipclick.model import SkipClick
from tests.support.photo_folder import dataset
from tests.support.small_training import CONFIG
from train.checkpoints import TrainingState
from train.dataset import Batch, collate
from train.distributed import Group
from train.optimise import Part, new_state, optimise, read_batch
from train.step import Graded, Objective


class BrokenFor(Objective):
    """A loss that stays as it is, but whose gradient is no number where it is a certain batch's."""

    broken: Batch | None = None

    def forward(self, batch: Batch, *arguments: Any) -> Graded:
        graded = super().forward(batch, *arguments)
        if batch is not self.broken:
            return graded
        zero = sum(parameter.sum() * 0 for parameter in self.model.parameters())
        return graded._replace(loss=graded.loss + torch.as_tensor(zero).abs().sqrt())


@pytest.fixture
def parts(photo_folder: Path) -> list[Part]:
    samples = dataset(photo_folder)
    return [Part(range(i, i + 1), collate([samples[i]])) for i in range(3)]


@pytest.fixture
def state() -> TrainingState:
    torch.manual_seed(0)
    return new_state(SkipClick(CONFIG.model), CONFIG, torch.device("cpu"))


def weights(state: TrainingState) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()])


def test_a_gradient_that_is_no_number_leaves_its_photos_behind_and_the_weights_as_they_were(
    state: TrainingState, parts: list[Part], tmp_path: Path
) -> None:
    objective, before = BrokenFor(state.model, CONFIG), weights(state)
    objective.broken = parts[1].batch
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 0"):
        optimise(state, objective, parts, CONFIG, Group(), tmp_path)
    [path] = tmp_path.iterdir()
    assert torch.equal(read_batch(path).image, parts[1].batch.image)
    assert torch.equal(weights(state), before)
    assert state.step == 0


def test_a_scale_of_float16_that_is_too_large_is_no_failure(
    state: TrainingState, parts: list[Part], tmp_path: Path
) -> None:
    """The scaler skips such a step; at a scale of 1 there is nothing left that it could try."""
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    objective, before = BrokenFor(state.model, CONFIG), weights(state)
    objective.broken = parts[0].batch
    for step in (1, 2):
        optimise(state, objective, parts, CONFIG, Group(), tmp_path)
        assert state.step == step
    assert torch.equal(weights(state), before)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 2"):
        optimise(state, objective, parts, CONFIG, Group(), tmp_path)
    assert torch.equal(weights(state), before)
