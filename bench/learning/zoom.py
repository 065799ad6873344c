"""Which crop to look at: rules of zoom-in (`skipclick.zoom`) compared on the photos that training holds out.

    python bench/learning/zoom.py measure --data /data/own --model bundled --output runs/zoom.jsonl
    python bench/learning/zoom.py table runs/zoom.jsonl

Of each photo up to two objects that a crop could bring closer are clicked under every rule, at most 8 times and until
they reach 90 %. What several rules do alike is done once. The table has intervals of a paired bootstrap over photos
against the whole photo and against the default rule; an object that fails counts as 8 clicks. An interrupted run can be
read as it is, and another run of the same command adds the photos that are still missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.models import ModelSpec, load_model, use_deterministic_kernels
from skipclick import Click, Predictor
from skipclick.evaluation.bootstrap import bootstrap_intervals
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.evaluate import extent_of
from skipclick.features import ImageFeatures
from skipclick.masks import Box
from skipclick.metrics import mask_iou, noc
from skipclick.simulation import next_click
from skipclick.zoom import (
    DEFAULT_RULE,
    ZoomRequest,
    ZoomState,
    around,
    likely_view,
    new_view,
    next_view,
    predict_zoomed,
    whole_view,
)
from train.validate import held_out_photos

NUM_CLICKS = 8
TARGET_IOU = 0.90
PERCENTS = (85, 90)
LARGEST_EXTENT = 0.64  # with a margin of 1.4 a crop of nine tenths
OBJECTS_PER_PHOTO = 2

Choose = Callable[[ZoomState | None, Sequence[Click], tuple[int, int]], Box]
"""Chooses the view for the last click, as `next_view` does."""


def by(**changes: Any) -> Choose:
    """The default rule with some constants changed."""
    return partial(next_view, rule=replace(DEFAULT_RULE, **changes))


def always_whole(previous: ZoomState | None, clicks: Sequence[Click], size: tuple[int, int]) -> Box:
    return whole_view(size)


def never_kept(previous: ZoomState | None, clicks: Sequence[Click], size: tuple[int, int]) -> Box:
    """A new crop at each click."""
    if previous is None or previous.mask.empty:
        return whole_view(size)
    return new_view(around(clicks, size, previous.mask.box), size, previous.resolution)


def around_last_click(previous: ZoomState | None, clicks: Sequence[Click], size: tuple[int, int]) -> Box:
    """No crop that is known before the click: each new one is made around the click, too."""
    return whole_view(size) if previous is None else likely_view(previous, clicks, size)


RULES: Mapping[str, Choose] = {
    "whole photo": always_whole,
    "default": by(),
    **{f"margin {value:g}": by(margin=value) for value in (1.2, 1.8, 2.4)},
    **{f"largest {value:g}": by(largest=value) for value in (0.6, 0.75)},
    **{f"elongation {value:g}": by(elongation=value) for value in (0.5, 1.0)},
    **{f"smallest {value:g}": by(smallest=value) for value in (0.1, 0.5)},
    **{f"loosest {value:g}": by(loosest=value) for value in (1.3, 3.0)},
    "never kept": never_kept,
    "around the last click": around_last_click,
    **{f"local from {value}": by(local_from=value) for value in (2, 5)},
    **{f"settled {value:g}": by(settled=value) for value in (0.0, 0.8, 0.9)},
    **{f"local {value:g}": by(local=value) for value in (0.5, 1.0)},
    "never local": by(local_from=NUM_CLICKS + 1),
}


@dataclass(frozen=True)
class Outcome:
    """One object under one rule."""

    photo: str
    object_id: int
    rule: str
    extent: float
    ious: Sequence[float]
    crops: int
    """Different crops that were encoded."""
    foreseen: float
    """Part of the clicks on a crop that was known before the click."""


@dataclass(frozen=True, eq=False)
class Step:
    """What one click led to."""

    state: ZoomState
    iou: float
    next_click: Click


class Session:
    """One object, clicked under several rules. Clicks on the same views are made once."""

    def __init__(
        self,
        predictor: Predictor,
        encode: Callable[[Box], ImageFeatures],
        image: NDArray[np.uint8],
        target: NDArray[np.int8],
    ) -> None:
        self._predictor = predictor
        self._encode = encode
        self._target = target
        self._size = (image.shape[0], image.shape[1])
        self._steps: dict[tuple[Box, ...], Step] = {}

    def run(self, choose: Choose) -> tuple[list[float], list[Box], int]:
        """IoU after each click, the views, and how many of the crops were known before the click."""
        clicks = [next_click(np.zeros(self._size, np.bool_), self._target, [])]
        state: ZoomState | None = None
        ious: list[float] = []
        views: list[Box] = []
        foreseen = 0
        while len(ious) < NUM_CLICKS and (not ious or ious[-1] < TARGET_IOU):
            views.append(choose(state, clicks, self._size))
            if state is not None and views[-1] != whole_view(self._size):
                foreseen += likely_view(state, clicks[:-1], self._size) == views[-1]
            key = tuple(views)
            if key not in self._steps:
                self._steps[key] = self._step(clicks, state, views[-1])
            step = self._steps[key]
            state = step.state
            ious.append(step.iou)
            clicks.append(step.next_click)
        return ious, views, foreseen

    def _step(self, clicks: Sequence[Click], state: ZoomState | None, view: Box) -> Step:
        request = ZoomRequest(self._encode(view), view, self._size, tuple(clicks), state)
        (answer,) = predict_zoomed(self._predictor, [request])
        mask = answer.mask.full()
        clicked = [(int(click.y), int(click.x)) for click in clicks]
        return Step(answer.state, mask_iou(mask, self._target), next_click(mask, self._target, clicked))


def measure(options: argparse.Namespace) -> None:
    """Click the objects of all photos that the output does not hold yet."""
    use_deterministic_kernels("cpu")
    predictor = load_model(ModelSpec(options.model, None, "cpu", "float32", flip=False))
    if not isinstance(predictor, Predictor):
        raise ValueError(f"{options.model} is no model of this project, and zoom-in is only for those")
    done = {outcome.photo for outcome in read_outcomes(options.output)} if options.output.exists() else set()
    photos = [photo for photo in held_out_photos(options.data).photos[: options.limit] if photo.name not in done]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as file:
        for photo in tqdm(photos, unit="photo", disable=None):
            sample = photo.load()
            outcomes = list(click_photo(predictor, sample, options.rules))
            file.write("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))
            file.flush()


def click_photo(predictor: Predictor, sample: Sample, rules: Sequence[str]) -> Iterator[Outcome]:
    """A photo's smaller objects under every rule."""
    encode = lru_cache(maxsize=64)(lambda view: predictor.encode(sample.image[view[0] : view[2], view[1] : view[3]]))
    extents = {object_id: extent_of(target) for object_id, target in sample.targets.items()}
    smaller = [object_id for object_id, extent in extents.items() if 0 < extent < LARGEST_EXTENT]
    for object_id in smaller[:OBJECTS_PER_PHOTO]:
        session = Session(predictor, encode, sample.image, sample.targets[object_id])
        for name in rules:
            ious, views, foreseen = session.run(RULES[name])
            on_crops = [view for view in views if view != whole_view((sample.image.shape[0], sample.image.shape[1]))]
            part = foreseen / len(on_crops) if on_crops else 1.0
            yield Outcome(sample.name, object_id, name, extents[object_id], ious, len(set(on_crops)), part)


def read_outcomes(path: Path) -> list[Outcome]:
    return [Outcome(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(options: argparse.Namespace) -> None:
    """Print the rules side by side, over the objects that all of them clicked."""
    by_rule: dict[str, dict[tuple[str, int], Outcome]] = {}
    for outcome in (one for path in options.outcomes for one in read_outcomes(path)):
        by_rule.setdefault(outcome.rule, {})[outcome.photo, outcome.object_id] = outcome
    if missing := {"whole photo", "default"} - by_rule.keys():
        raise ValueError(f"the files lack the rule {' and '.join(sorted(missing))}, with which the others are compared")
    keys = sorted(set.intersection(*(set(outcomes) for outcomes in by_rule.values())))
    photos = [photo for photo, _ in keys]
    figures = {rule: np.array([_figures(outcomes[key]) for key in keys]) for rule, outcomes in by_rule.items()}
    print(f"{len(keys)} objects of {len(set(photos))} photos\n")
    print(
        "| rule | NoC@85 | NoC@90 | clicks, against the whole photo | against the default | mIoU, against the default "
        "| crops per object | foreseen |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for rule, values in figures.items():
        clicks, quality = values[:, :2].mean(axis=1), 100 * values[:, 2]
        cells = [
            *(f"{mean:.2f}" for mean in values[:, :2].mean(axis=0)),
            _change(clicks - figures["whole photo"][:, :2].mean(axis=1), photos),
            _change(clicks - figures["default"][:, :2].mean(axis=1), photos),
            _change(quality - 100 * figures["default"][:, 2], photos),
            f"{values[:, 3].mean():.2f}",
            f"{values[:, 4].mean():.0%}",
        ]
        print(f"| {rule} | " + " | ".join(cells) + " |")


def _figures(outcome: Outcome) -> tuple[float, ...]:
    """NoC at both thresholds, mean IoU over the clicks, the last one standing for those not needed, crops, foreseen."""
    ious = [*outcome.ious, *[outcome.ious[-1]] * (NUM_CLICKS - len(outcome.ious))]
    nocs = (noc(outcome.ious, percent / 100, NUM_CLICKS) for percent in PERCENTS)
    return *nocs, float(np.mean(ious)), outcome.crops, outcome.foreseen


def _change(values: NDArray[np.float64], photos: Sequence[str]) -> str:
    ((low, high),) = bootstrap_intervals(values[:, None], photos)
    return f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error where the input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"zoom: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    clicks = commands.add_parser("measure", help="click objects under the rules")
    clicks.add_argument(
        "--data", nargs="+", required=True, metavar="SOURCE", help="as for training: its held-out photos"
    )
    clicks.add_argument("--model", default="bundled", help="'bundled' or a checkpoint file (default: bundled)")
    clicks.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    clicks.add_argument("--limit", type=int, metavar="N", help="only the first N photos")
    clicks.add_argument(
        "--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE", help="(default: all)"
    )
    clicks.set_defaults(run=measure)
    comparison = commands.add_parser("table", help="compare what was measured")
    comparison.add_argument("outcomes", nargs="+", type=Path, metavar="FILE.jsonl")
    comparison.set_defaults(run=table)
    return parser


if __name__ == "__main__":
    sys.exit(main())
