"""Protects the codec's measurement: real streams that agree with the SDK's, and honest ratios."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.serving import rle
from bench.serving.rle import Timing, main, measure, scaled, table
from tests.support.drawn_pictures import blank, save


def test_a_measurement_compares_all_ways_on_the_same_mask() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 5:30] = True
    timing = measure("a", "small", mask, rounds=2)
    assert timing.runs == 2 * 10
    assert set(timing.milliseconds) == {"encode, SDK", "encode, array", "encode, box", "decode, SDK", "decode"}
    assert all(milliseconds > 0 for milliseconds in timing.milliseconds.values())


def test_the_table_gives_the_median_and_the_least_ratio() -> None:
    ways = {"encode, array": 1.0, "encode, box": 1.0, "decode, SDK": 5.0, "decode": 2.0}
    timings = [Timing(str(sdk), "1080p", {"encode, SDK": sdk, **ways}, 1) for sdk in (30.0, 50.0, 90.0)]
    assert "| 1080p | 3 | 50.00 | 1.00 | 1.00 | 50 (30) | 5.00 | 2.00 |" in table(timings)


def test_masks_are_scaled_with_smooth_edges() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:8, 2:8] = True
    large = scaled(mask, (100, 200))
    assert large.shape == (100, 200)
    assert large.mean() == pytest.approx(mask.mean(), abs=0.03)


def test_a_run_over_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rle, "SIZES", {"1080p": (54, 96)})
    mask = blank()
    mask[5:20, 5:20] = 255
    for name in ("a", "b"):
        save(tmp_path / "data" / "data_GT" / f"{name}.jpg")
        save(tmp_path / "data" / "boundary_GT" / f"{name}.bmp", mask)
    arguments = ["--dataset", f"GrabCut={tmp_path / 'data'}", "--rounds", "1", "--output", str(tmp_path / "rle")]
    assert main(arguments) == 0
    timings = json.loads((tmp_path / "rle.json").read_text())["timings"]
    assert [timing["size"] for timing in timings] == ["1080p", "1080p", "1080p, noise"]
    assert "1080p" in (tmp_path / "rle.md").read_text()


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "GrabCut"]) == 2
    assert main(["--dataset", f"GrabCut={tmp_path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
