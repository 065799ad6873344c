"""Protects the measurement of proposals and of doubt: hits are objects, mirrored photos are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.learning import unannotated
from bench.learning.unannotated import found_on, main, masks_of, mirrored_disagreement
from skipclick import Predictor
from skipclick.evaluation.datasets import Sample
from tests.support.small_models import bundled

CHECK = Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set"


def rectangle(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros((120, 160), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(bundled(), (96, 128), keep_taps=True)


def test_a_mask_is_a_hit_from_three_quarters_on() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    left, right = rectangle(0, 0, 40, 40), rectangle(100, 0, 140, 40)
    photo = Sample("photo", image, {4: left.astype(np.int8), 9: right.astype(np.int8)})
    masks = [rectangle(100, 0, 140, 31), rectangle(100, 0, 140, 29), left, rectangle(60, 60, 90, 90)]
    assert [(one.best, one.is_hit) for one in found_on(0, photo, masks)] == [
        (1, True),
        (1, False),
        (0, True),
        (0, False),
    ]


def test_a_photo_that_is_its_own_mirror_image_leaves_little_doubt(predictor: Predictor) -> None:
    y, x = np.ogrid[:120, :160]
    image = np.full((120, 160, 3), 128, np.uint8)
    image[(x - 40) ** 2 + (y - 60) ** 2 <= 30**2] = (220, 30, 30)
    image[:, 80:] = image[:, 79::-1]
    masks = masks_of(predictor, predictor.encode(image), 8)
    assert len(masks) == 64
    # A click on a column and its mirror image lie half a pixel apart.
    assert mirrored_disagreement(predictor, image, masks) < 0.2


def test_both_tables_are_printed(
    checkpoint_at_160_pixels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unannotated, "SKIPPED", 0)
    monkeypatch.setattr(unannotated, "RULE", replace(unannotated.RULE, side=3))
    arguments = ["--domain", f"pictures=folder:{CHECK}", "--photos", "3"]
    assert main([*arguments, "--model", checkpoint_at_160_pixels]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| pictures (") for line in shown) == 4
    (order,) = (line for line in shown if line.startswith("| pictures |"))
    assert "| 3 |" in order


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--domain", f"pictures=folder:{CHECK}", "--photos", "1000"], "photos, 2012 are needed"),
        (["--domain", "pictures"], "write NAME=LAYOUT:FOLDER"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("unannotated: ")
    assert sentence in line
