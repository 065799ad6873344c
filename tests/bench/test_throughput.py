"""Protects `--profile`: every way clicks the same objects, its figures add up, the simple loops are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import throughput
from bench.runner import Workers, plan, run_task
from bench.throughput import benchmark_throughput, simple_loops, throughput_table
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.evaluate import Rules
from tests.support.bench_models import DiscModel, write_davis


def test_all_ways_do_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_davis(tmp_path / "davis", num_photos=3)
    (folder / "img" / "2.png").write_bytes(b"no picture")
    (task,) = plan(["tests.support.bench_models:small_discs"], [open_dataset("DAVIS", folder)], Rules(num_clicks=4))
    model = DiscModel(radius=12)
    monkeypatch.setattr(throughput, "load_model", lambda spec: model)
    at_each_click, for_each_object = simple_loops(task)
    workers = Workers()
    proper = benchmark_throughput(task, run_task(task, workers), workers)
    for way in (at_each_click, for_each_object, proper):
        assert (way.num_photos, way.num_clicks) == (2, 8)
        assert 0 < sum(way.seconds.values()) <= way.wall
        assert 0 < way.network_share < 1
    assert model.num_encoded == 8 + 2
    lines = throughput_table([at_each_click, for_each_object, proper]).splitlines()
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert len(lines) == 7
