"""Protects the experiment about zoom-in: objects under several rules, and the table that compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench.learning.zoom import NUM_CLICKS, Outcome, click_photo, main, read_outcomes
from skipclick import Predictor
from skipclick.evaluation.datasets import Sample
from tests.support.small_models import bundled


def write(path: Path, outcomes: Sequence[Outcome]) -> None:
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def outcome(photo: str, rule: str, reached: int, crops: int = 0) -> Outcome:
    """An object that jumps to 95 % with this click."""
    return Outcome(photo, 1, rule, 0.2, [0.5] * (reached - 1) + [0.95], crops, 1.0)


def test_objects_are_clicked_under_each_rule(tmp_path: Path) -> None:
    image = np.full((240, 320, 3), 90, np.uint8)
    small = np.zeros((240, 320), np.uint8)
    cv2.ellipse(small, (90, 80), (24, 12), 30, 0, 360, (1,), cv2.FILLED)
    image[small > 0] = (250, 220, 30)
    large = np.zeros((240, 320), np.int8)
    large[20:220] = 1
    sample = Sample("drawn", image, {1: large, 2: small.astype(np.int8)})
    rules = ["whole photo", "default", "never kept"]
    outcomes = list(click_photo(Predictor(bundled(), (320, 320)), sample, rules))
    assert [(one.object_id, one.rule) for one in outcomes] == [(2, rule) for rule in rules]  # the large one is none
    whole, default, _ = outcomes
    assert whole.crops == 0
    assert default.crops >= 1
    assert default.ious[0] == whole.ious[0]
    assert 1 < len(default.ious) <= NUM_CLICKS
    path = tmp_path / "zoom.jsonl"
    write(path, outcomes)
    assert read_outcomes(path) == outcomes


def test_the_table_compares_objects_that_all_rules_clicked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, more = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(path, [outcome(photo, rule, count) for photo in "ab" for rule, count in (("whole photo", 6), ("default", 4))])
    write(more, [outcome("a", "margin 9", 3, crops=2)])
    assert main(["table", str(path), str(more)]) == 0
    printed = capsys.readouterr().out
    assert "1 objects of 1 photos" in printed
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in map(split, printed.splitlines()[2:])}
    assert rows["default"][:4] == ["4.00", "4.00", "-2.00 (-2.00 to -2.00)", "+0.00 (+0.00 to +0.00)"]
    assert rows["margin 9"][3] == "-1.00 (-1.00 to -1.00)"
    assert rows["margin 9"][5] == "2.00"


def split(line: str) -> list[str]:
    return line.split("|")


def test_a_table_needs_what_the_rules_are_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [outcome("a", "default", 3)])
    assert main(["table", str(path)]) == 2
    assert "lack the rule whole photo" in capsys.readouterr().err
