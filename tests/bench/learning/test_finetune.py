"""Protects the proof of fine-tuning: masks go through the real store, an interrupted run goes on, tables say what was
measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.learning.finetune import (
    FORMAT,
    Domain,
    FinetuneResult,
    accepted_masks,
    annotatable,
    annotated,
    main,
    plot,
    resumed,
    run_one,
    tables,
)
from skipclick import Predictor, load_checkpoint
from skipclick.metrics import mask_iou
from tests.support.commands import exit_status
from train.finetune import FinetuneConfig

CHECK = Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set"
PICTURES = Domain("pictures", "folder", str(CHECK), None)


def outcome(count: int, seed: int, *nocs: tuple[int, int], worth: bool = True) -> FinetuneResult:
    retention = [{"old": 4.0, "new": 4.25}]
    report = {"retention": retention, "worth_promoting": worth} if count else None
    images = tuple(f"photo {place}" for place in range(len(nocs)))
    return FinetuneResult("horses", count, seed, images, nocs, 100.0 + seed, 50.0, 1 << 30, report)


OUTCOMES = [outcome(0, 0, (8, 12), (4, 6)), outcome(20, 0, (4, 6), (2, 4)), outcome(20, 1, (6, 8), (2, 4), worth=False)]


def test_a_domain_is_read_from_its_text(tmp_path: Path) -> None:
    assert Domain.parse("horses=folder:a/b@object") == Domain("horses", "folder", "a/b", "object")
    for wrong in ("horses", "horses=folder", "=folder:a", "horses=:a", "horses=folder:"):
        with pytest.raises(ValueError, match="write NAME=LAYOUT:FOLDER"):
            Domain.parse(wrong)
    (tmp_path / "index.csv").write_text("name,kind\nflower,plant\ncoffee,cup\n")
    for part in ("images", "masks"):
        (tmp_path / part).symlink_to(CHECK / part)
    plants = Domain("plants", "folder", str(tmp_path), "plant").photos()
    assert [photo.name for photo in plants] == ["flower"]


def test_photos_come_in_an_order_of_their_own() -> None:
    names = [photo.name for photo in PICTURES.photos()]
    assert names == [photo.name for photo in PICTURES.photos()] != sorted(names)


def test_accepted_masks_come_out_of_the_store_unchanged(tmp_path: Path, checkpoint_at_160_pixels: str) -> None:
    """Bodies, RLE, store and back: what the annotator accepted is what is learnt from."""
    photos = [photo for photo in PICTURES.photos() if photo.name in ("coins", "flower")]
    examples = annotated(photos, 3, checkpoint_at_160_pixels, tmp_path)
    assert len(examples) == 3
    predictor = Predictor(load_checkpoint(checkpoint_at_160_pixels))
    first = photos[0].load()
    for example in examples:
        assert example.image().shape[:2] == example.target().shape
    masks = accepted_masks(predictor, annotatable(first, 3))
    own = [example.target() == 1 for example in examples if np.array_equal(example.image(), first.image)]
    assert own
    assert all(any(np.array_equal(mask, each) for each in masks) for mask in own)
    assert all(max(mask_iou(mask, truth) for truth in first.targets.values()) >= 0.9 for mask in own)


def test_more_objects_than_there_are_is_an_error(tmp_path: Path, small_checkpoint: str) -> None:
    with pytest.raises(ValueError, match="50 objects were asked for, the photos to annotate hold"):
        annotated([photo for photo in PICTURES.photos() if photo.name == "flower"], 50, small_checkpoint, tmp_path)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path, subject = tmp_path / "runs" / "finetune.jsonl", {"model": "abc", "recipe": {"steps": 3}}

    def found(**others: Any) -> list[FinetuneResult]:
        return resumed(path, FORMAT, subject | others, FinetuneResult.from_dict)

    assert found() == []
    with path.open("a") as file:
        for one in OUTCOMES:
            file.write(json.dumps(asdict(one)) + "\n")
        file.write('{"domain": "hor')  # killed while it wrote
    assert found() == OUTCOMES
    assert found() == OUTCOMES  # the unfinished line is gone
    with pytest.raises(ValueError, match="started with different recipe"):
        found(recipe={"steps": 4})
    path.write_text("nothing of ours\n")
    with pytest.raises(ValueError, match="not a journal of this command"):
        found()


def test_the_table_holds_the_base_beside_means_over_seeds() -> None:
    base, tuned = tables(OUTCOMES).splitlines()[2:4]
    assert base == "| horses (2 objects) | base | | 6.00 | 9.00 | | | | |"
    # NoC@85: (4 + 2 + 6 + 2) / 4; the mean of both falls from 7.5 to 4.5
    assert tuned.startswith("| | 20 | 2 | 3.50 | 5.50 | -3.00 (-40%) | ")
    assert tuned.endswith(" | +0.25 | 1 of 2 |")
    assert "| 20 | 2 | 100 | 50 | 1.0 GB |" in tables(OUTCOMES)


def test_where_there_is_too_little_to_learn_from_the_base_stays(checkpoint_at_160_pixels: str) -> None:
    """It counts as a fine-tuning without a gain, not as an error that ends the whole measurement."""
    config = FinetuneConfig(min_objects=8)
    before, after = (run_one(PICTURES, count, 0, checkpoint_at_160_pixels, 1, config, threads=1) for count in (0, 2))
    assert (after.num_objects, after.report, after.nocs) == (2, None, before.nocs)
    line, *rest = tables([before, after]).splitlines()[3:]
    assert line.startswith("| | 2 | 1 | ")
    assert line.endswith("| +0.00 to +0.00 | +0.00 | 0 of 1 |")
    assert not any(one.startswith("| 2 |") for one in rest)  # nothing was spent


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    plot(OUTCOMES, tmp_path / "noc.png")
    assert (tmp_path / "noc.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out.jsonl")]
    for wrong in (["--domain", "horses"], ["--domain", "a=folder:b", "--objects", "0"]):
        assert exit_status(main, [*wrong, *output]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_whole_of_it_on_the_check_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--domain", f"pictures=folder:{CHECK}", "--objects", "8", "--seeds", "1", "--test-photos", "3"]
    arguments += ["--steps", "2", "--views", "1", "--threads", "1", "--output", str(tmp_path / "out.jsonl")]
    arguments += ["--plot", str(tmp_path / "noc.png")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "| | 8 | 1 |" in first
    assert main(arguments) == 0  # nothing is measured again
    assert capsys.readouterr().out == first
