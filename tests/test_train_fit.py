"""Protects the training loop: it learns, resumes exactly, shares batches over processes, exports what is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_config import SMALL_CONV
from test_train_data import dataset, photo_folder

from skipclick import load_checkpoint
from skipclick.model import SkipClick
from train.__main__ import main
from train.augment import AugmentConfig
from train.config import RECIPES, TrainConfig
from train.dataset import Batch, collate, list_photos
from train.distributed import Group
from train.fit import _batches, fit, read_state, trained_model
from train.losses import LOSSES
from train.sampler import SamplerConfig
from train.step import add_next_clicks, training_loss

__all__ = ["photo_folder"]

QUICK = TrainConfig(
    model=SMALL_CONV,
    pretrained=False,
    augment=AugmentConfig(crop=64, view="window"),
    sampler=SamplerConfig(min_object_area=20, single_centre_prob=0.5),
    steps=6,
    batch_size=4,
    loss="bce_dice",
    learning_rate=3e-3,
    schedule="cosine",
    ema_decay=0.5,
)
CPU = torch.device("cpu")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_state(path)["model"]  # type: ignore[no-any-return]


def test_it_learns_to_find_discs(photo_folder: Path, tmp_path: Path) -> None:
    fit(replace(QUICK, steps=60), photo_folder, tmp_path, device=CPU, num_workers=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["iou"] > 0.6


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(photo_folder: Path, tmp_path: Path) -> None:
    whole = fit(QUICK, photo_folder, tmp_path / "whole", device=CPU, num_workers=0)
    constant = replace(QUICK, schedule="constant")
    fit(replace(constant, steps=3), photo_folder, tmp_path / "parts", device=CPU, num_workers=0)
    parts = fit(constant, photo_folder, tmp_path / "parts", device=CPU, num_workers=0, resume=True)
    unbroken = fit(constant, photo_folder, tmp_path / "unbroken", device=CPU, num_workers=1)
    for key, tensor in weights(unbroken).items():
        assert torch.equal(tensor, weights(parts)[key]), key
    assert any(not torch.equal(t, weights(whole)[k]) for k, t in weights(parts).items())  # the schedule matters


def test_starting_from_a_checkpoint_takes_its_weights_only(photo_folder: Path, tmp_path: Path) -> None:
    first = fit(QUICK, photo_folder, tmp_path / "a", device=CPU, num_workers=0)
    frozen = replace(QUICK, steps=1, learning_rate=0.0)
    second = fit(frozen, photo_folder, tmp_path / "b", device=CPU, num_workers=0, init=first)
    for name, parameter in trained_model(read_state(first) | {"average": None}).named_parameters():
        assert torch.equal(parameter, weights(second)[name]), name
    assert read_state(second)["step"] == 1


AVERAGING = """
import sys, torch
from torch import nn
from train.distributed import average_gradients, joined_group

layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 1)])
with joined_group(torch.device("cpu")) as group:
    for parameter in layers[0].parameters():
        parameter.grad = torch.full_like(parameter, group.rank + 1.0)
    average_gradients(layers.parameters(), group)
assert group.size == 2
assert all((p.grad == 1.5).all() for p in layers[0].parameters()), [p.grad for p in layers[0].parameters()]
assert all(p.grad is None for p in layers[1].parameters())
open(f"{sys.argv[1]}/rank{group.rank}", "w").close()
"""


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "averaging.py"
    script.write_text(AVERAGING)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, str(script), str(tmp_path)], check=True, env=environment, timeout=120)
    assert (tmp_path / "rank0").exists()
    assert (tmp_path / "rank1").exists()


def test_processes_share_a_batch_without_overlap(photo_folder: Path) -> None:
    shares = [_batches(QUICK, photo_folder, 2, 0, Group(rank, 2)) for rank in (0, 1)]
    whole = _batches(QUICK, photo_folder, 2, 0, Group())
    for together, first, second in zip(whole, *shares, strict=True):
        assert torch.cat([first.image, second.image]).equal(together.image)
    with pytest.raises(ValueError, match="cannot be shared"):
        _batches(QUICK, photo_folder, 0, 0, Group(0, 3))


def test_simulated_clicks_overwrite_the_slots_from_the_end(photo_folder: Path) -> None:
    samples = dataset(photo_folder)
    batch = collate([samples[0], samples[1]])
    before = [batch.positives.clone(), batch.negatives.clone()]
    nothing_found = torch.zeros(batch.target.shape)
    add_next_clicks(batch, nothing_found, slot=23, rng=np.random.default_rng(0))
    for i, target in enumerate(batch.target):
        row, column = batch.positives[i, 23].long().tolist()
        assert target[row, column] == 1
    assert batch.positives[:, :23].equal(before[0][:, :23])
    assert batch.negatives.equal(before[1])


@pytest.mark.parametrize("num_next_clicks", [0, 2])
def test_gradients_reach_every_trained_weight(photo_folder: Path, num_next_clicks: int) -> None:
    """Weights cast to bfloat16 without gradient for the simulated clicks must not be reused by the graded pass."""
    samples = dataset(photo_folder)
    batch = collate([samples[0], samples[1]])
    torch.manual_seed(0)
    model = SkipClick(SMALL_CONV)
    loss, probability = training_loss(
        model, batch, LOSSES["nfl"], num_next_clicks, np.random.default_rng(0), bfloat16=True
    )
    loss.backward()
    assert probability.shape == batch.target.shape
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_frozen_backbone_gets_no_gradient_and_stays_in_evaluation_mode(photo_folder: Path) -> None:
    samples = dataset(photo_folder)
    batch: Batch = collate([samples[0]])
    model = SkipClick(replace(SMALL_CONV, train_backbone=False))
    loss, _ = training_loss(model, batch, LOSSES["nfl"], 1, np.random.default_rng(0))
    loss.backward()
    assert model.training
    assert not model.backbone.training
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_schedules() -> None:
    paper = RECIPES["paper"]
    assert paper.learning_rate_at(0) == 5e-5
    assert paper.learning_rate_at(50 * 937 - 1) == 5e-5
    assert paper.learning_rate_at(50 * 937) == pytest.approx(5e-6)
    cosine = replace(QUICK, steps=100, warmup_steps=10)
    rates = [cosine.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(3e-4)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[-1] < 0.02 * cosine.learning_rate


def test_the_exported_checkpoint_is_the_averaged_model(photo_folder: Path, tmp_path: Path) -> None:
    last = fit(QUICK, photo_folder, tmp_path, device=CPU, num_workers=0)
    out = tmp_path / "out.safetensors"
    assert main(["export", str(last), str(out), "--version", "discs"]) == 0
    served, averaged = load_checkpoint(out), trained_model(read_state(last))
    assert served.version == "discs"
    for key, tensor in averaged.state_dict().items():
        torch.testing.assert_close(served.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)  # float16 in the file


def test_validation_measures_the_photos_held_out(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = list_photos(photo_folder, "held_out")
    num_objects = sum(len(np.unique(photo.read()[1])) - 1 for photo in held_out)
    assert main(["validate", "bundled", "--data", str(photo_folder)]) == 0
    assert f"({num_objects} objects)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit", "--data", "/nowhere", "--output", "out", "--recipe", "tiny"], "no folder /nowhere/images"),
        (["export", "nothing.pt", "out.safetensors"], "does not exist"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
