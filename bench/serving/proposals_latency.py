"""What proposals cost: seconds for a photo, and what annotators notice while a batch of photos is worked off.

    OMP_NUM_THREADS=1 python bench/serving/proposals_latency.py                       drawn photos, 2 annotators
    OMP_NUM_THREADS=1 python bench/serving/proposals_latency.py --images train_real/images --photos 40

A server of its own has a project that accepted one object (a click on the first photo), and PREDICT=similar. The team
clicks for a while; then again while Label Studio retrieves predictions, which asks for one task after the other. The
batch's photos are new to the server, the team's are not. Prints a table; exit status 1 if a request failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

from backend.finetune.versions import Versions
from bench.cli import CommandParser, image_size
from bench.serving.annotators import Request, photos
from bench.serving.load import Load, Target, Workload, image_server, jpeg, measure, predict_body, spawned_server
from bench.serving.loopback import exit_on_signals, local_session
from skipclick import Click, Predictor, load_checkpoint
from skipclick.evaluation.option_types import positive, positive_float
from skipclick.evaluation.timing import percentiles
from skipclick.predictor import ClickRequest
from skipclick.proposals import Prototypes, pooled

PROJECT = 1
TEAM_PHOTOS = 3


def write_version(folder: Path, photo: NDArray[np.uint8]) -> None:
    """A version of the project in service, with the base's head, that has accepted what lies in the photo's middle."""
    base = load_checkpoint("bundled")
    predictor = Predictor(base, keep_taps=True)
    features = predictor.encode(photo)
    (answer,) = predictor.predict([ClickRequest(features, [Click(photo.shape[1] // 2, photo.shape[0] // 2)])])
    accepted = Prototypes.of([("Object", pooled(features, answer.mask.full()))])
    versions = Versions(folder)
    about = {"proposals": {"helps": True}}
    version = versions.write(PROJECT, base, base, about=about, report={}, prototypes=accepted)
    versions.promote(PROJECT, version.number)


def retrieve(server: str, addresses: Sequence[str], size: tuple[int, int], over: Event) -> list[tuple[float, int]]:
    """Ask for one task after the other until it is over: seconds and number of regions of each."""
    found = []
    with local_session() as http:
        for number, address in enumerate(addresses):
            if over.is_set():
                break
            body = predict_body(Request(1000 + number, (Click(0, 0),)), address, size)
            body |= {"project": f"{PROJECT}.1", "params": {"context": None}}
            begin = time.perf_counter()
            answer = http.post(f"{server}/predict", json=body, timeout=200)
            answer.raise_for_status()
            results = answer.json()["results"]
            found.append((time.perf_counter() - begin, len(results[0]["result"]) if results else 0))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if a request failed, or 2 for wrong options."""
    options = _parser().parse_args(arguments)
    exit_on_signals()
    size: tuple[int, int] = options.size
    try:
        pictures = photos(options.images, TEAM_PHOTOS + options.photos, size)
    except ValueError as error:
        print(f"proposals_latency: {error}", file=sys.stderr)
        return 2
    files = {f"/{number}.jpg": jpeg(picture) for number, picture in enumerate(pictures)}
    workload = Workload(options.annotators, 10**6, options.seconds, options.think)
    with tempfile.TemporaryDirectory() as folder:
        write_version(Path(folder), pictures[0])
        settings = {"MODEL_DIR": folder, "PREDICT": "similar", "PREDICT_SECONDS": "100"}
        with image_server(files) as images, spawned_server(images, settings) as server:
            addresses = [f"{images}{path}" for path in files]
            target = Target(server, addresses[:TEAM_PHOTOS], [size] * TEAM_PHOTOS)
            measure(target, Workload(1, 4 * TEAM_PHOTOS, options.seconds, 0.0))  # the team's photos are known
            alone = measure(target, workload)
            over, found = Event(), list[tuple[float, int]]()
            batch = Thread(target=lambda: found.extend(retrieve(server, addresses[TEAM_PHOTOS:], size, over)))
            batch.start()
            beside = measure(target, Workload(options.annotators, 10**6, options.seconds, options.think, 500))
            over.set()
            batch.join()
            rest = retrieve(server, addresses[TEAM_PHOTOS + len(found) :], size, Event())
    print("| | number | median | p95 |", "|---|---:|---:|---:|", sep="\n")
    print(_clicks("clicks, milliseconds, alone", alone))
    print(_clicks("clicks, milliseconds, during a batch", beside))
    print(_seconds("a photo's proposals, seconds, during clicks", found))
    print(_seconds("a photo's proposals, seconds, alone", rest))
    return 1 if alone.failures or beside.failures else 0


def _clicks(name: str, load: Load) -> str:
    return _row(name, [one.milliseconds for one in load.sent if one.status == 200], 0)


def _seconds(name: str, found: Sequence[tuple[float, int]]) -> str:
    regions = sum(count for _, count in found)
    return _row(f"{name} ({regions} regions)", [seconds for seconds, _ in found], 2)


def _row(name: str, values: Sequence[float], digits: int) -> str:
    known = percentiles(values)
    shown = (f"{known[key]:.{digits}f}" if known else "–" for key in ("p50", "p95"))
    return f"| {name} | {len(values)} | {' | '.join(shown)} |"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="proposals_latency", description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of photos (default: drawn ones)")
    parser.add_argument("--photos", type=positive, default=40, help="of the batch (default: %(default)s)")
    parser.add_argument(
        "--size", type=image_size, default=(1080, 1920), help="of photos, WIDTHxHEIGHT (default: 1920x1080)"
    )
    parser.add_argument("--annotators", type=positive, default=2, help="who click (default: %(default)s)")
    parser.add_argument("--think", type=positive_float, default=2.0, help="mean seconds between clicks (default: 2)")
    parser.add_argument("--seconds", type=positive_float, default=30.0, help="of each measurement (default: 30)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
