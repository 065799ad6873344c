"""Protects the comparison of numeric types: what agrees is 1, what differs is seen, and the exit status says which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import agreement
from bench.agreement import ENOUGH, iou, main, overlaps, table
from skipclick import Predictor, load_checkpoint
from skipclick.evaluation.datasets import Sample
from tests.support.drawn_pictures import PHOTO, blank, save


def test_iou_of_known_masks() -> None:
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(one, other) == 1.0
    one[:, :2] = True
    assert iou(one, other) == 0.0
    other[:, :3] = True
    assert iou(one, other) == pytest.approx(2 / 3)


def test_a_predictor_agrees_with_itself_after_every_click() -> None:
    target = np.zeros(PHOTO.shape[:2], np.int8)
    target[5:20, 5:20] = 1
    predictor = Predictor(load_checkpoint("bundled"), (64, 64))
    sample = Sample("a", PHOTO, {1: target, 2: np.flipud(target).copy()})
    assert overlaps(predictor, predictor, sample, num_clicks=3) == [[1.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(("ious", "status"), [([[0.999, 0.9]], 1), ([[0.999, 0.996]], 0)])
def test_the_exit_status_tells_whether_masks_agree(
    ious: list[list[float]], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = blank()
    mask[5:20, 5:20] = 255
    save(tmp_path / "data" / "data_GT" / "a.jpg")
    save(tmp_path / "data" / "boundary_GT" / "a.bmp", mask)
    monkeypatch.setattr(agreement, "overlaps", lambda *_: ious)
    arguments = ["--dataset", f"GrabCut={tmp_path / 'data'}", "--output", str(tmp_path / "agreement")]
    assert main(arguments) == status
    assert json.loads((tmp_path / "agreement.json").read_text())["iou"] == {"GrabCut": ious}


def test_the_table_tells_how_many_masks_do_not_agree() -> None:
    """A median can be above the limit with nearly half of the masks under it."""
    row = table({"some": np.array([[0.999, 0.994], [0.995, 0.998]])}).splitlines()[-1]
    assert row.endswith("| 0.9940 | 25% |")
    assert float(row.split("|")[4]) > ENOUGH


def test_what_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", f"GrabCut={tmp_path}"]) == 2
    assert main(["--dataset", f"GrabCut={tmp_path}", "--model", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
