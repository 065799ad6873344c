"""What fine-tuning brings: clicks on images nobody annotated, against the number of objects that the team annotated.

    python bench/learning/finetune.py --domain horses=folder:train_real@object cloth=folder:train_real@part \\
        DAVIS=DAVIS:DAVIS --output runs/finetune.jsonl \\
        --report docs/results/finetune.md --plot docs/results/finetune.png
    python bench/learning/finetune.py ... --model base.safetensors      a base model that has seen none of the domains
    python bench/learning/finetune.py ... --objects 50 --seeds 1 --learning-rate 1e-4      to try a recipe

A domain is NAME=LAYOUT:FOLDER, a data set of the benchmark; @KIND takes the photos of a kind of its index.csv. Of each
domain some photos are for testing and never annotated; the others are annotated in an order drawn by the seed, by a
simulated annotator: clicks on the base model until 90 % IoU, the brush where 20 clicks do not get there. What is
accepted goes through webhook bodies into the server's store, and from there into a fine-tuning, which splits it
into its own training and held-out part. Measured is its candidate, promoted or not, on the test photos.

Each fine-tuning runs in a process of its own. An interrupted run goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from backend.finetune.store import AnnotationStore, StoredObject
from backend.label_studio.labeling_config import EXAMPLE
from bench.cli import CommandParser
from bench.models import checkpoint_sha256
from skipclick import Predictor, brush_rle, load_checkpoint
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.bootstrap import bootstrap_intervals
from skipclick.evaluation.datasets import Photo, Sample, check_set, open_dataset
from skipclick.evaluation.evaluate import evaluate, replay
from skipclick.evaluation.journal import append_entry, resume_journal, start_journal
from skipclick.evaluation.option_types import positive
from skipclick.evaluation.results import ObjectResult
from skipclick.evaluation.versions import software_versions
from train.cocolvis.workers import end_with_parent
from train.finetune import Example, FinetuneConfig, TooFewError, finetune
from train.finetune.gate import RULES, Measured, measured

R = TypeVar("R")

MIN_AREA = 100  # pixels; nobody annotates less
MAX_OF_PHOTO = 4  # objects of a test photo, so that crowded ones do not outweigh the others
PROJECT = 1
FORMAT = "skipclick-finetune-journal-1"
TRIED = ("steps", "batch_size", "views", "learning_rate", "replay", "max_seconds")
"""Of the recipe, what the command line can change."""


@dataclass(frozen=True)
class Domain:
    """Photos of one kind."""

    name: str
    layout: str
    folder: str
    kind: str | None

    @staticmethod
    def parse(text: str) -> Domain:
        """From NAME=LAYOUT:FOLDER[@KIND]. Raises `ValueError`."""
        name, equals, rest = text.partition("=")
        layout, colon, place = rest.partition(":")
        folder, _, kind = place.partition("@")
        if not (name and equals and layout and colon and folder):
            raise ValueError(f"--domain {text}: write NAME=LAYOUT:FOLDER or NAME=LAYOUT:FOLDER@KIND")
        return Domain(name, layout, folder, kind or None)

    def photos(self) -> list[Photo]:
        """In an order that is always the same and says nothing about them. Raises `ValueError`."""
        kinds: Mapping[str, str] = {}
        if self.kind is not None:
            with (Path(self.folder) / "index.csv").open(newline="") as file:
                kinds = {row["name"]: row["kind"] for row in csv.DictReader(file)}
        found = open_dataset(self.layout, Path(self.folder), None, lambda name: kinds.get(name) == self.kind)
        return sorted(found.photos, key=lambda photo: (zlib.crc32(photo.name.encode()), photo.name))


@dataclass(frozen=True)
class FinetuneResult:
    """One fine-tuning, or, with 0 objects, the base model."""

    domain: str
    num_objects: int
    seed: int
    images: tuple[str, ...]
    """Of each test object."""
    nocs: tuple[tuple[int, int], ...]
    """Of each test object: clicks to 85 % and to 90 %."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    report: Mapping[str, Any] | None = None
    """`train.finetune.Report`; None where there was too little to learn from, so that the base stayed."""

    @staticmethod
    def from_dict(content: dict[str, Any]) -> FinetuneResult:
        """From its `asdict`, read from JSON."""
        nocs = tuple(map(tuple, content["nocs"]))
        return FinetuneResult(**content | {"images": tuple(content["images"]), "nocs": nocs})


def annotated(photos: Sequence[Photo], count: int, model: str, folder: Path) -> list[Example]:
    """`count` objects, accepted photo by photo, as they come out of the server's store in `folder`.

    A photo is a task; the annotation holds all its objects, the last photo's as many as are still wanted.
    """
    predictor, store = Predictor(load_checkpoint(model)), AnnotationStore(folder)
    images: dict[str, NDArray[np.uint8]] = {}
    left = count
    for task, photo in enumerate(photos, 1):
        sample = annotatable(photo.load(), left)
        left -= len(sample.targets)
        address = f"/data/upload/{PROJECT}/{task}.png"
        images[address] = sample.image
        if sample.targets:
            body = webhook_body(task, address, accepted_masks(predictor, sample))
            store.receive(PROJECT, json.dumps(body).encode())
        if not left:
            break
    store.apply_pending()
    stored = store.objects(PROJECT)
    if len(stored) != count:
        raise ValueError(f"{count} objects were asked for, the photos to annotate hold {len(stored)}")
    return [Example(one.image, partial(images.__getitem__, one.image), partial(_target, one)) for one in stored]


def _target(one: StoredObject) -> NDArray[np.int8]:
    return one.read_mask().astype(np.int8)


def accepted_masks(predictor: Predictor, sample: Sample) -> list[NDArray[np.bool_]]:
    """What the annotator accepts of each object, bool (H, W)."""
    return [accepted_mask(predictor, sample, result) for result in evaluate(predictor, [sample], RULES)]


def accepted_mask(predictor: Predictor, sample: Sample, result: ObjectResult) -> NDArray[np.bool_]:
    """What the annotator accepts of one object, bool (H, W): the first mask of 90 % IoU, else the brushed truth."""
    if result.ious[-1] >= RULES.target_iou:
        return replay(predictor, sample.image, result.clicks, RULES)
    return np.asarray(sample.targets[result.object_id] == 1)


def webhook_body(task: int, address: str, masks: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """What Label Studio sends when an annotation with these brush regions is submitted."""
    regions = [
        {
            "id": f"region-{number}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": ["Object"]},
        }
        for number, mask in enumerate(masks)
    ]
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": task, "task": task, "result": regions, "updated_at": "2026-01-01T00:00:00Z"},
        "task": {"id": task, "data": {"image": address}},
        "project": {"id": PROJECT, "label_config": EXAMPLE},
    }


def run_one(
    domain: Domain, num_objects: int, seed: int, model: str, num_test: int, config: FinetuneConfig, threads: int
) -> FinetuneResult:
    """Annotate, fine-tune and measure; meant for a process of its own. Raises `ValueError`."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    photos = domain.photos()
    if len(photos) <= num_test:
        raise ValueError(f"{domain.name} has {len(photos)} photos, {num_test} of them are for testing: none is left")
    test = [annotatable(photo.load(), MAX_OF_PHOTO) for photo in photos[:num_test]]
    base = load_checkpoint(model)
    if not num_objects:
        return _outcome(domain, 0, seed, measured(base, test))
    order = in_order_of(seed, photos[num_test:])
    retention = [photo.load() for photo in check_set().photos]
    with tempfile.TemporaryDirectory() as folder:
        examples = annotated(order, num_objects, model, Path(folder))
        begin, cpu = time.monotonic(), time.process_time()
        try:
            candidate = finetune(base, examples, retention, replace(config, seed=seed))
        except TooFewError:
            return _outcome(domain, num_objects, seed, measured(base, test))
    spent = time.monotonic() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    after = measured(candidate.model, test)
    outcome = _outcome(domain, num_objects, seed, after)
    return replace(outcome, seconds=spent[0], cpu_seconds=spent[1], peak_bytes=peak, report=candidate.report.to_dict())


def in_order_of(seed: int, photos: Sequence[Photo]) -> list[Photo]:
    """The order in which a seed's annotator comes by them."""
    return [photos[place] for place in np.random.default_rng((seed, 1)).permutation(len(photos))]


def annotatable(sample: Sample, max_objects: int) -> Sample:
    """The sample with at most `max_objects` objects, the largest."""
    areas = {number: int((target == 1).sum()) for number, target in sample.targets.items()}
    chosen = sorted((n for n in areas if areas[n] >= MIN_AREA), key=lambda n: (-areas[n], n))[:max_objects]
    return replace(sample, targets={number: sample.targets[number] for number in chosen})


def _outcome(domain: Domain, num_objects: int, seed: int, found: Measured) -> FinetuneResult:
    return FinetuneResult(domain.name, num_objects, seed, tuple(one.image for one in found.results), whole_nocs(found))


def whole_nocs(found: Measured) -> tuple[tuple[int, int], ...]:
    """Of each object: clicks to 85 % and to 90 %, as whole numbers for JSON."""
    return tuple((int(at85), int(at90)) for at85, at90 in found.nocs)


def resumed(path: Path, kind: str, subject: dict[str, Any], read: Callable[[dict[str, Any]], R]) -> list[R]:
    """What an earlier run left in its file, which is started if it is not there. See `resume_journal`."""
    if not path.exists():
        start_journal(path, kind, subject, about={"software": software_versions()})
        return []
    return resume_journal(path, kind, subject, read, "name another --output")


def in_own_process(run: Callable[..., R], *arguments: Any) -> R:
    """What a function returns that is called in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        return pool.submit(run, *arguments).result()


class Outcome(Protocol):
    """What the test objects needed, on the base model or after a fine-tuning."""

    @property
    def images(self) -> tuple[str, ...]:
        """Of each test object."""

    @property
    def nocs(self) -> tuple[tuple[int, int], ...]:
        """Of each test object: clicks to 85 % and to 90 %."""

    @property
    def report(self) -> Mapping[str, Any] | None:
        """`train.finetune.Report`."""


def changed_cells(base: Outcome, group: Sequence[Outcome]) -> str:
    """Cells of a table about the fine-tunings of all seeds: NoC@85, NoC@90, the change of their mean against the base
    with its interval over photos, and that of the retention set."""
    start = np.array(base.nocs, np.float64).mean(axis=1)
    nocs = np.stack([np.array(one.nocs, np.float64) for one in group])  # (seeds, objects, 2)
    at85, at90 = nocs.mean(axis=(0, 1))
    changes = (nocs.mean(axis=(0, 2)) - start)[:, None]
    [(low, high)] = bootstrap_intervals(changes, base.images)
    last = [one.report["retention"][-1] for one in group if one.report]
    retention = sum(one["new"] - one["old"] for one in last) / len(group)
    change = f"{changes.mean():+.2f} ({changes.mean() / start.mean():+.0%})"
    return f"{at85:.2f} | {at90:.2f} | {change} | {low:+.2f} to {high:+.2f} | {retention:+.2f}"


def tables(outcomes: Sequence[FinetuneResult]) -> str:
    """Markdown: clicks by domain and number of objects, then what a fine-tuning took."""
    lines = [
        "| domain | objects | seeds | NoC@85 | NoC@90 | change of their mean | 95 % interval | retention | promoted |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    cost = ["| objects | fine-tunings | seconds | CPU seconds | peak memory |", "|---:|---:|---:|---:|---:|"]
    for name in dict.fromkeys(one.domain for one in outcomes):
        base = next((one for one in outcomes if one.domain == name and not one.num_objects), None)
        if base is None:
            continue
        at85, at90 = np.mean(base.nocs, axis=0)
        lines.append(f"| {name} ({len(base.nocs)} objects) | base | | {at85:.2f} | {at90:.2f} | | | | |")
        for count, group in _by_count(outcomes, name):
            promoted = sum(bool(one.report["worth_promoting"]) for one in group if one.report)
            cells = changed_cells(base, group)
            lines.append(f"| | {count} | {len(group)} | {cells} | {promoted} of {len(group)} |")
    trained = [one for one in outcomes if one.report]
    for count in sorted({one.num_objects for one in trained}):
        group = [one for one in trained if one.num_objects == count]
        seconds, cpu = (np.median([getattr(one, key) for one in group]) for key in ("seconds", "cpu_seconds"))
        peak = max(one.peak_bytes for one in group)
        cost.append(f"| {count} | {len(group)} | {seconds:.0f} | {cpu:.0f} | {peak / 2**30:.1f} GB |")
    return "\n".join([*lines, "", *cost, ""])


def _by_count(outcomes: Sequence[FinetuneResult], domain: str) -> Iterator[tuple[int, list[FinetuneResult]]]:
    of_domain = [one for one in outcomes if one.domain == domain and one.num_objects]
    for count in sorted({one.num_objects for one in of_domain}):
        yield count, [one for one in of_domain if one.num_objects == count]


def plot(outcomes: Sequence[FinetuneResult], path: Path) -> None:
    """NoC@85 and NoC@90 against the number of annotated objects: a panel per domain, means and the range of seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from bench.plots import COLOURS, STYLE

    names = list(dict.fromkeys(one.domain for one in outcomes))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(names) + 0.4, 2.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            groups = [(0, [one for one in outcomes if one.domain == name and not one.num_objects])]
            groups = [(count, group) for count, group in [*groups, *_by_count(outcomes, name)] if group]
            for index, percent in enumerate(RULES.thresholds):
                means = [[np.mean(one.nocs, axis=0)[index] for one in group] for _, group in groups]
                counts = [count for count, _ in groups]
                centre = [float(np.mean(each)) for each in means]
                axes.plot(counts, centre, color=COLOURS[index], marker="o", label=f"NoC@{percent}")
                axes.fill_between(
                    counts, [min(e) for e in means], [max(e) for e in means], color=COLOURS[index], alpha=0.2
                )
                axes.axhline(centre[0], color=COLOURS[index], linestyle=":", linewidth=0.8)
            axes.set_title(name)
            axes.set_xlabel("annotated objects (0: the base model)")
            axes.set_ylim(bottom=0)
        figure.axes[0].set_ylabel("clicks on test images")
        figure.axes[0].legend()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit status: 0, or 2 for wrong input."""
    recipe = FinetuneConfig()
    parser = CommandParser(description=__doc__)
    parser.add_argument("--domain", nargs="+", required=True, metavar="NAME=LAYOUT:FOLDER[@KIND]")
    parser.add_argument("--model", default="bundled", help="the base model (default: bundled)")
    parser.add_argument("--objects", type=positive, nargs="+", default=[10, 20, 50, 100], help="default: 10 20 50 100")
    parser.add_argument("--seeds", type=positive, default=3, help="(default: 3)")
    parser.add_argument("--test-photos", type=positive, default=40, help="of each domain (default: 40)")
    parser.add_argument("--threads", type=positive, default=2, help="(default: 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune.jsonl"), help="what is resumed, too")
    parser.add_argument("--plot", type=Path, help="picture to write (.png, .pdf or .svg)")
    for name in TRIED:
        default = getattr(recipe, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"of the recipe (default: {default:g})")
    options = parser.parse_args(arguments)
    try:
        config = replace(recipe, **{name: getattr(options, name) for name in TRIED})
        domains = [Domain.parse(text) for text in options.domain]
        subject = {
            "model": checkpoint_sha256(options.model),
            "recipe": asdict(config),
            "test photos": options.test_photos,
            "rules": RULES.to_dict(),
        }
        outcomes = resumed(options.output, FORMAT, subject, FinetuneResult.from_dict)
        outcomes = _measure(domains, options, config, outcomes)
        print(tables(outcomes))
        if options.plot:
            plot(outcomes, options.plot)
    except (ValueError, OSError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(
    domains: Sequence[Domain], options: argparse.Namespace, config: FinetuneConfig, outcomes: list[FinetuneResult]
) -> list[FinetuneResult]:
    """All that is still missing, each in a process of its own, so that its memory is its own."""
    done = {(one.domain, one.num_objects, one.seed) for one in outcomes}
    wanted = [(domain, 0, 0) for domain in domains]
    wanted += [(d, count, seed) for seed in range(options.seeds) for d in domains for count in options.objects]
    for domain, count, seed in wanted:
        if (domain.name, count, seed) in done:
            continue
        arguments = (domain, count, seed, options.model, options.test_photos, config, options.threads)
        outcome = in_own_process(run_one, *arguments)
        append_entry(options.output, asdict(outcome))
        outcomes.append(outcome)
        means = " / ".join(f"{mean:.2f}" for mean in np.mean(outcome.nocs, axis=0))
        print(
            f"{domain.name}, {count} objects, seed {seed}: NoC@85 / 90 {means}, {outcome.seconds:.0f} s",
            file=sys.stderr,
        )
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
