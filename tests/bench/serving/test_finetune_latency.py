"""Protects the figure of what a training costs annotators: honest ratios, bodies that the server keeps, a real job."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from backend.label_studio.annotations import read_event, read_task
from backend.label_studio.labeling_config import parse_labeling_config
from bench.serving.finetune_latency import ANNOTATED, LEARNT, Phase, annotated_project, large_body, lines, main, ratio
from tests.support.commands import exit_status

PHASES = [
    Phase(0, False, (10.0, 20.0, 30.0), (5.0,), 0, ()),
    Phase(0, True, (20.0, 30.0, 40.0), (9.0, 11.0), 0, ("encoding", "learning")),
    Phase(1, False, (20.0,), (), 0, ()),
    Phase(1, True, (20.0,), (), 1, ("learning",)),
]


def test_the_ratio_is_of_medians() -> None:
    assert ratio(PHASES[:2]) == 1.5
    assert ratio(PHASES) == 25 / 20
    assert math.isnan(ratio(PHASES[:1]))


def test_the_table_says_what_was_measured() -> None:
    text = "\n".join(lines(PHASES))
    assert "| clicks, idle | 4 | 20 |" in text
    assert "| clicks, during a training | 4 | 25 |" in text
    assert "| webhooks, during a training | 2 | 10 |" in text
    assert "1.25 (by round: 1.50, 1.00)" in text
    assert "seen encoding, learning; failed requests: 1" in text


def test_a_large_body_holds_masks_that_are_kept() -> None:
    body = large_body(600_000)
    assert 600_000 <= len(body) < 2_000_000
    assert body.count(b'"annotation": {"id": 1,') == 1  # where each one sent gets a number of its own
    assert json.loads(body)["project"]["id"] == ANNOTATED
    [annotation] = read_event(json.loads(body)).saved
    assert annotation.objects
    assert all(one.mask(10**7).any() for one in annotation.objects)


def test_the_project_that_is_learnt_has_masks_and_pictures() -> None:
    files = annotated_project()
    tasks = json.loads(files["/api/tasks/"])
    config = parse_labeling_config(json.loads(files[f"/api/projects/{LEARNT}/"])["label_config"])
    assert tasks["total"] == len(tasks["tasks"]) == 18
    for task in tasks["tasks"]:
        [annotation] = read_task(task, config)
        assert annotation.objects
        assert {one.image for one in annotation.objects} <= files.keys()


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--annotators", "0"], ["--seconds", "0"], ["--megabytes", "1000"]):
        assert exit_status(main, wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_is_measured_while_a_real_job_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "latency.json"
    arguments = ["--rounds", "1", "--seconds", "20", "--annotators", "2", "--think", "0.5", "--megabytes", "1"]
    assert main([*arguments, "--submit-every", "3", "--output", str(output)]) == 0, capsys.readouterr().err
    idle, during = json.loads(output.read_text())["phases"]
    assert (idle["training"], during["training"]) == (False, True)
    assert len(idle["clicks"]) > 3
    assert len(during["clicks"]) > 3
    assert idle["webhooks"]
    assert "median click during a training / idle:" in capsys.readouterr().out
