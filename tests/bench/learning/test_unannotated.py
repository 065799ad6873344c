"""Protects the measurement of proposals: what is kept does not overlap, what is alike is found to be, hits are hits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.learning import unannotated
from bench.learning.unannotated import (
    Proposal,
    grid,
    main,
    masks_of,
    mirrored_disagreement,
    pooled,
    similarity,
    without_overlaps,
)
from skipclick import Predictor, load_checkpoint

CHECK = Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set"


def rectangle(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros((120, 160), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_checkpoint("bundled"), (96, 128), keep_taps=True)


def two_disks() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """A red and a blue disk on gray, and where they are."""
    y, x = np.ogrid[:120, :160]
    red, blue = ((x - left) ** 2 + (y - 60) ** 2 <= 30**2 for left in (40, 120))
    image = np.full((120, 160, 3), 128, np.uint8)
    image[red], image[blue] = (220, 30, 30), (30, 30, 220)
    return image, red, blue


def test_the_better_of_overlapping_proposals_is_kept_and_specks_are_not() -> None:
    good, worse = Proposal(rectangle(20, 20, 80, 80), 0.9), Proposal(rectangle(25, 20, 85, 80), 0.8)
    inside, beside = Proposal(rectangle(30, 30, 50, 50), 0.7), Proposal(rectangle(75, 20, 140, 80), 0.6)
    speck, everything = Proposal(rectangle(0, 0, 3, 3), 1.0), Proposal(rectangle(0, 0, 160, 120), 1.0)
    assert without_overlaps([beside, inside, worse, speck, good, everything]) == [good, beside]


def test_the_grid_covers_a_photo_once() -> None:
    clicks = grid((120, 160), 4)
    assert (clicks[0].x, clicks[0].y, clicks[-1].x, clicks[-1].y) == (20, 15, 140, 105)
    assert len(set(clicks)) == 16
    assert all(click.positive for click in clicks)


def test_a_disk_is_most_like_itself_elsewhere(predictor: Predictor) -> None:
    image, red, blue = two_disks()
    features = predictor.encode(image)
    vectors = [pooled(features, mask) for mask in (red, blue)]
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
    other = pooled(predictor.encode(np.ascontiguousarray(image[:, ::-1])), red[:, ::-1])
    assert similarity(other, vectors[0][None]) > similarity(other, vectors[1][None])


def test_a_photo_that_is_its_own_mirror_image_leaves_little_doubt(predictor: Predictor) -> None:
    image, *_ = two_disks()
    image[:, 80:] = image[:, 79::-1]
    masks = masks_of(predictor, predictor.encode(image), grid((120, 160)))
    assert len(masks) == unannotated.SIDE**2
    assert all(0 <= one.quality <= 1 for one in masks)
    # A click on a column and its mirror image lie half a pixel apart.
    assert mirrored_disagreement(predictor, image, masks) < 0.2


def test_both_tables_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("SKIPPED", 0), ("SIDE", 3)):
        monkeypatch.setattr(unannotated, name, value)
    assert main(["--domain", f"pictures=folder:{CHECK}", "--photos", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| pictures (") for line in shown) == 3
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
