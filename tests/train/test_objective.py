"""Protects one step: simulated clicks, who gets gradients, and that nothing depends on how a batch is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skipclick.model import SkipClick
from tests.support.photo_folder import dataset
from tests.support.small_models import SMALL_CONV
from tests.support.small_training import CONFIG
from tests.support.training_process import SMALL_VIT
from train.config import TrainConfig
from train.dataset import Batch, collate
from train.objective import Objective, add_next_clicks, graded, object_generators


def two_photos(folder: Path) -> Batch:
    samples = dataset(folder)
    return collate([samples[0], samples[1]])


def generators(num: int = 4) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(num)]


def test_simulated_clicks_overwrite_the_slots_from_the_end(photo_folder: Path) -> None:
    batch = two_photos(photo_folder)
    before = [batch.positives.clone(), batch.negatives.clone()]
    nothing_found = torch.zeros(batch.target.shape)
    add_next_clicks(batch, nothing_found, slot=23, rngs=generators())
    for i, target in enumerate(batch.target):
        row, column = batch.positives[i, 23].long().tolist()
        assert target[row, column] == 1
    assert batch.positives[:, :23].equal(before[0][:, :23])
    assert batch.negatives.equal(before[1])


@pytest.mark.parametrize("num_next_clicks", [0, 2])
def test_gradients_reach_every_trained_weight(photo_folder: Path, num_next_clicks: int) -> None:
    """Weights cast to bfloat16 without gradient for the simulated clicks must not be reused by the graded pass."""
    batch = two_photos(photo_folder)
    clicks = batch.positives.clone(), batch.negatives.clone()
    torch.manual_seed(0)
    model = SkipClick(SMALL_CONV)
    result = graded(model, batch, replace(CONFIG, precision="bfloat16"), num_next_clicks, generators())
    result.loss.backward()
    assert result.probability.shape == batch.target.shape
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert (batch.positives.equal(clicks[0]), batch.negatives.equal(clicks[1])) == (True, True)
    used = result.batch
    unchanged = used.positives.equal(clicks[0]) and used.negatives.equal(clicks[1])
    assert unchanged == (num_next_clicks == 0)


def test_a_frozen_backbone_gets_no_gradient_and_is_asked_once(photo_folder: Path) -> None:
    model = SkipClick(replace(SMALL_CONV, train_backbone=False))
    calls = []
    model.backbone.register_forward_hook(lambda module, args, taps: calls.append(taps[0].requires_grad))
    graded(model, two_photos(photo_folder), CONFIG, 3, generators()).loss.backward()
    assert calls == [False]
    assert model.training
    assert not model.backbone.training
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize("previous_mask", ["soft", "binary"])
def test_what_is_fed_back_is_soft_or_a_mask(photo_folder: Path, previous_mask: str) -> None:
    model = SkipClick(SMALL_CONV)
    seen: list[torch.Tensor] = []
    model.prompts.register_forward_hook(lambda module, args, output: seen.append(args[0][:, 0]))
    config: TrainConfig = replace(CONFIG, previous_mask=previous_mask)  # type: ignore[arg-type]
    graded(model, two_photos(photo_folder), config, 1, generators())
    first, second = seen
    assert not first.any()
    assert set(second.unique().tolist()) <= {0.0, 1.0} if previous_mask == "binary" else len(second.unique()) > 2


def test_an_object_meets_the_same_clicks_and_dropout_in_any_company(photo_folder: Path) -> None:
    samples = dataset(photo_folder)
    torch.manual_seed(0)
    objective = Objective(SkipClick(SMALL_VIT.model), SMALL_VIT)
    cut = [replace(s, image=s.image[:, :56, :56], target=s.target[:, :56, :56]) for s in (samples[4], samples[5])]
    together = objective(collate(cut), 2, object_generators(0, [4, 5], 2))
    alone = objective(collate(cut[1:]), 2, object_generators(0, [5], 2))
    torch.testing.assert_close(together.probability[2:], alone.probability, atol=1e-5, rtol=1e-4)
    assert together.batch.positives[2:].equal(alone.batch.positives)
    other = objective(collate(cut[1:]), 2, object_generators(1, [5], 2))
    assert not torch.allclose(other.probability, alone.probability, atol=1e-4)


def test_dropout_keeps_channels_as_often_and_as_loud_as_torchs(photo_folder: Path) -> None:
    objective = Objective(SkipClick(SMALL_VIT.model), SMALL_VIT)
    dropout = objective.model.decoder.dropout
    dropout.draw(5000, generators(2), torch.device("cpu"))
    kept = dropout(torch.ones(2, 5000, 3, 3))
    assert kept.mean() == pytest.approx(1.0, abs=0.02)
    assert sorted(kept.unique().tolist()) == [0.0, pytest.approx(1 / 0.9)]
    assert (kept == kept[:, :, :1, :1]).all()
    assert dropout.eval()(torch.ones(2, 5000, 1, 1)).eq(1).all()
