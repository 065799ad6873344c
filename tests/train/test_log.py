"""Protects what a run says: JSON lines that a resumed run continues, TensorBoard, pictures, curves, validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from skipclick import Predictor
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.evaluate import evaluate
from skipclick.metrics import mean_noc
from skipclick.model import SkipClick
from tests.support.coco_files import SQUARE, write_set
from tests.support.photo_folder import dataset
from tests.support.small_runs import QUICK, run
from train.__main__ import main
from train.dataset import collate
from train.distributed import Group
from train.fit import fit
from train.log import read_log
from train.pictures import batch_picture
from train.sources import open_sources
from train.validate import RULES, held_out_set, named_set, validate


def test_a_run_leaves_curves_and_pictures(photo_folder: Path, tmp_path: Path) -> None:
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(
        replace(QUICK, steps=4),
        run(photo_folder, tmp_path, log_every=2, picture_every=2, validate_every=4, validate_limit=1),
    )
    events = board.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/images_per_second", "validation/NoC@90"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert len(events.Tags()["images"]) == 1
    assert cv2.imread(str(tmp_path / "samples.png")).shape[1] == 4 * (64 + 4)
    assert main(["plot", str(tmp_path)]) == 0
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 10


def test_what_a_killed_run_said_beyond_its_checkpoint_is_said_again(photo_folder: Path, tmp_path: Path) -> None:
    config = replace(QUICK, schedule="constant")
    fit(replace(config, steps=2), run(photo_folder, tmp_path))
    log = tmp_path / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 3, "loss": 7.0}\n{"step": 4, "lo')
    fit(replace(config, steps=4), run(photo_folder, tmp_path, resume=True))
    lines = read_log(log)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] != 7.0 for line in lines)


def test_the_picture_shows_photo_clicks_truth_and_prediction(photo_folder: Path) -> None:
    samples = dataset(photo_folder)
    batch = collate([samples[0], samples[1]])
    picture = batch_picture(batch, torch.ones(batch.target.shape), max_rows=3)
    assert picture.shape == (3 * 68, 4 * 68, 3)
    photo, clicks, truth, prediction = (picture[2:66, 68 * i + 2 : 68 * i + 66].astype(int) for i in range(4))
    assert np.array_equal(photo, batch.image[0].permute(1, 2, 0).numpy())
    is_object = (batch.target[0] == 1).numpy()
    inside = cv2.erode(is_object.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    outside = cv2.dilate(is_object.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert (truth != photo)[inside].any(axis=1).all()
    assert (truth == photo)[outside].all()
    assert (prediction != photo).any(axis=2).mean() > 0.9
    assert (clicks != photo).any()
    assert batch_picture(batch).shape == (4 * 68, 3 * 68, 3)


def test_validation_is_the_benchmarks(photo_folder: Path) -> None:
    torch.manual_seed(0)
    model = SkipClick(QUICK.model)
    sets = [named_set("folder", photo_folder, 2)]
    figures = validate(model, sets, Group(), set())
    samples = [photo.load() for photo in open_dataset("folder", photo_folder, 2).photos]
    ious = [one.ious for one in evaluate(Predictor(model), samples, RULES)]
    assert figures["folder/NoC@90"] == figures["NoC@90"] == mean_noc(ious, 0.9)
    assert figures["NoC@85"] == mean_noc(ious, 0.85)


def test_photos_held_out_are_validated_on_and_small_sources_hold_out_none(photo_folder: Path, tmp_path: Path) -> None:
    held_out = held_out_set([str(photo_folder)], None)
    assert held_out is not None
    names = [photo.name for source in open_sources([str(photo_folder)], "held_out").parts for photo in source.photos]
    loaded = [load() for load in held_out.loads]
    assert [sample.name for sample in loaded] == names
    expected = open_dataset("folder", photo_folder, keep=lambda name: name in names).photos
    for sample, other in zip(loaded, expected, strict=True):
        assert sample.targets.keys() == other.load().targets.keys()
        for object_id, target in other.load().targets.items():
            assert np.array_equal(sample.targets[object_id], target)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        [source] = [path for path in (photo_folder / kind).iterdir() if path.stem == "photo01"]
        (tmp_path / kind / source.name).write_bytes(source.read_bytes())
    assert held_out_set([str(tmp_path)], None) is None


def test_the_command_validates_held_out_photos_of_any_source(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.sources.photo.is_held_out", lambda name: True)  # the drawn set has one photo
    write_set(tmp_path, {1: [SQUARE]})
    given = [str(photo_folder), f"coco:{tmp_path}"]
    assert main(["validate", "bundled", "--data", *given, "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}/NoC@90: " in shown for name in given), shown
