"""Protects `--protocol coco5`: five clicks, whatever the IoU, on objects that are large enough; figures beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.five_clicks import FIVE_CLICKS, TOO_SMALL, five_click_rules
from bench.noc import main
from skipclick.evaluation.evaluate import Rules
from skipclick.evaluation.results import read_results
from tests.support.coco_files import run_lengths

MODEL = ["--model", "tests.support.bench_models:small_discs"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """One photo with an object of 32 x 32 pixels, a larger disc that the model draws at once, and one a pixel short."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    square, short = np.zeros((90, 120), np.bool_), np.zeros((90, 120), np.bool_)
    square[2:34, 2:34] = True
    short[50:82, 2:34] = True
    short[50, 2] = False
    image = {"id": 1, "file_name": "a.jpg", "height": 90, "width": 120}
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "segmentation": run_lengths(mask), "iscrowd": 0}
        for number, mask in enumerate((square, short), start=1)
    ]
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": []})
    )
    return tmp_path


def test_larger_objects_get_five_clicks_each(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = coco / "out" / "noc.json"
    assert main([*MODEL, "--dataset", f"coco={coco}", "--protocol", "coco5", "--output", str(output)]) == 0
    results = read_results(output)
    (measurement,) = results.runs[0].measurements
    (one,) = measurement.objects
    assert len(one.ious) == 5
    assert (results.rules["num_clicks"], results.rules["flip"], results.rules["clicks"]) == (5, False, "center")
    assert [(left.reason, left.count) for left in measurement.left_out] == [(TOO_SMALL, 1)]
    printed = capsys.readouterr().out
    assert "| SAM 3.1, published | 72.8 | 76.4 | 77.9 | 2.95 |" in printed
    ours = next(line for line in printed.splitlines() if line.startswith("| `tests.support") and line.count("|") == 6)
    figures = [float(cell) for cell in ours.strip("|").split("|")[1:]]
    expected = [round(100 * one.ious[click - 1], 1) for click in (1, 3, 5)]
    np.testing.assert_allclose(figures[:3], expected, atol=0.051)
    assert "- coco: 1 objects here, 915 published; these figures are not comparable." in printed


def test_an_object_that_is_good_is_clicked_on() -> None:
    """Else mIoU@5 would be that of fewer clicks."""
    assert five_click_rules(Rules(target_iou=0.95)).target_iou == 1.0


def test_the_published_figures_are_whole() -> None:
    assert list(FIVE_CLICKS.rows) == ["SAM 3.1", "SAM 3", "SAM 2.1-L"]
    assert {len(cells) for cells in FIVE_CLICKS.rows.values()} == {len(FIVE_CLICKS.columns)}


@pytest.mark.parametrize(
    "options", [["--table", "4"], ["--num-clicks", "3"], ["--clicks", "jitter"], ["--start", "box"]]
)
def test_what_it_fixes_cannot_be_asked_for(options: list[str], coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MODEL, "--dataset", f"coco={coco}", "--protocol", "coco5", *options]) == 2
    assert "--protocol coco5 is of five centre clicks" in capsys.readouterr().err
