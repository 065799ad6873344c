"""Protects the latency report: the baselines compute the same function, and every stage of a request is in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.serving import latency
from bench.serving.latency import STAGES, flops, main
from bench.serving.latency_baselines import authors_design, plain, sam_decoder, served
from skipclick import Click, Predictor
from skipclick.model import SkipClick
from tests.support.small_models import SMALL

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
@pytest.mark.parametrize("family", ["sam", "sam-hq", "sam2"])
def test_sams_decoders_give_masks_of_the_photos_size(family: str) -> None:
    pytest.importorskip("transformers")
    assert sam_decoder(family, CLICKS, (90, 120), "cpu")().shape == (90, 120)


def test_flops_of_a_click_grow_with_the_photo_and_leave_out_the_backbone() -> None:
    model = SkipClick(SMALL).eval()
    small, large = (flops(Predictor(model, (side, side))) for side in (56, 112))
    assert 0 < small[1] < large[1]
    fused = 2 * 16 * 4 * SMALL.mixer_width * SMALL.mixer_width  # tokens x inputs x outputs at 56 pixels
    assert small[0] > fused


def test_a_run_writes_every_stage_and_every_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "matmul_rate", lambda device, dtype: 100.0)  # takes seconds
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
    assert [each["name"] for each in found["comparisons"]] == ["served", "plain eager forward"]
    text = output.with_suffix(".md").read_text()
    assert all(stage in text for stage in STAGES)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--models", "skipclick-lite", "--resolutions", "100", "--rounds", "1"], "multiples of"),
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
