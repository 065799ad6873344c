"""Protects the latency report: the baselines compute the same function, and every stage of a request is in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.serving import latency
from bench.serving.latency import STAGES, flops, main, time_of
from bench.serving.latency_baselines import authors_design, evaluated, plain, random_sam, served
from bench.serving.response_time import ResponseTime, response_table
from skipclick import Click, Predictor
from skipclick.evaluation.timing import MedianP95
from skipclick.model import SkipClick
from tests.support.small_models import SMALL
from tests.support.tuned_models import base_model

CLICKS = (Click(60, 40), Click(20, 70, positive=False))


def test_all_baselines_compute_the_same_mask() -> None:
    """A comparison of speed is fair only if nobody leaves anything out. Random weights, shifted to half a mask."""
    torch.manual_seed(0)
    model = SkipClick(SMALL).eval()
    resolution = (4 * SMALL.size_multiple, 4 * SMALL.size_multiple)
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    probability = Predictor(model, resolution).click(Predictor(model, resolution).encode(photo), CLICKS)
    odds = float(np.median(probability))
    with torch.no_grad():
        bias = model.decoder.classify.bias
        assert bias is not None
        bias -= np.log(odds / (1 - odds))
    predictor = Predictor(model, resolution, keep_taps=True)
    features = predictor.encode(photo)
    ours = plain(predictor, features, CLICKS)()
    theirs = authors_design(model, features.taps, CLICKS, photo.shape[:2], resolution)()
    assert 0.2 < ours.mean() < 0.8
    assert (ours != theirs).mean() < 1e-3
    answer = served(predictor, features, CLICKS)()
    assert abs(answer.sum() - ours.sum()) < 0.05 * ours.size


@pytest.mark.slow
@pytest.mark.parametrize("family", latency.SAM_FAMILY)
def test_sams_family_is_measured_at_its_own_resolution(family: str) -> None:
    pytest.importorskip("transformers")
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    model = random_sam(family, "cpu")
    assert model.side == (1008 if family == "sam3" else 1024)
    assert evaluated(model, photo, CLICKS)().shape == (90, 120)


class Counting:
    """A method that counts what it is asked."""

    version = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        self.asked.append("encode")
        return image.shape[0], image.shape[1]

    def click(self, features: tuple[int, int], clicks: Sequence[Click], previous: Any) -> NDArray[np.float32]:
        self.asked.append(f"click {len(clicks)}")
        assert (previous is None) == (len(clicks) == 1)
        return np.ones(features, np.float32)


def test_what_is_timed_is_the_last_click_alone() -> None:
    """A photo is encoded once; each click follows the one before it, whose time does not count."""
    model = Counting()
    once = evaluated(model, np.zeros((9, 12, 3), np.uint8), CLICKS)
    model.asked.clear()
    assert once().all()
    assert model.asked == ["click 1", "click 2"]
    once.before()
    model.asked.clear()
    once.click()
    assert model.asked == ["click 2"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network in place of the bundled one, and no measurement of the machine, which takes seconds."""
    monkeypatch.setattr(latency, "build", lambda setting: base_model())
    monkeypatch.setattr(latency, "matmul_rate", lambda device, dtype: 100.0)


@pytest.mark.usefixtures("quick")
def test_the_response_times_stand_in_the_papers_rows(tmp_path: Path) -> None:
    """The published figure before ours, the bundled model behind all rows, and what is missing by name."""
    output = tmp_path / "response"
    options = ["--table", "2", "--models", "skipclick-lite", "--resolutions", "64", "--devices", "cpu"]
    more = ["--dtypes", "float32", "--rounds", "2", "--size", "320x240", "--no-baselines", "--systems", "grabcut"]
    assert main([*options, *more, "--output", str(output)]) == 0
    found = json.loads(output.with_suffix(".json").read_text())
    assert [(one["system"], one["method"], one["side"]) for one in found["response"]] == [
        ("`grabcut`", None, 0),
        ("skipclick-lite, served", None, 64),
        ("skipclick-lite, served by OpenVINO", None, 64),
    ]
    assert found["stages"] == found["comparisons"] == []
    text = output.with_suffix(".md").read_text()
    assert "| SkipClick, published | | V100 | 6.61 | | |" in text
    assert "Not measured: SAM, HQ-SAM, SAM + Schön et al., HQ-SAM + Schön et al., SkipClick\n" in text


def test_systems_of_the_paper_stand_behind_their_published_figures() -> None:
    def timed(method: str | None, system: str, median: float) -> ResponseTime:
        return ResponseTime(method, system, 896, "cpu", "float32", MedianP95(median, 2 * median), median - 1)

    lines = response_table([timed("SkipClick", "ours", 9), timed("SAM", "theirs", 7), timed(None, "other", 1)])
    table = [line for line in lines.splitlines() if line.startswith("|")]
    assert table[2:4] == [
        "| SAM, published | | V100 | 15.01 | | |",
        "| theirs | 896 | cpu, float32 | 7.00 | 14.00 | 6.00 |",
    ]
    assert table[-3] == "| SkipClick, published | | V100 | 6.61 | | |"
    assert table[-2] == "| ours | 896 | cpu, float32 | 9.00 | 18.00 | 8.00 |"
    assert table[-1].startswith("| other |")
    assert "- Order on this cpu: theirs at 896 px in float32 < ours at 896 px in float32." in lines
    assert "- Not measured: HQ-SAM, SAM + Schön et al., HQ-SAM + Schön et al.\n" in lines + "\n"


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_time_is_that_of_its_work() -> None:
    """A launch alone takes microseconds; its events wait for the work."""
    square = torch.randn(4096, 4096, device="cuda")
    once = time_of(lambda: square @ square, "cuda")
    assert time_of(lambda: [square @ square for _ in range(50)], "cuda") > 10 * once


def test_flops_of_a_click_grow_with_the_photo_and_leave_out_the_backbone() -> None:
    model = SkipClick(SMALL).eval()
    small, large = (flops(Predictor(model, (side, side))) for side in (56, 112))
    assert 0 < small[1] < large[1]
    fused = 2 * 16 * 4 * SMALL.mixer_width * SMALL.mixer_width  # tokens x inputs x outputs at 56 pixels
    assert small[0] > fused


@pytest.mark.usefixtures("quick")
def test_a_run_writes_every_stage_and_every_baseline(tmp_path: Path) -> None:
    output = tmp_path / "new" / "latency"
    options = ["--models", "skipclick-lite", "--resolutions", "64", "--devices", "cpu", "--dtypes", "float32"]
    more = ["--rounds", "2", "--size", "320x240", "--no-baselines", "--output", str(output)]
    assert main(options + more) == 0
    found = json.loads(output.with_suffix(".json").read_text())
    warm, cold = found["stages"]
    assert (warm["state"], cold["state"]) == ("warm", "cold")
    assert set(cold["stages"]) == set(STAGES)
    assert set(STAGES) - set(warm["stages"]) == {"fetch", "decode", "encode"}
    for row in (warm, cold):
        assert row["total"]["median"] >= max(spread["median"] for spread in row["stages"].values())
        assert all(spread["p95"] >= spread["median"] > 0 for spread in row["stages"].values())
    names = [each["name"] for each in found["comparisons"]]
    assert names == ["served", "served by OpenVINO", "plain eager forward"]
    text = output.with_suffix(".md").read_text()
    assert all(stage in text for stage in STAGES)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--models", "skipclick-lite", "--resolutions", "100", "--rounds", "1"], "multiples of"),
        (["--systems", "grabcut"], "give --table 2"),
        (["--table", "2", "--systems", "graphcut"], "unknown model 'graphcut'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "matmul_rate", lambda device, dtype: 100.0)
    assert main([*options, "--devices", "cpu", "--output", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert sentence in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())
