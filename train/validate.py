"""Validation of a model in training: NoC, by the benchmark's code, on photos that are not trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from skipclick import Predictor
from skipclick.evaluation.datasets import Sample, open_dataset, sample
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, left_out_for
from skipclick.evaluation.evaluate import Rules, evaluate
from skipclick.metrics import mean_iou_at, mean_noc
from skipclick.model import SkipClick
from train.distributed import Group
from train.sources import Photo, open_sources

RULES = Rules(flip=False, thresholds=(85, 90), target_iou=0.90)
"""The paper's protocol without mirrored photos; an object is clicked until it reaches 90 %."""


@dataclass(frozen=True)
class ValidationSet:
    """Photos to validate on; `loads` read one each and raise `ValueError` if it is broken."""

    name: str
    loads: Sequence[Callable[[], Sample]]
    left_out: tuple[LeftOut, ...] = ()
    """What its files name but cannot be used, as far as that is known before a photo is read."""


def held_out_set(data: Sequence[str], limit: int | None) -> ValidationSet | None:
    """The first photos that training holds out of its sources; None, with a warning, if there are none to use."""
    try:
        listing = held_out_photos(data)
    except ValueError as error:  # a small source, or a damaged one
        print(f"train: no validation on held-out photos: {error}", file=sys.stderr)
        return None
    return ValidationSet("held out", [photo.load for photo in listing.photos[:limit]], tuple(listing.left_out))


def held_out_photos(data: Sequence[str]) -> Listing[sample.Photo]:
    """The photos that training holds out of its sources, as photos of the benchmark, on which each root object is to
    be segmented. Raises `ValueError` if a source holds out none."""
    sources = open_sources(data, "held_out")
    photos = [photo for source in sources.parts for photo in source.photos]
    return Listing([sample.Photo(photo.name, partial(_content, photo)) for photo in photos], sources.left_out)


def named_set(name: str, folder: Path, limit: int | None) -> ValidationSet:
    """A data set of the benchmark. Raises `ValueError` if the folder is not of this layout."""
    dataset = open_dataset(name, folder, limit)
    return ValidationSet(name, [photo.load for photo in dataset.photos], dataset.left_out)


def _content(photo: Photo) -> sample.Content:
    image, scene = photo.load()
    masks = {index: scene.mask(part) for index, part in enumerate(scene.objects, 1) if part.parent is None}
    return sample.Content(image, sample.mask_targets(masks, scene.ignored), scene.left_out)


def validate(
    model: SkipClick,
    sets: Sequence[ValidationSet],
    group: Group,
    left_out: set[LeftOut],
    *,
    rules: Rules = RULES,
    dtype: str = "float32",
    show_progress: bool = False,
) -> dict[str, float]:
    """NoC at the thresholds of the rules and mIoU after clicks 1 and 5, by name, for each set and as means over sets.

    The processes of a group share the photos, and all get the same figures. Photos and annotations that cannot be used
    are added to `left_out`.
    """
    predictor = Predictor(model, device=group.device, dtype=dtype, flip=rules.flip)
    figures: dict[str, float] = {}
    for one in sets:
        mine = tqdm(one.loads[group.rank :: group.size], one.name, unit="photo", disable=not show_progress)
        ious = [result.ious for result in evaluate(predictor, _readable(mine, left_out), rules)]
        together = [ious for part in group.gathered(ious) for ious in part]
        figures |= {f"{one.name}/{metric}": value for metric, value in _figures(together, rules).items()}
    for metric in _figures([[1.0]], rules):
        figures[metric] = float(np.mean([figures[f"{one.name}/{metric}"] for one in sets]))
    return figures


def _readable(loads: Iterable[Callable[[], Sample]], left_out: set[LeftOut]) -> Iterator[Sample]:
    for load in loads:
        try:
            loaded = load()
        except ValueError as error:
            left_out.add(left_out_for(error))
            continue
        left_out.update(loaded.left_out)
        yield loaded


def _figures(ious: Sequence[Sequence[float]], rules: Rules) -> dict[str, float]:
    """Without objects, as if all had failed."""
    ious = ious or [[0.0]]
    nocs = {f"NoC@{percent}": mean_noc(ious, percent / 100, rules.num_clicks) for percent in rules.thresholds}
    return nocs | {f"mIoU@{count}": mean_iou_at(ious, count) for count in (1, 5)}
