"""What immediate adaptation brings: clicks on each object of a sequence, by a head adapted to all objects before it.

    python bench/learning/finetune_immediate.py --domain horses=folder:train_real@object cloth=folder:train_real@part \\
        --model base.safetensors --objects 40 --output runs/immediate.jsonl

A domain is that of `finetune.py`. Its photos come in an order drawn by the seed, of each its largest objects. The
simulated annotator of `finetune.py` clicks one object after the other, until 90 % IoU or 20 clicks, which are counted.
What is accepted (the brush where 20 clicks do not get there) goes into an adaptation, whose head answers for
the next object. Beside it the same objects are clicked on the base model, which stays as it is.

Printed: clicks to 85 % and to 90 % of both over the whole sequence and over its second half, where more has been
learnt; the change of their mean with a paired bootstrap interval over photos; the same for the retention set (the
check set), base against the head after the sequence; seconds (median) and steps of an adaptation. Each sequence
becomes a line of --output, with its settings. To find what steps are worth on any machine, give them time:
--max-seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from bench.cli import CommandParser
from bench.learning.finetune import MAX_OF_PHOTO, Domain, accepted_mask, annotatable, in_order_of, whole_nocs
from bench.models import checkpoint_sha256
from skipclick import Predictor, load_checkpoint
from skipclick.evaluation.bootstrap import bootstrap_intervals
from skipclick.evaluation.datasets import Photo, Sample, check_set
from skipclick.evaluation.evaluate import evaluate
from skipclick.evaluation.option_types import positive
from skipclick.evaluation.results import ObjectResult
from skipclick.evaluation.versions import software_versions
from skipclick.model import SkipClick
from train.finetune import Example
from train.finetune.adapt import AdaptConfig, Adapted, adapt
from train.finetune.gate import RULES, Measured, measured

OF_RECIPE = ("steps", "batch_size", "views", "learning_rate", "replay", "max_seconds", "precision")
OF_ADAPTATION = ("share", "num_images")
"""What the command line can change."""

Nocs = tuple[int, int]
"""Clicks to 85 % and to 90 %."""


@dataclass(frozen=True)
class ClickCounts:
    """What the same objects needed on the base and on an adapted model."""

    images: tuple[str, ...]
    """Of each object."""
    base: tuple[Nocs, ...]
    adapted: tuple[Nocs, ...]

    @staticmethod
    def by(base: Measured, adapted: Measured) -> ClickCounts:
        """From two measurements of the same objects."""
        return ClickCounts(tuple(one.image for one in base.results), whole_nocs(base), whole_nocs(adapted))

    def later(self, share: float) -> ClickCounts:
        """The objects after this share of them."""
        first = round(share * len(self.images))
        return ClickCounts(self.images[first:], self.base[first:], self.adapted[first:])


@dataclass(frozen=True)
class SequenceResult:
    """One sequence of objects, clicked on both models."""

    domain: str
    seed: int
    objects: ClickCounts
    retention: ClickCounts
    """By the base, and by the last adapted model."""
    seconds: tuple[float, ...]
    """Of each adaptation."""
    num_steps: int
    """Of all of them."""


def objects_of(photos: Sequence[Photo], count: int) -> Iterator[Sample]:
    """Photo by photo until they hold `count` objects, of each photo `MAX_OF_PHOTO` at most. Raises `ValueError`."""
    for photo in photos:
        sample = annotatable(photo.load(), min(count, MAX_OF_PHOTO))
        count -= len(sample.targets)
        yield sample
        if not count:
            return
    raise ValueError(f"--objects: the photos hold {count} fewer")


def run_sequence(
    domain: Domain,
    base: SkipClick,
    num_objects: int,
    seed: int,
    config: AdaptConfig,
    retention: Callable[[SkipClick], Measured],
) -> SequenceResult:
    """Annotate, object by object. retention: measures a model there. Raises `ValueError`."""
    order = in_order_of(seed, domain.photos())
    config = replace(config, recipe=replace(config.recipe, seed=seed))
    state, plain = Adapted(base), Predictor(base)
    results: tuple[list[ObjectResult], list[ObjectResult]] = ([], [])  # by the base, by the adapted
    seconds: list[float] = []
    for sample in objects_of(order, num_objects):
        accepted: list[Example] = []
        for number, target in sample.targets.items():
            one, adapted = replace(sample, targets={number: target}), Predictor(state.model)
            by_base, by_adapted = (next(evaluate(predictor, [one], RULES)) for predictor in (plain, adapted))
            results[0].append(by_base)
            results[1].append(by_adapted)
            accepted.append(example(sample, accepted_mask(adapted, one, by_adapted)))
            begin = time.monotonic()
            state = adapt(state, base, accepted, config)
            seconds.append(time.monotonic() - begin)
            print(
                f"{domain.name}, seed {seed}, object {len(seconds)} of {num_objects}: {len(by_adapted.ious)} clicks, "
                f"{len(by_base.ious)} on the base; {seconds[-1]:.1f} s",
                file=sys.stderr,
            )
    return SequenceResult(
        domain.name,
        seed,
        objects=ClickCounts.by(Measured(tuple(results[0])), Measured(tuple(results[1]))),
        retention=ClickCounts.by(retention(base), retention(state.model)),
        seconds=tuple(seconds),
        num_steps=state.num_steps,
    )


def example(sample: Sample, mask: NDArray[np.bool_]) -> Example:
    """An accepted mask as it goes into an adaptation."""
    return Example(sample.name, lambda: sample.image, lambda: mask.astype(np.int8))


def table(sequences: Sequence[SequenceResult]) -> str:
    """Markdown: a domain's sequences of all seeds together, their second halves, and the retention after them."""
    lines = [
        "| | objects (photos) | base: NoC@85 / 90 | adapted | change of their mean | 95 % interval | seconds | steps |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(one.domain for one in sequences):
        group = [one for one in sequences if one.domain == name]
        spent = median([seconds for one in group for seconds in one.seconds])
        taken = np.mean([one.num_steps / len(one.seconds) for one in group])
        lines.append(f"| {name} | {_cells([one.objects for one in group])} | {spent:.1f} | {taken:.1f} |")
        lines.append(f"| its second half | {_cells([one.objects.later(0.5) for one in group])} | | |")
        lines.append(f"| retention set after it | {_cells([one.retention for one in group])} | | |")
    return "\n".join([*lines, ""])


def _cells(parts: Sequence[ClickCounts]) -> str:
    """Means over all objects of all parts, and how they changed."""
    base, adapted = (
        np.concatenate([np.array(nocs, np.float64) for nocs in each])
        for each in ([one.base for one in parts], [one.adapted for one in parts])
    )
    images = [image for one in parts for image in one.images]
    changes = (adapted - base).mean(axis=1, keepdims=True)
    [(low, high)] = bootstrap_intervals(changes, images)
    before, after = (" / ".join(f"{mean:.2f}" for mean in nocs.mean(axis=0)) for nocs in (base, adapted))
    share = changes.mean() / base.mean()
    return (
        f"{len(images)} ({len(set(images))}) | {before} | {after} | {changes.mean():+.2f} ({share:+.0%}) "
        f"| {low:+.2f} to {high:+.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit status: 0, or 2 for wrong input."""
    default = AdaptConfig()
    parser = CommandParser(description=__doc__)
    parser.add_argument("--domain", nargs="+", required=True, metavar="NAME=LAYOUT:FOLDER[@KIND]")
    parser.add_argument("--model", default="bundled", help="the base model (default: bundled)")
    parser.add_argument("--objects", type=positive, default=40, help="of each sequence (default: 40)")
    parser.add_argument("--seeds", type=positive, default=1, help="sequences of each domain (default: 1)")
    parser.add_argument("--threads", type=positive, default=2, help="(default: 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/immediate.jsonl"), help="JSON lines are added to it")
    for part, names in ((default.recipe, OF_RECIPE), (default, OF_ADAPTATION)):
        for name in names:
            value = getattr(part, name)
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default: {value})"
            )
    options = parser.parse_args(arguments)
    try:
        recipe = replace(default.recipe, **{name: getattr(options, name) for name in OF_RECIPE})
        config = replace(default, recipe=recipe, **{name: getattr(options, name) for name in OF_ADAPTATION})
        domains = [Domain.parse(text) for text in options.domain]
        print(table(_measure(domains, options, config)))
    except (ValueError, OSError) as error:
        print(f"finetune_immediate: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(domains: Sequence[Domain], options: argparse.Namespace, config: AdaptConfig) -> list[SequenceResult]:
    """All sequences; each is written down as soon as it is finished."""
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    subject: dict[str, Any] = {
        "model": checkpoint_sha256(options.model),
        "settings": asdict(config),
        "rules": RULES.to_dict(),
        "software": software_versions(),
    }
    base = load_checkpoint(options.model)
    pictures = [photo.load() for photo in check_set().photos]

    @cache  # the base stands at the beginning of every sequence
    def retention(model: SkipClick) -> Measured:
        return measured(model, pictures)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    sequences = []
    for seed in range(options.seeds):
        for domain in domains:
            sequences.append(run_sequence(domain, base, options.objects, seed, config, retention))
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(subject | asdict(sequences[-1])) + "\n")
    return sequences


if __name__ == "__main__":
    sys.exit(main())
