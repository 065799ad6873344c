"""Protects the benchmark: the simulated session click by click, the figures, the files, and the rival."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.datasets import Sample
from bench.noc import Rules, evaluate, main, markdown_table, simulate, summarise
from bench.rivals import GrabCutModel
from skipclick import Click
from skipclick.metrics import iou


class DiscModel:
    """Draws a disc at each click and remembers what it was asked."""

    version = "discs"

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self.num_encoded = 0
        self.previous_sums: list[float | None] = []

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        self.num_encoded += 1
        return image.shape[0], image.shape[1]

    def click(
        self, features: tuple[int, int], clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        self.previous_sums.append(None if previous is None else float(previous.sum()))
        canvas = np.zeros(features, np.float32)
        for click in clicks:
            cv2.circle(canvas, (int(click.x), int(click.y)), self.radius, (float(click.positive),), cv2.FILLED)
        return canvas


def scene() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """A red ellipse on blue noise, and its target with a rim that does not count."""
    rng = np.random.default_rng(0)
    mask = np.zeros((90, 120), np.uint8)
    cv2.ellipse(mask, (60, 45), (34, 24), 20, 0, 360, (1,), cv2.FILLED)
    image = rng.integers(0, 60, (90, 120, 3), np.uint8)
    image[:, :, 2] += 120
    image[mask == 1] = image[mask == 1][:, ::-1]
    rim = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return image, np.where(rim == 1, -1, mask).astype(np.int8)


def test_a_session_clicks_the_error_and_hands_the_answer_back() -> None:
    _, target = scene()
    model = DiscModel(radius=10)
    ious, clicks, click_ms = simulate(model, target.shape, target, Rules(num_clicks=6))
    assert len(ious) == len(clicks) == len(click_ms) == 6
    assert clicks[0].positive
    assert np.hypot(clicks[0].x - 60, clicks[0].y - 45) < 3
    assert len(set(clicks)) == 6
    assert model.previous_sums[0] is None
    final = model.click(target.shape, clicks, None) > 0.49
    assert ious[-1] == iou(final, target)
    assert model.previous_sums[1] == pytest.approx((model.click(target.shape, clicks[:1], None) > 0.49).sum())


def test_a_session_ends_when_the_object_is_good_enough() -> None:
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 10, (1,), cv2.FILLED)
    target = np.asarray(disc, np.int8)
    ious, clicks, _ = simulate(DiscModel(radius=10), target.shape, target)
    assert ious == [1.0]
    assert clicks == [Click(30.0, 30.0)]


def test_a_photo_is_encoded_once_for_all_its_objects() -> None:
    image, target = scene()
    model = DiscModel(radius=10)
    other = np.zeros_like(target)
    other[:20, :20] = 1
    samples = [Sample("a", image, {1: target, 7: other}), Sample("b", image, {3: target}), Sample("c", image, {})]
    results = list(evaluate(model, samples, Rules(num_clicks=2)))
    assert model.num_encoded == 3
    assert [(result.image, result.object_id) for result in results] == [("a", 1), ("a", 7), ("b", 3)]


def test_summary_and_table() -> None:
    image, target = scene()
    results = list(evaluate(DiscModel(radius=5), [Sample("a", image, {1: target})], Rules()))
    summary = summarise(results)
    assert (summary.num_objects, summary.noc85, summary.failures90) == (1, 20, 1)
    assert summary.miou1 == results[0].ious[0]
    lines = markdown_table({"Set": summary}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| Set | 1 | 20.00 | 20.00 | 20.00 | 1 | 1 |")
    with pytest.raises(ValueError, match="no objects"):
        summarise([])


def test_grabcut_cuts_a_plain_object_and_is_repeatable() -> None:
    image, target = scene()
    model = GrabCutModel()
    ious, clicks, _ = simulate(model, model.encode(image), target, Rules(num_clicks=5))
    assert max(ious) > 0.9
    assert simulate(model, model.encode(image), target, Rules(num_clicks=5))[:2] == (ious, clicks)


def test_grabcut_answers_at_the_size_of_the_photo_whatever_the_clicks() -> None:
    image, _ = scene()
    large = cv2.resize(image, (700, 500)).astype(np.uint8)
    model = GrabCutModel()
    features = model.encode(large)
    corners = [Click(0.0, 0.0), Click(699.0, 499.0, False), Click(350.0, 250.0)]
    for clicks in (corners[:1], corners[1:2], corners):
        for previous in (None, np.zeros((500, 700), np.float32), np.ones((500, 700), np.float32)):
            probability = model.click(features, clicks, previous)
            assert probability.shape == (500, 700)
            assert probability.dtype == np.float32
            assert 0 <= probability.min() <= probability.max() <= 1


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    image, target = scene()
    for folder in ("img", "gt"):
        (tmp_path / folder).mkdir()
    for name in ("1", "2"):
        Image.fromarray(image).save(tmp_path / "img" / f"{name}.png")
        Image.fromarray(np.where(target == 1, 255, 0).astype(np.uint8)).save(tmp_path / "gt" / f"{name}.png")
    return tmp_path


def test_the_command_writes_every_click(davis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = davis / "runs" / "noc.json"
    assert main(["--model", "grabcut", "--dataset", f"DAVIS={davis}", "--limit", "1", "--output", str(output)]) == 0
    assert "| DAVIS | 1 |" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["model"]["version"] == GrabCutModel().version
    (entry,) = report["datasets"]["DAVIS"]["objects"]
    assert entry["image"] == "1"
    assert len(entry["ious"]) == len(entry["clicks"]) == len(entry["click_ms"])
    assert set(entry["clicks"][0]) == {"x", "y", "positive"}
    assert [path.name for path in output.parent.iterdir()] == ["noc.json"]


@pytest.mark.slow  # each process imports torch
def test_processes_find_the_same(davis: Path) -> None:
    found = []
    for jobs in ("1", "2"):
        output = davis / f"{jobs}.json"
        assert main(["--model", "grabcut", "--dataset", f"DAVIS={davis}", "--jobs", jobs, "--output", str(output)]) == 0
        objects = json.loads(output.read_text())["datasets"]["DAVIS"]["objects"]
        found.append([(entry["image"], entry["ious"], entry["clicks"]) for entry in objects])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "grabcut", "--dataset", "DAVIS=nowhere"], "has no folder 'img'"),
        (["--model", "grabcut", "--dataset", "Davis=."], "unknown data set 'Davis'"),
        (["--model", "nowhere.safetensors", "--dataset", "DAVIS={davis}"], "nowhere.safetensors"),
        (["--model", "grabcut", "--dataset", "DAVIS={davis}", "DAVIS={davis}"], "once only"),
    ],
)
def test_failures_are_one_line_and_exit_code_2(
    davis: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(davis=davis) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("noc: ")
    assert message in error


def test_a_malformed_option_is_refused_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--dataset", "DAVIS"], ["--dataset", "DAVIS=x", "--limit", "0"]):
        with pytest.raises(SystemExit) as error:
            main(["--model", "grabcut", *arguments])
        assert error.value.code == 2
    assert "is not NAME=DIR" in capsys.readouterr().err
