"""What annotators who draw wrong masks do to a fine-tuning: clicks on photos that nobody annotated, by their share.

    python bench/learning/poisoned.py --domain cloth=folder:train_real@part --output runs/poisoned.jsonl
    python bench/learning/poisoned.py ... --percent 50 --wrong half dilated --seeds 3

A domain is what bench/learning/finetune.py calls so. Its annotated photos are divided among some annotators; of the
objects, a share is accepted by those who draw wrongly, always in the same way: the left half of each object ("half"),
or more than there is ("dilated"). The others draw the true masks. Who draws wrongly is not told to the fine-tuning,
and they may be several. With --percent 100 one annotator supplies all objects: so it was when the annotation of a task
that was changed last counted, and somebody annotated every task once more.

Measured on true masks of the test photos: the base model and the candidate, promoted or not. The table says what the
gate decided ("promoted"), and what it had decided without looking at annotators ("without the rule").
Each fine-tuning runs in a process of its own. An interrupted run goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from bench.cli import CommandParser
from bench.learning.finetune import (
    MAX_OF_PHOTO,
    Domain,
    annotatable,
    changed_cells,
    in_order_of,
    in_own_process,
    resumed,
    whole_nocs,
)
from bench.models import checkpoint_sha256
from skipclick import load_checkpoint
from skipclick.evaluation.datasets import Sample, check_set
from skipclick.evaluation.journal import append_entry
from skipclick.evaluation.option_types import positive
from train.finetune import Example, FinetuneConfig, finetune
from train.finetune.gate import RULES, measured, promotion_gate

FORMAT = "skipclick-poisoned-journal-1"
DILATED_BY = 0.15  # of the side of a square with the object's area


@dataclass(frozen=True)
class Case:
    """One fine-tuning; with no `percent`, the base model is measured."""

    domain: str
    wrong: str
    percent: int | None
    seed: int


@dataclass(frozen=True)
class PoisonedResult:
    """What came of a case."""

    case: Case
    images: tuple[str, ...]
    """Of each test object."""
    nocs: tuple[tuple[int, int], ...]
    """Of each test object: clicks to 85 % and to 90 %."""
    promoted: bool = False
    promoted_without_rule: bool = False
    """By the clicks on all held-out objects and on the retention set alone."""
    report: Mapping[str, Any] | None = None
    """`train.finetune.Report`."""
    seconds: float = 0.0

    @staticmethod
    def from_dict(content: dict[str, Any]) -> PoisonedResult:
        """From its `asdict`, read from JSON."""
        changed = {"case": Case(**content["case"]), "images": tuple(content["images"])}
        return PoisonedResult(**content | changed | {"nocs": tuple(map(tuple, content["nocs"]))})


def left_half(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of a mask, bool (H, W), the pixels up to the column that divides them into two halves."""
    columns = np.nonzero(mask)[1]
    half = mask.copy()
    half[:, int(np.median(columns)) + 1 :] = False
    return half


def dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask, bool (H, W), with a margin around it."""
    margin = max(1, round(DILATED_BY * float(np.sqrt(mask.sum()))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(np.bool_)


WRONG: dict[str, Callable[[NDArray[np.bool_]], NDArray[np.bool_]]] = {"half": left_half, "dilated": dilated}


def annotator_of_photos(num_objects: Sequence[int], percent: int, num_annotators: int) -> list[tuple[str, bool]]:
    """For photos with so many objects each: who annotates it, and whether wrongly.

    Those who draw wrongly are as many of the annotators as their share says, at least one where it is not 0. With
    100 percent it is one who annotates all."""
    if percent == 100:
        return [("wrong 1", True)] * len(num_objects)
    num_wrong = min(num_annotators - 1, max(1, round(percent / 100 * num_annotators))) if percent else 0
    counts = {True: 0, False: 0}  # objects so far, drawn wrongly and truly
    turns = {True: 0, False: 0}
    who = []
    total = sum(num_objects)
    for number in num_objects:
        is_wrong = num_wrong > 0 and counts[True] < percent / 100 * total and _is_due(counts, number, percent)
        counts[is_wrong] += number
        turns[is_wrong] += 1
        of_kind = num_wrong if is_wrong else num_annotators - num_wrong
        who.append((f"{'wrong' if is_wrong else 'true'} {turns[is_wrong] % of_kind + 1}", is_wrong))
    return who


def _is_due(counts: Mapping[bool, int], number: int, percent: int) -> bool:
    """Whether the next photo is one to draw wrongly, so that their share is held all along."""
    return counts[True] * 100 <= percent * (counts[True] + counts[False] + number)


def examples_of(
    samples: Sequence[Sample], percent: int, num_annotators: int, wrong: Callable[..., NDArray[np.bool_]]
) -> list[Example]:
    """What the annotators accept of the samples' objects."""
    who = annotator_of_photos([len(sample.targets) for sample in samples], percent, num_annotators)
    return [
        Example(
            sample.name,
            _fixed(sample.image),
            _fixed((wrong(true) if is_wrong else true).astype(np.int8)),
            annotator=name,
        )
        for sample, (name, is_wrong) in zip(samples, who, strict=True)
        for true in (target == 1 for target in sample.targets.values())
    ]


def _fixed(value: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: value


def samples_to_annotate(domain: Domain, seed: int, num_test: int, num_objects: int, of_photo: int) -> list[Sample]:
    """The photos after those for testing, in the seed's order, until they hold so many objects. Raises `ValueError`."""
    samples: list[Sample] = []
    left = num_objects
    for photo in in_order_of(seed, domain.photos()[num_test:]):
        sample = annotatable(photo.load(), min(of_photo, left))
        if sample.targets:
            samples.append(sample)
            left -= len(sample.targets)
        if not left:
            return samples
    raise ValueError(f"{domain.name}: {num_objects} objects were asked for, {left} are missing")


def run_one(case: Case, domain: Domain, options: argparse.Namespace, config: FinetuneConfig) -> PoisonedResult:
    """Annotate, fine-tune and measure; meant for a process of its own. Raises `ValueError`."""
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    base = load_checkpoint(options.model)
    test = [annotatable(photo.load(), MAX_OF_PHOTO) for photo in domain.photos()[: options.test_photos]]
    if case.percent is None:
        found = measured(base, test)
        return PoisonedResult(case, tuple(one.image for one in found.results), whole_nocs(found))
    samples = samples_to_annotate(domain, case.seed, options.test_photos, options.objects, options.of_photo)
    examples = examples_of(samples, case.percent, options.annotators, WRONG[case.wrong])
    retention = [photo.load() for photo in check_set().photos]
    begin = time.monotonic()
    candidate = finetune(base, examples, retention, replace(config, seed=case.seed))
    seconds = time.monotonic() - begin
    found, report = measured(candidate.model, test), candidate.report
    without, _ = promotion_gate(report.held_out, report.retention, config.retention_margin)
    images = tuple(one.image for one in found.results)
    return PoisonedResult(case, images, whole_nocs(found), report.worth_promoting, without, report.to_dict(), seconds)


def table(outcomes: Sequence[PoisonedResult]) -> str:
    """Markdown: what the base and the candidates need on true masks, and what the gate decided."""
    lines = [
        "| domain | wrong masks | of the objects | NoC@85 | NoC@90 | change of their mean | 95 % interval | "
        "retention | without the rule | promoted |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for base in (one for one in outcomes if one.case.percent is None):
        at85, at90 = np.mean(base.nocs, axis=0)
        lines.append(f"| {base.case.domain} ({len(base.nocs)} objects) | base | | {at85:.2f} | {at90:.2f} | | | | | |")
        for wrong, percent, group in _groups(outcomes, base.case.domain):
            promotions = [sum(one.promoted_without_rule for one in group), sum(one.promoted for one in group)]
            cells = [changed_cells(base, group), *(f"{promoted} of {len(group)}" for promoted in promotions)]
            lines.append(f"| | {wrong if percent else 'none'} | {percent} % | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _groups(outcomes: Sequence[PoisonedResult], domain: str) -> Iterator[tuple[str, int, list[PoisonedResult]]]:
    """The seeds of each kind and share."""
    of_domain = [one for one in outcomes if one.case.domain == domain and one.case.percent is not None]
    for wrong, percent in sorted({(one.case.wrong, one.case.percent or 0) for one in of_domain}):
        yield wrong, percent, [one for one in of_domain if (one.case.wrong, one.case.percent) == (wrong, percent)]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit status: 0, or 2 for wrong input."""
    recipe = FinetuneConfig()
    parser = CommandParser(description=__doc__)
    parser.add_argument("--domain", nargs="+", required=True, metavar="NAME=LAYOUT:FOLDER[@KIND]")
    parser.add_argument("--model", default="bundled", help="the base model (default: bundled)")
    parser.add_argument("--wrong", nargs="+", choices=list(WRONG), default=["half"], help="(default: half)")
    percents = [*range(51), 100]
    parser.add_argument("--percent", type=int, nargs="+", choices=percents, default=[0, 5, 20, 50], metavar="N")
    parser.add_argument("--annotators", type=positive, default=5, help="(default: 5)")
    parser.add_argument("--objects", type=positive, default=80, help="that are annotated (default: 80)")
    parser.add_argument("--of-photo", type=positive, default=2, help="annotated objects of a photo (default: 2)")
    parser.add_argument("--seeds", type=positive, default=1, help="(default: 1)")
    parser.add_argument("--test-photos", type=positive, default=20, help="of each domain (default: 20)")
    parser.add_argument("--threads", type=positive, default=1, help="(default: 1)")
    parser.add_argument("--steps", type=positive, default=recipe.steps, help=f"(default: {recipe.steps})")
    parser.add_argument("--max-seconds", type=float, default=recipe.max_seconds, help="of learning, each")
    parser.add_argument("--output", type=Path, default=Path("runs/poisoned.jsonl"), help="what is resumed, too")
    options = parser.parse_args(arguments)
    try:
        if options.annotators < 2:
            raise ValueError("--annotators: it takes at least 2")
        config = replace(recipe, steps=options.steps, max_seconds=options.max_seconds)
        print(table(measure([Domain.parse(text) for text in options.domain], options, config)))
    except (ValueError, OSError) as error:
        print(f"poisoned: {error}", file=sys.stderr)
        return 2
    return 0


def measure(domains: Sequence[Domain], options: argparse.Namespace, config: FinetuneConfig) -> list[PoisonedResult]:
    """All cases; those that the output file holds are not measured again."""
    chosen = ("objects", "of_photo", "annotators", "test_photos")
    subject: dict[str, Any] = {
        "model": checkpoint_sha256(options.model),
        "recipe": asdict(config),
        "rules": RULES.to_dict(),
        **{name: getattr(options, name) for name in chosen},
    }
    outcomes = resumed(options.output, FORMAT, subject, PoisonedResult.from_dict)
    by_name = {domain.name: domain for domain in domains}
    wanted = [Case(name, "", None, 0) for name in by_name]
    wanted += [
        Case(name, wrong, percent, seed)
        for seed in range(options.seeds)
        for name in by_name
        for percent in options.percent
        for wrong in (options.wrong if percent else options.wrong[:1])
    ]
    for case in wanted:
        if any(one.case == case for one in outcomes):
            continue
        outcome = in_own_process(run_one, case, by_name[case.domain], options, config)
        append_entry(options.output, asdict(outcome))
        outcomes.append(outcome)
        means = " / ".join(f"{mean:.2f}" for mean in np.mean(outcome.nocs, axis=0))
        print(f"{case}: NoC@85 / 90 {means}, {outcome.seconds:.0f} s", file=sys.stderr)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
