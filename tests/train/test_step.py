"""Protects a run from steps that would ruin its weights: losses and gradients that are no numbers end it, with the
photos that are to blame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from skipclick.model import SkipClick
from tests.support.photo_folder import dataset
from tests.support.small_models import SMALL_CONV
from tests.support.small_training import CONFIG
from train.checkpoints import TrainingState
from train.dataset import Batch, collate
from train.distributed import Group
from train.objective import Graded, Objective
from train.step import Part, new_state, read_batch, train_step


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
        train_step(state, objective, parts, CONFIG, Group(), tmp_path)
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
        train_step(state, objective, parts, CONFIG, Group(), tmp_path)
        assert state.step == step
    assert torch.equal(weights(state), before)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 2"):
        train_step(state, objective, parts, CONFIG, Group(), tmp_path)
    assert torch.equal(weights(state), before)


def test_a_backbone_learns_at_a_rate_of_its_own_and_keeps_its_statistics(parts: list[Part], tmp_path: Path) -> None:
    network = replace(SMALL_CONV, train_backbone=True)
    config = replace(CONFIG, model=network, backbone_weights="bundled", schedule="constant", warmup_steps=0)
    config = replace(config, learning_rate=1e-3, backbone_learning_rate=1e-5, batch_size=3)
    torch.manual_seed(0)
    state = new_state(SkipClick(network), config, torch.device("cpu"))
    before = {key: tensor.clone() for key, tensor in state.model.state_dict().items()}
    train_step(state, Objective(state.model, config), parts, config, Group(torch.device("cpu")), tmp_path)
    moved = {
        key: float((tensor.float() - before[key].float()).abs().max())
        for key, tensor in state.model.state_dict().items()
    }
    backbone = {key: most for key, most in moved.items() if key.startswith("backbone.")}
    # Adam's first step moves each weight by its rate at most, whatever the gradient is.
    assert 0 < max(most for key, most in backbone.items() if "running" not in key) < 1.1e-5
    assert max(moved["mixer.pos_embed"], moved["fuse.weight"]) > 5e-4
    assert not any(most for key, most in backbone.items() if "running" in key or "num_batches" in key)
    assert any(most for key, most in moved.items() if "running" in key)  # the head's, which are its own


def test_a_rate_for_a_frozen_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="the backbone is frozen"):
        replace(CONFIG, model=replace(SMALL_CONV, train_backbone=False), backbone_learning_rate=1e-5)
