"""Evaluation sets, read from their folders as their authors publish them, and a team's own annotations.

`python bench/noc.py --list` prints them all; `registry.py` is the table. One file for each way to lie on disk.
"""

from skipclick.evaluation.datasets.registry import (
    LAYOUTS,
    EvaluationSet,
    Layout,
    check_set,
    describe_datasets,
    open_dataset,
)
from skipclick.evaluation.datasets.sample import Photo, Sample, Targets

__all__ = [
    "LAYOUTS",
    "EvaluationSet",
    "Layout",
    "Photo",
    "Sample",
    "Targets",
    "check_set",
    "describe_datasets",
    "open_dataset",
]
