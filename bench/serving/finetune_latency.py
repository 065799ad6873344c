"""What annotators notice of a training: clicks and webhooks of the same server, idle and while a job runs.

    python bench/serving/finetune_latency.py                                       8 annotators who think 3 s, 3 rounds
    python bench/serving/finetune_latency.py --rounds 5 --seconds 90 --output runs/finetune-latency.json

Each round measures both in turn: first idle, then during a new job that is cancelled afterwards; what is
answered after the end of a job that was done sooner does not count. A server of its own is started with this process's
settings; the job learns the pictures of the check set, with masks that a stand-in for Label Studio gives out. The
annotators' photos were looked at before, so every click is one on known features. Meanwhile somebody submits a large
annotation every few seconds; Label Studio sends it inside the annotator's own request and waits for the answer. Exit
status 1 if a request failed, 2 if there is nothing to measure.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.label_studio.labeling_config import EXAMPLE
from bench.cli import CommandParser, write_results
from bench.learning.finetune import webhook_body
from bench.serving.annotators import drawn_photo, photos
from bench.serving.load import (
    MAX_ANNOTATORS,
    MAX_CLICKS,
    MAX_SECONDS,
    Target,
    Workload,
    image_server,
    jpeg,
    measure,
    spawned_server,
)
from bench.serving.loopback import exit_on_signals
from skipclick.evaluation.datasets import check_set
from skipclick.evaluation.option_types import positive, positive_float
from skipclick.evaluation.timing import percentiles

LEARNT, ANNOTATED = 1, 2  # projects: the one that is trained, the one that large annotations go to
NUM_PHOTOS = 12
SIZE = (1080, 1920)
KEY = "0123456789abcdef0123456789abcdef01234567"  # a legacy token; the stand-in ignores it


@dataclass(frozen=True)
class Phase:
    """One turn."""

    round: int
    training: bool
    clicks: tuple[float, ...]
    """Milliseconds of each answered click."""
    webhooks: tuple[float, ...]
    """Milliseconds of each answered webhook."""
    failures: int
    stages: tuple[str, ...]
    """What the job was seen to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--annotators", type=positive, default=8)
    parser.add_argument("--think", type=positive_float, default=3.0, help="mean seconds between answer and next click")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive_float, default=60.0, help="of each turn (default: 60)")
    parser.add_argument(
        "--submit-every", type=positive_float, default=5.0, help="seconds between large annotations (default: 5)"
    )
    parser.add_argument("--megabytes", type=positive_float, default=8.0, help="of a large annotation (default: 8)")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-latency.json"))
    options = parser.parse_args(arguments)
    try:
        if options.annotators > MAX_ANNOTATORS or options.megabytes > 100 or options.seconds > MAX_SECONDS:
            raise ValueError(f"at most {MAX_ANNOTATORS} --annotators, {MAX_SECONDS:g} --seconds and 100 --megabytes")
        phases = list(_measured(options))
    except (ValueError, OSError) as error:
        print(f"finetune_latency: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(phases)))
    write_results(options.output, {"phases": [asdict(phase) for phase in phases]})
    return 1 if any(phase.failures for phase in phases) else 0


def lines(phases: Sequence[Phase]) -> Iterator[str]:
    """The table, in Markdown, and the ratio of the medians."""
    yield "| milliseconds | number | median | p90 | p95 | p99 | longest |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name in ("clicks", "webhooks"):
        for training in (False, True):
            values = [ms for phase in phases if phase.training == training for ms in getattr(phase, name)]
            shown = [*percentiles(values).values(), *([max(values)] if values else [])]
            cells = " | ".join(f"{value:.0f}" for value in shown)
            yield f"| {name}, {'during a training' if training else 'idle'} | {len(values)} | {cells} |"
    yield ""
    ratios = [ratio([phase for phase in phases if phase.round == number]) for number in {p.round for p in phases}]
    each = ", ".join(f"{one:.2f}" for one in ratios)
    yield f"median click during a training / idle: {ratio(phases):.2f} (by round: {each})"
    stages = dict.fromkeys(stage for phase in phases for stage in phase.stages)
    yield f"the job was seen {', '.join(stages) or 'nowhere'}; failed requests: {sum(p.failures for p in phases)}"


def ratio(phases: Sequence[Phase]) -> float:
    """Median click during a training over the median of idle ones; NaN where either is missing."""
    during, idle = ([ms for p in phases if p.training == training for ms in p.clicks] for training in (True, False))
    return float(np.median(during) / np.median(idle)) if during and idle else float("nan")


def _measured(options: argparse.Namespace) -> Iterator[Phase]:
    """All turns, on a server of their own."""
    pictures = [jpeg(photo) for photo in photos(None, NUM_PHOTOS, SIZE)]
    paths = [f"/data/upload/{ANNOTATED}/{place}.jpg" for place in range(NUM_PHOTOS)]
    body = large_body(round(options.megabytes * 1e6))
    with ExitStack() as stack:
        files = dict(zip(paths, pictures, strict=True)) | annotated_project()
        studio = stack.enter_context(image_server(files))
        settings = {
            "MODEL_DIR": stack.enter_context(tempfile.TemporaryDirectory()),
            "LABEL_STUDIO_API_KEY": KEY,
            "FINETUNE": "manual",
            "FINETUNE_SECONDS": os.environ.get("FINETUNE_SECONDS", "3600"),
        }
        url = stack.enter_context(spawned_server(studio, settings))
        stack.callback(_cancel_training, url)  # a training outlives its server

        turns, target = count(), Target(url, paths, [SIZE] * NUM_PHOTOS)

        def clicks(seconds: float, think: float) -> Any:
            seed = next(turns) * options.annotators  # the same clicks again would be answered from memory
            return measure(target, Workload(options.annotators, MAX_CLICKS, seconds, think, seed))

        clicks(min(20.0, options.seconds), 0.01)  # every photo is known from here on
        for number in range(options.rounds):
            for training in (False, True):
                yield _turn(url, number, training, lambda: clicks(options.seconds, options.think), body, options)


def _turn(url: str, number: int, training: bool, clicks: Any, body: bytes, options: argparse.Namespace) -> Phase:
    if training:
        _start_training(url)
    with submitting(url, body, options.submit_every) as submitted, watching(url) as stages:
        begin = time.time()
        load = clicks()
    ended = _stop_training(url) if training else None
    seconds = ended - begin if ended is not None else float("inf")
    counted = [one for one in load.sent if one.begin + one.milliseconds / 1000 <= seconds]
    if not counted:
        raise ValueError("no click was answered during the training; see the server's log, or raise --seconds")
    return Phase(
        number,
        training,
        tuple(one.milliseconds for one in counted if one.status == 200),
        tuple(ms for at, ms, status in submitted if status == 201 and at - begin <= seconds),
        sum(one.status != 200 for one in counted) + sum(status != 201 for *_, status in submitted),
        tuple(stages),
    )


def _start_training(url: str) -> None:
    body = {"action": "START_TRAINING", "project": {"id": LEARNT}}
    requests.post(f"{url}/webhook", json=body, timeout=30).raise_for_status()
    deadline = time.monotonic() + 60
    while _job(url)["state"] == "queued":
        if time.monotonic() > deadline:
            raise ValueError("the training did not start within a minute; see the server's log")
        time.sleep(0.1)


def _cancel_training(url: str) -> None:
    requests.delete(f"{url}/training", params={"project": LEARNT}, timeout=30)


def _stop_training(url: str) -> float | None:
    """When the job ended by itself, Unix time; else it is cancelled. Raises `ValueError` if it failed."""
    _cancel_training(url)
    job = _job(url)
    if job["state"] == "failed":
        raise ValueError(f"the training failed: {job['reason']}")
    return datetime.fromisoformat(job["ended_at"]).timestamp() if job["state"] == "done" else None


def _job(url: str) -> dict[str, Any]:
    job: dict[str, Any] = requests.get(f"{url}/training", params={"project": LEARNT}, timeout=30).json()["jobs"][0]
    return job


@contextmanager
def submitting(url: str, body: bytes, every: float) -> Iterator[list[tuple[float, float, int]]]:
    """(begin in Unix time, milliseconds, status) of a webhook every so many seconds, each of a new annotation."""
    sent: list[tuple[float, float, int]] = []
    stop = threading.Event()

    def submit() -> None:
        for _ in count():
            if stop.wait(every):
                return
            number = time.time_ns() // 1_000_000
            own = body.replace(b'"annotation": {"id": 1,', b'"annotation": {"id": %d,' % number, 1)
            begin, start = time.time(), time.perf_counter()
            try:
                status = requests.post(f"{url}/webhook", own, headers={"Content-Type": "application/json"}, timeout=30)
                sent.append((begin, 1000 * (time.perf_counter() - start), status.status_code))
            except requests.RequestException:
                sent.append((begin, 1000 * (time.perf_counter() - start), 0))

    with _in_background(submit, stop):
        yield sent


@contextmanager
def watching(url: str) -> Iterator[list[str]]:
    """The stages of the running job, as they are seen."""
    stages: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            jobs = requests.get(f"{url}/training", params={"project": LEARNT}, timeout=30).json()["jobs"]
            if jobs and jobs[0]["state"] == "running" and jobs[0]["stage"] not in ("", *stages[-1:]):
                stages.append(jobs[0]["stage"])

    with _in_background(watch, stop):
        yield stages


@contextmanager
def _in_background(work: Any, stop: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


def annotated_project() -> dict[str, bytes]:
    """What Label Studio would answer about a project with the pictures of bench/check and their masks, by path."""
    files: dict[str, bytes] = {}
    tasks = []
    for task, photo in enumerate(check_set().photos, 1):
        sample = photo.load()
        address = f"/data/upload/{LEARNT}/{task}.png"
        masks = [np.asarray(target == 1) for target in sample.targets.values()]
        files[address] = _png(sample.image)
        annotation = webhook_body(task, address, masks)["annotation"]
        tasks.append({"id": task, "data": {"image": address}, "annotations": [annotation]})
    files[f"/api/projects/{LEARNT}/"] = json.dumps({"id": LEARNT, "label_config": EXAMPLE}).encode()
    files["/api/tasks/"] = json.dumps({"total": len(tasks), "tasks": tasks}).encode()
    return files


def _png(picture: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def large_body(size: int) -> bytes:
    """A /webhook body of about so many bytes: an annotation of one photo with many masks of frayed edges."""
    regions: list[dict[str, Any]] = []
    total = 0
    for seed in count():
        frayed = drawn_photo(seed, SIZE)[..., 0] > 140
        body = webhook_body(1, f"/data/upload/{ANNOTATED}/0.jpg", [frayed])
        region = body["annotation"]["result"][0] | {"id": f"region-{seed}"}
        regions.append(region)
        total += len(json.dumps(region))
        if total >= size:
            break
    body["annotation"]["result"] = regions
    body["project"]["id"] = ANNOTATED
    return json.dumps(body).encode()


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
