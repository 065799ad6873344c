"""How fast the benchmark is, and where its time goes: this benchmark and two simple loops over the same photos."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.models import load_model
from bench.runner import Task, Timed, Workers
from skipclick import Click
from skipclick.evaluation.datasets import Photo, Sample
from skipclick.evaluation.evaluate import STAGES, ClickModel, Seconds, evaluate_together, timed
from skipclick.evaluation.results import ObjectResult


@dataclass(frozen=True)
class Throughput:
    """What one way of going through a data set took."""

    dataset: str
    model: str
    way: str
    num_photos: int
    num_clicks: int
    seconds: Seconds
    """Of each stage, summed over the workers."""
    wall: float
    """Seconds from start to end."""
    network_share: float
    """Part of the wall time in [0, 1] during which the network worked: of the GPU's, or of the workers' cores."""


class _EncodedAtEachClick:
    """A model that looks at the photo anew at each click, as the released evaluation script makes it do."""

    def __init__(self, model: ClickModel[Any]) -> None:
        self._model = model
        self.version = model.version

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image

    def click(
        self, features: NDArray[np.uint8], clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        return self._model.click(self._model.encode(features), clicks, previous)


def simple_loops(task: Task) -> list[Throughput]:
    """One object after the other in this process, its photo read anew: encoded at each click, and once."""
    model = load_model(task.spec)
    return [
        _loop(task, _EncodedAtEachClick(model), "simple loop, encoded at each click"),
        _loop(task, model, "simple loop, encoded for each object"),
    ]


def _loop(task: Task, model: ClickModel[Any], way: str) -> Throughput:
    alone = [(photo, object_id) for photo in task.dataset.photos for object_id in _object_ids(photo)]
    seconds: Seconds = defaultdict(float)
    objects: list[ObjectResult] = []
    started = time.perf_counter()
    for photo, object_id in alone:
        with timed(seconds, "load"):
            sample = photo.load()
        one = Sample(sample.name, sample.image, {object_id: sample.targets[object_id]}, sample.category)
        objects += evaluate_together(model, [one], task.rules, task.seed, nullcontext(), seconds)
    return _throughput(task, way, objects, seconds, time.perf_counter() - started, num_cores=1)


def _object_ids(photo: Photo) -> list[int]:
    try:
        return list(photo.load().targets)
    except ValueError:  # reported where the photos are measured
        return []


def benchmark_throughput(task: Task, measured: Timed, workers: Workers) -> Throughput:
    """The same figures of `run_task`."""
    on_gpu = task.spec.device.startswith("cuda")
    way = "noc.py"
    if workers.count > 1:
        way += f", {workers.count} {'threads' if on_gpu else 'processes'}"
    if workers.group > 1:
        way += f", {workers.group} photos at once"
    num_cores = 1 if on_gpu else workers.count
    return _throughput(task, way, measured.measurement.objects, measured.seconds, measured.wall, num_cores)


def _throughput(
    task: Task, way: str, objects: Sequence[ObjectResult], seconds: Seconds, wall: float, num_cores: int
) -> Throughput:
    return Throughput(
        dataset=task.dataset.name,
        model=task.spec.name,
        way=way,
        num_photos=len({one.image for one in objects}),
        num_clicks=sum(len(one.clicks) for one in objects),
        seconds=seconds,
        wall=wall,
        network_share=(seconds["encode"] + seconds["click"]) / (wall * num_cores),
    )


def throughput_table(ways: Iterable[Throughput]) -> str:
    """Markdown, a row for each way; seconds of the stages are sums over the workers."""
    stages = " | ".join(f"{stage} s" for stage in STAGES)
    lines = [
        f"| data set | model | way | photos/s | clicks/s | wall s | {stages} | network busy |",
        "|---|---|---" + "|---:" * (len(STAGES) + 4) + "|",
    ]
    for way in ways:
        cells = [
            way.dataset,
            f"`{way.model}`",
            way.way,
            f"{way.num_photos / way.wall:.2f}",
            f"{way.num_clicks / way.wall:.1f}",
            f"{way.wall:.1f}",
            *(f"{way.seconds[stage]:.1f}" for stage in STAGES),
            f"{way.network_share:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "### Speed\n\n" + "\n".join(lines)
