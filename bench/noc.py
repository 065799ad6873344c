"""How many clicks a method needs: the NoC benchmark with a simulated annotator.

    python bench/noc.py --model bundled --dataset GrabCut=DIR Berkeley=DIR DAVIS=DIR --output runs/noc.json
    python bench/noc.py --model grabcut --dataset folder=DIR --limit 50 --jobs 2

Each object is clicked until its IoU reaches 0.95, at most 20 times: the first click into the middle of the object, each
further one into the middle of the largest error. NoC@t is the mean number of clicks until the IoU reaches t, where an
object that never does counts 20 (paper section 4.1). Every IoU and every click goes to the output file.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

if not __package__:  # run as a script: the packages lie in the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.datasets import LAYOUTS, EvaluationSet, Sample, open_dataset
from bench.rivals import GrabCutModel
from skipclick import Click, Predictor, load_checkpoint
from skipclick.files import replaced_atomically
from skipclick.metrics import iou, mean_iou_at, mean_noc, num_failures
from skipclick.predictor import DTYPES
from skipclick.simulation import next_click

F = TypeVar("F")


class ClickModel(Protocol[F]):
    """What is measured: anything with the two calls of `Predictor`."""

    @property
    def version(self) -> str:
        """Name of the method and its weights."""

    def encode(self, image: NDArray[np.uint8]) -> F:
        """All that depends on the photo alone; uint8 RGB (H, W, 3)."""

    def click(self, features: F, clicks: Sequence[Click], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The object's probability, float32 (H, W), after all its clicks."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The evaluation protocol; the defaults are those of the published figures."""

    num_clicks: int = 20
    """Clicks per object at most; NoC counts an object that fails as so many."""
    target_iou: float = 0.95
    """An object is finished once it is this good."""
    threshold: float = 0.49
    """A pixel belongs to the mask above this probability (0.5 when serving)."""


@dataclass(frozen=True)
class ObjectResult:
    """One object's clicks, what each of them led to, and how long it took."""

    image: str
    object_id: int
    ious: list[float]
    clicks: list[Click]
    encode_ms: float
    """Of the photo, shared by its objects."""
    click_ms: list[float]


@dataclass(frozen=True)
class Summary:
    """A data set's row of the table."""

    num_objects: int
    noc85: float
    noc90: float
    noc95: float
    failures85: int
    failures90: int
    miou1: float
    miou3: float
    miou5: float
    miou10: float
    encode_ms: float
    """Median over photos."""
    click_ms: float
    """Median over clicks."""


def simulate(
    model: ClickModel[F], features: F, target: NDArray[np.int8], rules: Rules | None = None
) -> tuple[list[float], list[Click], list[float]]:
    """Segment one object by simulated clicks: IoU after each click, the clicks, milliseconds of each.

    features: `model.encode` of the photo. target: int8 (H, W), 1 object, 0 background, -1 ignored.
    """
    rules = rules or Rules()
    ious: list[float] = []
    clicks: list[Click] = []
    click_ms: list[float] = []
    probability: NDArray[np.float32] | None = None
    mask = np.zeros(target.shape, np.bool_)
    while len(clicks) < rules.num_clicks and (not ious or ious[-1] < rules.target_iou):
        clicks.append(next_click(mask, target, [(int(click.y), int(click.x)) for click in clicks]))
        started = time.perf_counter()
        probability = model.click(features, clicks, probability)
        click_ms.append(1e3 * (time.perf_counter() - started))
        mask = probability > rules.threshold
        ious.append(iou(mask, target))
    return ious, clicks, click_ms


def evaluate(model: ClickModel[F], samples: Iterable[Sample], rules: Rules | None = None) -> Iterator[ObjectResult]:
    """Simulate all objects of all samples, in order; a photo is encoded once for all its objects.

    An iterator: wrap it in `list`, or watch the results as they come.
    """
    for sample in samples:
        started = time.perf_counter()
        features = model.encode(sample.image)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        encode_ms = 1e3 * (time.perf_counter() - started)
        for object_id, target in sample.targets.items():
            ious, clicks, click_ms = simulate(model, features, target, rules)
            yield ObjectResult(sample.name, object_id, ious, clicks, encode_ms, click_ms)


def summarise(results: Sequence[ObjectResult], num_clicks: int = 20) -> Summary:
    """The figures of one data set; raises ValueError if there are no results."""
    if not results:
        raise ValueError("the data set has no objects: nothing to summarise")
    ious = [result.ious for result in results]
    return Summary(
        num_objects=len(results),
        noc85=mean_noc(ious, 0.85, num_clicks),
        noc90=mean_noc(ious, 0.90, num_clicks),
        noc95=mean_noc(ious, 0.95, num_clicks),
        failures85=num_failures(ious, 0.85, num_clicks),
        failures90=num_failures(ious, 0.90, num_clicks),
        miou1=mean_iou_at(ious, 1),
        miou3=mean_iou_at(ious, 3),
        miou5=mean_iou_at(ious, 5),
        miou10=mean_iou_at(ious, 10),
        encode_ms=statistics.median({result.image: result.encode_ms for result in results}.values()),
        click_ms=statistics.median(ms for result in results for ms in result.click_ms),
    )


def markdown_table(summaries: dict[str, Summary]) -> str:
    """One row per data set; IoU in percent, times in milliseconds."""
    head = "| data set | objects | NoC@85 | NoC@90 | NoC@95 | ≥20@85 | ≥20@90 "
    head += "| mIoU@1 | @3 | @5 | @10 | encode ms | click ms |"
    lines = [head, "|---" + "|---:" * (head.count("|") - 2) + "|"]
    for name, s in summaries.items():
        clicks = f"{s.noc85:.2f} | {s.noc90:.2f} | {s.noc95:.2f} | {s.failures85} | {s.failures90}"
        quality = " | ".join(f"{100 * value:.1f}" for value in (s.miou1, s.miou3, s.miou5, s.miou10))
        lines.append(f"| {name} | {s.num_objects} | {clicks} | {quality} | {s.encode_ms:.1f} | {s.click_ms:.1f} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class ModelSpec:
    """What to measure, small enough to send to a worker process."""

    name: str
    """"grabcut", "bundled" or a checkpoint file."""
    resolution: int | None
    device: str
    dtype: str
    flip: bool


@functools.cache
def load_model(spec: ModelSpec) -> ClickModel[Any]:
    """Built once per process."""
    if spec.name == "grabcut":
        return GrabCutModel()
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {spec.device!r} was asked for, but torch finds no CUDA device: use --device cpu")
    resolution = (spec.resolution, spec.resolution) if spec.resolution else None
    return Predictor(load_checkpoint(spec.name), resolution, spec.device, spec.dtype, flip=spec.flip)


def _evaluate_photo(spec: ModelSpec, dataset: EvaluationSet, index: int) -> list[ObjectResult]:
    return list(evaluate(load_model(spec), [dataset[index]]))


def _evaluate_all(spec: ModelSpec, dataset: EvaluationSet, num_jobs: int) -> Iterator[list[ObjectResult]]:
    """The results of one photo after another, computed by so many processes."""
    work = functools.partial(_evaluate_photo, spec, dataset)
    if num_jobs == 1:
        yield from map(work, range(len(dataset)))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, mp_context=spawn, initializer=_use_one_thread) as pool:
        yield from pool.map(work, range(len(dataset)))


def _use_one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _measure(spec: ModelSpec, dataset: EvaluationSet, num_jobs: int) -> list[ObjectResult]:
    """All results of a data set, under a progress bar that shows the NoC so far."""
    results: list[ObjectResult] = []
    with tqdm(total=len(dataset), desc=dataset.name, unit="photo") as bar:
        for of_photo in _evaluate_all(spec, dataset, num_jobs):
            results.extend(of_photo)
            ious = [result.ious for result in results]
            if ious:
                bar.set_postfix_str(f"NoC@85 {mean_noc(ious, 0.85):.2f}, @90 {mean_noc(ious, 0.90):.2f}")
            bar.update()
    return results


def _versions() -> dict[str, str | None]:
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


def _report(spec: ModelSpec, results: dict[EvaluationSet, list[ObjectResult]]) -> dict[str, Any]:
    """All that is needed to check the table or to draw another one."""
    return {
        "model": asdict(spec) | {"version": load_model(spec).version},
        "rules": asdict(Rules()),
        "versions": _versions(),
        "datasets": {
            dataset.name: asdict(summarise(objects)) | {"objects": [asdict(result) for result in objects]}
            for dataset, objects in results.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error where the input is at fault."""
    options = _parser().parse_args(arguments)
    spec = ModelSpec(options.model, options.resolution, options.device, options.dtype, options.flip)
    try:
        names = [name for name, _ in options.dataset]
        if len(set(names)) < len(names):
            raise ValueError("each data set can be given once only")
        datasets = [open_dataset(name, folder, options.limit) for name, folder in options.dataset]
        version = load_model(spec).version
        results = {dataset: _measure(spec, dataset, options.jobs) for dataset in datasets}
        report = _report(spec, results)
        if options.output:
            with replaced_atomically(options.output) as temporary:
                temporary.write_text(json.dumps(report) + "\n")
    except (ValueError, OSError) as error:
        print(f"noc: {error}", file=sys.stderr)
        return 2
    print(f"{version}, {Rules().num_clicks} clicks at most\n")
    print(markdown_table({dataset.name: summarise(objects) for dataset, objects in results.items()}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="'bundled', a checkpoint file, or the rival 'grabcut'")
    parser.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        type=_named_folder,
        metavar="NAME=DIR",
        help=f"data sets and where they lie; NAME is one of {', '.join(LAYOUTS)}",
    )
    parser.add_argument("--limit", type=_positive, help="only the first photos of each data set")
    parser.add_argument("--output", type=Path, help="JSON with every object's IoU after each click")
    parser.add_argument("--resolution", type=_positive, help="side in pixels that the network works at")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored photo, as published figures do")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the network (default: float32)")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes with one thread each (default: 1)")
    return parser


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
