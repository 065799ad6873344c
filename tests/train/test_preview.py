"""Protects `python -m train inspect`: samples drawn as they are, and where the time of making them goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipclick.drawing import MASK_COLOUR, NEGATIVE_COLOUR, POSITIVE_COLOUR
from skipclick.evaluation.datasets.coco import Reason
from tests.support.photo_folder import dataset, write_coco
from train.__main__ import main
from train.preview import CAPTION_HEIGHT, GAP, TILE, contact_sheet, describe_speed, draw_tile
from train.sampler import NUM_SLOTS, ObjectSample, Points


def test_a_tile_shows_outline_clicks_and_what_is_ignored() -> None:
    target = np.zeros((64, 64), np.int8)
    target[16:48, 16:48], target[60:] = 1, -1
    slots = np.full((2, NUM_SLOTS, 2), -1, np.float32)
    slots[0, 0], slots[1, 3] = (32, 32), (8, 56)  # (row, column)
    sample = ObjectSample(target, (target == 1,), target == 0)
    tile = draw_tile("a photo", np.zeros((64, 64, 3), np.uint8), sample, Points(slots[0], slots[1]))
    assert tile.shape == (TILE + CAPTION_HEIGHT, TILE, 3)
    scale = TILE // 64

    def at(row: int, column: int) -> tuple[int, ...]:
        return tuple(tile[CAPTION_HEIGHT + scale * row, scale * column].tolist())

    assert at(32, 32) == POSITIVE_COLOUR
    assert at(8, 56) == NEGATIVE_COLOUR
    assert at(16, 32) == MASK_COLOUR, "the outline"
    assert at(24, 24) == (0, 0, 0), "the photo shows inside of it"
    assert at(62, 10) == (128, 128, 128), "ignored"
    assert (tile[:CAPTION_HEIGHT] < 100).any(), "a caption"


def test_tiles_stand_in_rows_of_six() -> None:
    sheet = contact_sheet([np.full((10, 20, 3), 9 * i, np.uint8) for i in range(8)])
    assert sheet.shape == (2 * (10 + GAP) + GAP, 6 * (20 + GAP) + GAP, 3)
    assert sheet[GAP + 10 + GAP, GAP + 20 + GAP, 0] == 9 * 7


def test_the_command_writes_a_picture_and_says_where_the_time_goes(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    data = ["--data", f"2*{photo_folder}", "--recipe", "tiny", "--count", "2"]
    assert main(["inspect", *data, "--output", str(out), "--speed"]) == 0
    with Image.open(out) as picture:
        assert picture.size[0] == 4 * (TILE + GAP) + GAP, "two photos with two objects each"
    printed = capsys.readouterr().out
    assert "100.0% of the samples" in printed
    assert "samples per second and core" in printed
    assert main(["inspect", *data]) == 2
    assert "inspect needs --output" in capsys.readouterr().err


def test_the_command_counts_what_it_leaves_out(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path / "coco", photo_folder)
    (tmp_path / "coco" / "images" / "photo39.jpg").unlink()
    data = ["--data", str(tmp_path / "coco"), "--recipe", "tiny", "--count", "2"]
    assert main(["inspect", *data, "--output", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().err
    assert f"train: left out: 1 × {Reason.NOT_FOUND}, for example photo39.jpg" in said
    assert f"train: left out: 2 × {Reason.NO_MASK}, for example photo" in said


def test_the_shares_of_the_time_sum_to_all_of_it(photo_folder: Path) -> None:
    lines = describe_speed(dataset(photo_folder), 30).splitlines()[1:]
    shares = [int(line.split("%")[0].split()[-1]) for line in lines]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=4)
    assert all(share > 0 for share in shares[:4]), "a renamed function would be missed"
