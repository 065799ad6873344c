"""Protects a whole run: the plan, broken photos, resuming, and that workers change nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.runner import Entry, Workers, collect, open_workers, plan, run_task
from skipclick.evaluation.datasets import EvaluationSet, open_dataset
from skipclick.evaluation.evaluate import Rules
from skipclick.evaluation.results import Measurement, SkippedPhoto
from tests.support.bench_models import write_davis
from tests.support.coco_files import SQUARE, write_set

MODEL = "tests.support.bench_models:small_discs"
RULES = Rules(num_clicks=4)


@pytest.fixture
def davis(tmp_path: Path) -> EvaluationSet:
    folder = write_davis(tmp_path / "davis", num_photos=5)
    (folder / "gt" / "3.png").write_bytes(b"no picture")
    return open_dataset("DAVIS", folder)


def without_times(measurement: Measurement) -> Measurement:
    objects = [replace(one, encode_ms=0.0, click_ms=[]) for one in measurement.objects]
    return replace(measurement, objects=objects)


def test_the_plan_is_every_model_on_every_set_under_every_seed(davis: EvaluationSet) -> None:
    tasks = plan(["bundled", "grabcut"], [davis], Rules(clicks="jitter", seeds=(0, 1)), device="cpu", dtype="bfloat16")
    assert [(task.spec.name, task.seed) for task in tasks] == [
        ("bundled", 0),
        ("bundled", 1),
        ("grabcut", 0),
        ("grabcut", 1),
    ]
    assert [task.spec.resolution for task in tasks] == [(448, 448), (448, 448), None, None]
    for names, datasets in ((["grabcut"] * 2, [davis]), (["grabcut"], [davis] * 2)):
        with pytest.raises(ValueError, match="once only"):
            plan(names, datasets, RULES)


def test_a_broken_mask_is_a_problem_and_the_others_are_measured(davis: EvaluationSet) -> None:
    (task,) = plan([MODEL], [davis], RULES)
    measurement = run_task(task, Workers())
    assert [one.image for one in measurement.objects] == ["0", "1", "2", "4"]
    (problem,) = measurement.problems
    assert isinstance(problem, SkippedPhoto)
    assert problem.name == "3"
    assert "3.png" in problem.reason


def test_a_journal_keeps_what_was_left_out(tmp_path: Path) -> None:
    write_set(tmp_path, {1: [SQUARE], 2: []})
    (task,) = plan([MODEL], [open_dataset("coco", tmp_path)], RULES)
    written: list[Entry] = []
    whole = run_task(task, Workers(), on_entry=written.append)
    read = [Entry.from_dict(json.loads(json.dumps(asdict(entry)))) for entry in written]
    assert run_task(task, Workers(), read) == whole
    assert [one.count for one in whole.left_out] == [1, 1]


def test_a_resumed_run_ends_as_an_uninterrupted_one(davis: EvaluationSet) -> None:
    (task,) = plan([MODEL], [davis], RULES)
    written: list[Entry] = []
    whole = run_task(task, Workers(group=2), on_entry=written.append)
    assert [Entry.from_dict(json.loads(json.dumps(asdict(entry)))) for entry in written] == written  # through a journal
    assert [entry.photos for entry in written] == [["0", "1"], ["2", "3"], ["4"]]
    foreign = replace(written[2], dataset="GrabCut")
    anew: list[Entry] = []
    resumed = run_task(task, Workers(group=2), [*written[:2], foreign], anew.append)
    assert without_times(resumed) == without_times(whole)
    assert resumed.objects[:3] == whole.objects[:3]  # the times too: they were not measured again
    assert [entry.photos for entry in anew] == [["4"]]


def test_results_name_all_they_were_made_with(davis: EvaluationSet) -> None:
    tasks = plan(["grabcut", MODEL], [davis], RULES, dtype="bfloat16")
    measurements = [run_task(task, Workers()) for task in tasks]
    results = collect(tasks, measurements, ["--model", "grabcut"], "2025-01-01T00:00:00+00:00")
    assert [(run.name, run.measurements) for run in results.runs] == [
        ("grabcut", measurements[:1]),
        (MODEL, measurements[1:]),
    ]
    assert results.runs[1].version == "discs"
    assert results.runs[0].dtype == "float32"  # a dtype is for our networks
    assert results.rules == RULES.to_dict()
    assert {"commit", "python", "torch", "numpy", "processor"} <= results.versions.keys()


@pytest.mark.slow  # each process imports torch
def test_processes_find_the_same(davis: EvaluationSet) -> None:
    (task,) = plan(["grabcut"], [davis], RULES)
    alone = run_task(task, Workers())
    with open_workers("cpu", 2) as workers:
        assert without_times(run_task(task, workers)) == without_times(alone)


def test_threads_that_share_a_device_find_the_same(davis: EvaluationSet) -> None:
    """What a GPU gets, but for the GPU: `open_workers` gives threads for a device that is named so."""
    (task,) = plan([MODEL], [davis], RULES)
    alone = run_task(task, Workers())
    with open_workers("cuda") as workers:
        assert (workers.count, workers.group) == (4, 8)
        assert without_times(run_task(task, replace(workers, group=2))) == without_times(alone)
