"""From models and data sets to results: the plan, and for each task photos shared out to workers under a progress bar.

On the CPU the workers are processes of one thread each. On a GPU they are threads that take turns on the device: while
the network works for one of them, the others load photos, search clicks and score.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import Lock
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.baselines.adaptation import Labels
from bench.models import (
    ModelSpec,
    checkpoint_sha256,
    is_checkpoint,
    load_model,
    network_size,
    use_deterministic_kernels,
)
from skipclick.evaluation.datasets import EvaluationSet, Photo, Sample
from skipclick.evaluation.datasets.left_out import LeftOut, count_by_reason, left_out_for
from skipclick.evaluation.evaluate import Rules, evaluate_together
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results, SkippedPhoto, read_object
from skipclick.evaluation.versions import software_versions
from skipclick.metrics import noc
from train.cocolvis.workers import end_with_parent


@dataclass(frozen=True)
class Task:
    """One model on one data set under one seed of the clicks."""

    spec: ModelSpec
    dataset: EvaluationSet
    rules: Rules
    seed: int | None


@dataclass(frozen=True)
class Entry:
    """What one model found on a group of photos: a line of the journal."""

    model: str
    dataset: str
    seed: int | None
    photos: list[str]
    objects: list[ObjectResult]
    problems: list[SkippedPhoto]
    left_out: list[LeftOut]

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Entry:
        """From its `asdict`."""
        objects = [read_object(one) for one in content["objects"]]
        problems = [SkippedPhoto(**one) for one in content["problems"]]
        left_out = [LeftOut(**one) for one in content["left_out"]]
        return Entry(**content | {"objects": objects, "problems": problems, "left_out": left_out})


@dataclass(frozen=True)
class Workers:
    """What measures the photos of a data set."""

    pool: Executor | None = None
    """Processes on the CPU, threads on a GPU; None: this process does it all."""
    count: int = 1
    """Their number."""
    group: int = 1
    """Photos whose objects are clicked in one batch."""


@dataclass(frozen=True)
class GroupResult:
    """What a worker returns."""

    objects: list[ObjectResult]
    problems: list[SkippedPhoto]
    left_out: list[LeftOut]


def plan(
    names: Sequence[str],
    datasets: Sequence[EvaluationSet],
    rules: Rules,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    runtime: str = "torch",
    adapt: Labels | None = None,
    side: int | None = None,
    mask_feedback: bool = True,
) -> list[Task]:
    """All that a command measures, model by model. side: of the network's input, instead of the usual one.
    mask_feedback: of SAM's family.

    Raises ValueError where a name is given twice or a checkpoint cannot be read.
    """
    for kind, given in (("model", list(names)), ("data set", [dataset.name for dataset in datasets])):
        if len(set(given)) < len(given):
            raise ValueError(f"each {kind} can be given once only")
    return [
        Task(
            ModelSpec(
                name,
                network_size(name, dataset.resolution, side),
                device,
                dtype,
                rules.flip,
                runtime,
                adapt,
                mask_feedback,
            ),
            dataset,
            rules,
            seed,
        )
        for name in names
        for dataset in datasets
        for seed in rules.seeds or (None,)
    ]


def collect(
    tasks: Sequence[Task], measurements: Sequence[Measurement], command: Sequence[str], created: str
) -> Results:
    """The result file's content: what was measured for each task of a plan."""
    by_spec_name: dict[str, list[Measurement]] = defaultdict(list)
    for task, measurement in zip(tasks, measurements, strict=True):
        by_spec_name[task.spec.name].append(measurement)
    specs = {task.spec.name: task.spec for task in tasks}
    runs = [ModelRun(name, *_identity(specs[name]), measurements=of_model) for name, of_model in by_spec_name.items()]
    return Results(list(command), created, software_versions(), tasks[0].rules.to_dict(), runs)


def _identity(spec: ModelSpec) -> tuple[str, str | None, str, str]:
    """Version, SHA-256, device and dtype, with another runtime than torch before it; baselines choose the last two."""
    model = load_model(spec)
    if is_checkpoint(spec.name):
        numbers = spec.dtype if spec.runtime == "torch" else f"{spec.runtime} {spec.dtype}"
        return model.version, checkpoint_sha256(spec.name), spec.device, numbers
    return model.version, None, str(getattr(model, "device", "cpu")), "float32"


def run_task(
    task: Task, workers: Workers, done: Sequence[Entry] = (), on_entry: Callable[[Entry], None] = lambda entry: None
) -> Measurement:
    """Measure all photos of a task but those of `done`, whose results are taken over; `on_entry` gets each new group.

    Results come in the order of the photos. Raises ValueError if the model cannot be loaded.
    """
    if task.spec.adapt:
        load_model.cache_clear()  # each data set begins with what was never adapted
    load_model(task.spec)  # so that its errors are reported here, not in a worker
    photos = task.dataset.photos
    groups = [photos[first : first + workers.group] for first in range(0, len(photos), workers.group)]
    entries = {tuple(entry.photos): entry for entry in done if _belongs(entry, task)}
    still_open = [group for group in groups if _names(group) not in entries]
    progress = _Progress(task, entries.values())
    for group, result in zip(still_open, _results(task, still_open, workers.pool), strict=True):
        names = _names(group)
        entry = Entry(
            task.spec.name,
            task.dataset.name,
            task.seed,
            list(names),
            result.objects,
            result.problems,
            result.left_out,
        )
        on_entry(entry)
        entries[names] = entry
        progress.add(entry)
    progress.close()
    in_order = [entries[_names(group)] for group in groups]
    return Measurement(
        task.dataset.name,
        task.dataset.folder,
        task.spec.resolution,
        task.seed,
        [one for entry in in_order for one in entry.objects],
        [one for entry in in_order for one in entry.problems],
        count_by_reason([*task.dataset.left_out, *(one for entry in in_order for one in entry.left_out)]),
    )


def _belongs(entry: Entry, task: Task) -> bool:
    return (entry.model, entry.dataset, entry.seed) == (task.spec.name, task.dataset.name, task.seed)


def _names(group: Sequence[Photo]) -> tuple[str, ...]:
    return tuple(photo.name for photo in group)


@contextmanager
def open_workers(device: str, count: int | None = None, group: int | None = None) -> Iterator[Workers]:
    """Workers that are ready when the block begins and gone when it ends, however it ends.

    By default this process alone, photo by photo; on a GPU four threads with eight photos each.
    """
    on_gpu = device.startswith("cuda")
    count, group = count or (4 if on_gpu else 1), group or (8 if on_gpu else 1)
    if count == 1:
        yield Workers(group=group)
        return
    pool: Executor
    if on_gpu:
        pool = ThreadPoolExecutor(count)
    else:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, spawn, _start_process, (device, spawn.Barrier(count)))
    try:
        for start in [pool.submit(int) for _ in range(count)]:
            start.result()  # processes take seconds to start, which are no part of any measurement
        yield Workers(pool, count, group)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(device: str, all_started: Barrier) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C ends it at once and without a traceback
    end_with_parent()
    use_deterministic_kernels(device)
    all_started.wait()


def _results(task: Task, groups: Sequence[Sequence[Photo]], pool: Executor | None) -> Iterator[GroupResult]:
    """Of one group after the other, in order, however many are worked on at once."""
    work = functools.partial(_measure_group, task.spec, task.rules, task.seed)
    if isinstance(pool, ThreadPoolExecutor):
        work = functools.partial(work, device=Lock())
    return pool.map(work, groups) if pool else map(work, groups)


def _measure_group(
    spec: ModelSpec,
    rules: Rules,
    seed: int | None,
    group: Sequence[Photo],
    device: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 (it holds nothing)
) -> GroupResult:
    """Load, encode and click some photos; one that cannot be used becomes a `SkippedPhoto`."""
    samples: list[Sample] = []
    problems: list[SkippedPhoto] = []
    for photo in group:
        try:
            samples.append(photo.load())
        except ValueError as error:
            problems.append(SkippedPhoto(photo.name, str(error), left_out_for(error).reason))
    objects = evaluate_together(load_model(spec), samples, rules, seed, device)
    left_out = count_by_reason(one for sample in samples for one in sample.left_out)
    return GroupResult(objects, problems, left_out)


class _Progress:
    """A bar with the NoC so far and the time left."""

    def __init__(self, task: Task, done: Collection[Entry]) -> None:
        self._rules = task.rules
        self._nocs: dict[int, list[int]] = {percent: [] for percent in task.rules.thresholds}
        name = f"{task.spec.name} on {task.dataset.name}" + ("" if task.seed is None else f", seed {task.seed}")
        num_done = sum(len(entry.photos) for entry in done)
        self._bar = tqdm(total=len(task.dataset), initial=num_done, desc=name, unit="photo", disable=None)
        for entry in done:
            self._count(entry)

    def add(self, entry: Entry) -> None:
        self._count(entry)
        means = (f"@{percent} {np.mean(nocs):.2f}" for percent, nocs in self._nocs.items() if nocs)
        self._bar.set_postfix_str(f"NoC {', '.join(means)}", refresh=False)
        self._bar.update(len(entry.photos))

    def _count(self, entry: Entry) -> None:
        for percent, nocs in self._nocs.items():
            nocs += [noc(one.ious, percent / 100, self._rules.num_clicks) for one in entry.objects]

    def close(self) -> None:
        self._bar.close()
