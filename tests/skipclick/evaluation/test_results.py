"""Protects the result file: everything comes back as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skipclick import Click
from skipclick.evaluation.results import (
    Measurement,
    ModelRun,
    ObjectResult,
    Results,
    SkippedPhoto,
    read_results,
    summarise,
    write_results,
)
from skipclick.evaluation.timing import MedianP95

RULES = {"num_clicks": 4, "thresholds": [85, 90]}
FIRST = ObjectResult("a", 1, None, [0.5, 0.86, 0.9], [Click(1, 2), Click(3, 4, False), Click(5, 6)], 10.0, [1, 2, 3])
SECOND = ObjectResult("a", 7, "helmet", [0.2, 0.3, 0.4, 0.88], [Click(1, 2)] * 4, 10.0, [4, 5, 6, 7])
THIRD = ObjectResult("b", 1, None, [0.95], [Click(9, 9)], 30.0, [8])


def results() -> Results:
    measurement = Measurement(
        "GrabCut", "/sets/GrabCut", (448, 448), None, [FIRST, SECOND], [SkippedPhoto("c", "broken")]
    )
    baseline = Measurement("GrabCut", "/sets/GrabCut", None, 3, [THIRD], [])
    runs = [
        ModelRun("bundled", "tiny", "ab" * 32, "cpu", "float32", [measurement]),
        ModelRun("grabcut", "OpenCV", None, "cpu", "float32", [baseline]),
    ]
    return Results(["--model", "bundled"], "2025-01-01T00:00:00+00:00", {"commit": None}, dict(RULES), runs)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "noc.json"
    write_results(path, results())
    assert read_results(path) == results()
    assert [entry.name for entry in path.parent.iterdir()] == ["noc.json"]


def test_files_from_before_zoom_in_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "noc.json"
    write_results(path, results())
    content = json.loads(path.read_text())
    for run in content["runs"]:
        for one in run["measurements"][0]["objects"]:
            del one["extent"], one["crops"]
    path.write_text(json.dumps(content))
    assert read_results(path) == results()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "skipclick-noc-1"}', '{"format": "other", "runs": []}'])
def test_other_files_are_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a result file"):
        read_results(path)


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noc.json"
    write_results(path, results())
    content = json.loads(path.read_text())
    del content["runs"][0]["measurements"][0]["objects"][1]["ious"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a result file"):
        read_results(path)


def test_a_summary_counts_clicks_failures_and_times() -> None:
    summary = summarise([FIRST, SECOND, THIRD], RULES)
    assert summary.num_objects == 3
    assert summary.noc == {85: (2 + 4 + 1) / 3, 90: (3 + 4 + 1) / 3}
    assert summary.failures == {85: 1, 90: 1}
    assert summary.miou == pytest.approx([np.mean([0.5, 0.2, 0.95]), *(np.mean(x) for x in MIOU_AFTER)])
    assert summary.encode_ms == MedianP95(20.0, 29.0)  # a photo's time counts once, however many objects share it
    assert summary.click_ms.median == 4.5


MIOU_AFTER = [(0.86, 0.3, 0.95), (0.9, 0.4, 0.95), (0.9, 0.88, 0.95)]


def test_no_objects_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no objects"):
        summarise([], RULES)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "noc.json"
    write_results(path, results())
    with pytest.raises(TypeError):
        write_results(path, replace(results(), rules={"target": object()}))
    assert read_results(path) == results()
