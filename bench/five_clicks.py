"""`--protocol coco5`: at most five clicks on COCO's larger objects, as a public click benchmark of September 2026."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bench.published import Column, Table, read_rows
from skipclick.evaluation.datasets import EvaluationSet
from skipclick.evaluation.datasets.left_out import LeftOut
from skipclick.evaluation.datasets.sample import Content
from skipclick.evaluation.evaluate import Rules

MIN_PIXELS = 32 * 32
NUM_OBJECTS = 915
TOO_SMALL = "the object has fewer than 32 x 32 pixels"

FIVE_CLICKS = Table(
    "COCO val2017, five clicks",
    f"a public click benchmark of September 2026, {NUM_OBJECTS} objects on 500 photos of COCO val2017; mIoU in percent",
    tuple(Column(metric, "coco", (metric,)) for metric in ("mIoU@1", "mIoU@3", "mIoU@5", "NoC@85")),
    read_rows("""
SAM 3.1: 72.8 | 76.4 | 77.9 | 2.95
SAM 3: 69.8 | 73.9 | 76.2 | 3.07
SAM 2.1-L: 69.9 | 75.7 | 75.7 | 2.95"""),
)


def five_click_rules(rules: Rules) -> Rules:
    """Five clicks on every object, however good it is before: so mIoU@5 is that of the fifth click."""
    return replace(rules, num_clicks=5, target_iou=1.0)


def larger_objects(dataset: EvaluationSet) -> EvaluationSet:
    """The data set without objects of fewer than `MIN_PIXELS` pixels, which are counted as left out."""
    photos = (replace(photo, read=partial(_read, photo.read, photo.name)) for photo in dataset.photos)
    return replace(dataset, photos=tuple(photos))


def _read(read: Callable[[], Content], name: str) -> Content:
    content = read()
    small = [one for one, target in content.targets.items() if np.count_nonzero(target == 1) < MIN_PIXELS]
    kept = {one: target for one, target in content.targets.items() if one not in small}
    left_out = (LeftOut(TOO_SMALL, f"{name}, object {one}") for one in small)
    return replace(content, targets=kept, left_out=(*content.left_out, *left_out))
