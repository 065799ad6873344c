"""Protects the examples: the notebook's cells run in order, the script writes the masks that the API gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pytest

from examples.segment_folder import main
from skipclick import Click, Predictor, load_checkpoint

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests" / "e2e" / "photos" / "coffee.jpg"


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    mpl.use("Agg")
    notebook = json.loads((ROOT / "examples" / "click_correct_finetune.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "commit the notebook without its outputs"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    assert scope["mask"].shape == scope["sample"].image.shape[:2]
    assert scope["mask"].any()
    assert scope["candidate"].report.num_objects >= 8


def test_the_script_segments_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(PHOTO, photos / "coffee.jpg")
    clicks = tmp_path / "clicks.csv"
    clicks.write_text(
        "photo,object,x,y,positive\ncoffee.jpg,cup,290,150,1\ncoffee.jpg,cup,300,235,0\ncoffee.jpg,spoon,430,250,1\n"
    )
    assert main([str(photos), str(clicks), str(tmp_path / "masks")]) == 0
    assert "wrote 2 masks" in capsys.readouterr().out

    image = np.asarray(cv2.imread(str(PHOTO), cv2.IMREAD_COLOR_RGB), np.uint8)
    predictor = Predictor(load_checkpoint("bundled"))
    features = predictor.encode(image)
    first = predictor.click(features, [Click(290, 150)])
    second = predictor.click(features, [Click(290, 150), Click(300, 235, positive=False)], first)
    written = cv2.imread(str(tmp_path / "masks" / "coffee-cup.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, (second > 0.5) * np.uint8(255))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("photo,x,y\n", "has no column object, positive"),
        ("photo,object,x,y,positive\n", "holds no clicks"),
        ("photo,object,x,y,positive\ncoffee.jpg,cup,here,1,1\n", "line 2: x and y must be numbers"),
        ("photo,object,x,y,positive\nnowhere.jpg,cup,1,1,1\n", "is missing or is not a picture"),
        ("photo,object,x,y,positive\ncoffee.jpg,cup,9999,1,1\n", "coffee.jpg: click (9999.0, 1.0) lies outside"),
    ],
)
def test_what_cannot_be_segmented_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    shutil.copy(PHOTO, tmp_path / "coffee.jpg")
    (tmp_path / "clicks.csv").write_text(text)
    assert main([str(tmp_path), str(tmp_path / "clicks.csv"), str(tmp_path / "masks")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert complaint in line
