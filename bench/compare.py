"""Did it get better or worse? Two result files, object by object.

Every object's NoC in one file is compared with its NoC in the other, so that the difficulty of the objects cancels.
The interval is a percentile bootstrap over photos, not over objects: objects of one photo share its features and its
difficulty, so photos are drawn with replacement, each with all its objects (and all seeds of jittered clicks).
Neighbouring video frames, as in DAVIS, still count as independent photos: there the intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.bootstrap import CONFIDENCE, PairedDifference, bootstrap_intervals
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results
from skipclick.metrics import noc

GATED_THRESHOLDS = (85, 90)
"""IoU thresholds in percent that decide the exit status. At 95 many objects need all clicks whatever the model does."""

MAY_DIFFER = ("thresholds", "zoom")
"""Rules in which compared runs may differ: whether zoom-in helps is a question like which model is better."""

NUM_CHANGES_SHOWN = 10
NUM_UNPAIRED_SHOWN = 20

ObjectKey = tuple[int | None, str, int]
"""(seed, image, object id)."""


@dataclass(frozen=True)
class ObjectChange:
    """An object's NoC before and after, by threshold in percent."""

    dataset: str
    model: str
    image: str
    object_id: int
    seed: int | None
    old: dict[int, int]
    new: dict[int, int]

    @property
    def size(self) -> int:
        """How much changed, in clicks over the thresholds."""
        return sum(abs(self.new[percent] - self.old[percent]) for percent in self.new)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    differences: list[PairedDifference]
    changes: list[ObjectChange]
    """Every object whose NoC changed, the largest change first."""
    unpaired: list[str]
    """Objects that only one of the two files holds, and which file that is."""

    def regressions(self, tolerance: float) -> list[PairedDifference]:
        """Where NoC got worse by more than `tolerance` clicks with an interval above zero, at the gated thresholds."""
        measured = {difference.percent for difference in self.differences}
        gated = measured & set(GATED_THRESHOLDS) or measured
        return [one for one in self.differences if one.percent in gated and one.is_worse(tolerance)]


def check_comparable(
    old: Results, rules: Mapping[str, Any], models: Sequence[str], datasets: Sequence[str]
) -> list[int]:
    """The IoU thresholds, in percent, of a comparison with a run of these rules, models and data sets.

    Raises ValueError where there can be none: other rules, other data sets, no model in common. This is
    checked before hours of measuring.
    """
    measured = [run.name for run in old.runs]
    if not (len(measured) == len(models) == 1 or set(measured) & set(models)):
        raise ValueError(f"no model in common: the old file has {', '.join(measured)} and this run {', '.join(models)}")
    old_datasets = {one.dataset: None for run in old.runs for one in run.measurements}
    if old_datasets.keys() != set(datasets):
        raise ValueError(
            f"the old file measured {', '.join(old_datasets)} and this run {', '.join(datasets)}: "
            "give the same data sets to both"
        )
    differing = [rule for rule in sorted(old.rules.keys() | rules.keys()) if old.rules.get(rule) != rules.get(rule)]
    if others := [rule for rule in differing if rule not in MAY_DIFFER]:
        sides = "; ".join(f"{rule} was {old.rules.get(rule)} and is {rules.get(rule)}" for rule in others)
        raise ValueError(f"the old file was measured by other rules ({sides}): give the same options to both")
    common = [percent for percent in rules["thresholds"] if percent in old.rules["thresholds"]]
    if not common:
        raise ValueError(f"no common IoU threshold: the old file has {old.rules['thresholds']}")
    return common


def compare(old: Results, new: Results) -> Comparison:
    """Compares two result files. Models are paired by name, or are the only ones of their files.

    Raises ValueError where the files cannot be compared (`check_comparable`) or have no object in common.
    """
    names = list(dict.fromkeys(one.dataset for run in new.runs for one in run.measurements))
    thresholds = check_comparable(old, new.rules, [run.name for run in new.runs], names)
    cap = int(new.rules["num_clicks"])
    differences: list[PairedDifference] = []
    changes: list[ObjectChange] = []
    unpaired: list[str] = []
    for old_run, new_run in _paired_runs(old.runs, new.runs):
        model = new_run.name if new_run.name == old_run.name else f"{old_run.name} → {new_run.name}"
        old_sets, new_sets = _by_dataset(old_run), _by_dataset(new_run)
        for dataset in names:
            before, after = old_sets[dataset], new_sets[dataset]
            keys = [key for key in after if key in before]
            if not keys:
                raise ValueError(f"{dataset}: the old file and this run have no object in common")
            unpaired += [f"{dataset}: {_name(key)}, only in the old file" for key in before.keys() - after.keys()]
            unpaired += [f"{dataset}: {_name(key)}, only in this run" for key in after.keys() - before.keys()]
            old_nocs = _nocs([before[key] for key in keys], thresholds, cap)
            new_nocs = _nocs([after[key] for key in keys], thresholds, cap)
            images = [image for _, image, _ in keys]
            differences += _differences(dataset, model, thresholds, old_nocs, new_nocs, images)
            changes += _changes(dataset, model, thresholds, old_nocs, new_nocs, keys)
    return Comparison(differences, sorted(changes, key=lambda change: -change.size), sorted(unpaired))


def side_by_side(results: Results) -> list[PairedDifference]:
    """The first model of a run (`new`) compared with each other one (`old`) on the objects that both measured."""
    thresholds, cap = results.rules["thresholds"], int(results.rules["num_clicks"])
    first, *others = results.runs
    mine = _by_dataset(first)
    found: list[PairedDifference] = []
    for other in others:
        theirs = _by_dataset(other)
        for dataset in mine.keys() & theirs.keys():
            keys = [key for key in mine[dataset] if key in theirs[dataset]]
            if keys:
                before, after = (_nocs([one[dataset][key] for key in keys], thresholds, cap) for one in (theirs, mine))
                images = [image for _, image, _ in keys]
                found += _differences(dataset, other.name, thresholds, before, after, images)
    order = list(mine)
    return sorted(found, key=lambda one: order.index(one.dataset))


def side_by_side_table(results: Results) -> str:
    """Markdown: by how many clicks the first model differs from each other one, with the intervals."""
    rows: dict[tuple[str, str], list[PairedDifference]] = {}
    for one in side_by_side(results):
        rows.setdefault((one.dataset, one.model), []).append(one)
    percents = results.rules["thresholds"]
    lines = [
        f"NoC of `{results.runs[0].name}` less that of the other, object by object, with the {CONFIDENCE:.0%} interval "
        "of a bootstrap over photos; negative is better.",
        "",
        "| data set | the other | " + " | ".join(f"NoC@{percent}" for percent in percents) + " |",
        "|---|---|" + "---:|" * len(percents),
    ]
    for (dataset, model), differences in rows.items():
        cells = [f"{one.change:+.2f} ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})" for one in differences]
        lines.append(f"| {dataset} | `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(
    dataset: str,
    model: str,
    thresholds: Sequence[int],
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    images: Sequence[str],
) -> list[PairedDifference]:
    """Of N objects at K thresholds: old and new NoC, float64 (N, K), and the N objects' images."""
    intervals = bootstrap_intervals(new - old, images)
    means = zip(thresholds, old.mean(axis=0).tolist(), new.mean(axis=0).tolist(), intervals, strict=True)
    counts = len(images), len(set(images))
    return [
        PairedDifference(dataset, model, percent, *counts, before, after, ends)
        for percent, before, after, ends in means
    ]


def _changes(
    dataset: str,
    model: str,
    thresholds: Sequence[int],
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    keys: Sequence[ObjectKey],
) -> list[ObjectChange]:
    """Of N objects at K thresholds, with old and new NoC, float64 (N, K), those whose NoC changed."""
    found = []
    for row in np.flatnonzero((old != new).any(axis=1)):
        seed, image, object_id = keys[row]
        before, after = (dict(zip(thresholds, map(int, nocs[row]), strict=True)) for nocs in (old, new))
        found.append(ObjectChange(dataset, model, image, object_id, seed, before, after))
    return found


def comparison_report(comparison: Comparison, tolerance: float) -> str:
    """Markdown: the differences, the objects that changed most, the objects found in one file only, and the verdict."""
    regressions = comparison.regressions(tolerance)
    lines = [
        f"| data set | model | objects (photos) | NoC | old | new | change | {CONFIDENCE:.0%} interval | |",
        "|---|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for one in comparison.differences:
        low, high = one.interval
        lines.append(
            f"| {one.dataset} | {one.model} | {one.num_objects} ({one.num_images}) | @{one.percent} "
            f"| {one.old:.2f} | {one.new:.2f} | {one.change:+.2f} | {low:+.2f} to {high:+.2f} "
            f"| {'**worse**' if one in regressions else _tendency(one)} |"
        )
    if comparison.changes:
        thresholds = list(comparison.changes[0].new)
        lines += [
            "",
            f"Changed most, of {len(comparison.changes)} objects that changed:",
            "",
            "| data set | model | object | " + " | ".join(f"NoC@{percent}" for percent in thresholds) + " |",
            "|---|---|---|" + "---:|" * len(thresholds),
        ]
        for change in comparison.changes[:NUM_CHANGES_SHOWN]:
            nocs = " | ".join(f"{change.old[percent]} → {change.new[percent]}" for percent in thresholds)
            name = _name((change.seed, change.image, change.object_id))
            lines.append(f"| {change.dataset} | {change.model} | {name} | {nocs} |")
    if comparison.unpaired:
        lines += ["", f"Not compared, {len(comparison.unpaired)} objects:", ""]
        lines += [f"- {name}" for name in comparison.unpaired[:NUM_UNPAIRED_SHOWN]]
        if (num_hidden := len(comparison.unpaired) - NUM_UNPAIRED_SHOWN) > 0:
            lines.append(f"- and {num_hidden} more")
    places = ", ".join(f"{one.dataset} NoC@{one.percent} ({one.model})" for one in regressions)
    lines += ["", f"Worse by more than {tolerance:g} clicks: {places or 'nowhere'}."]
    return "\n".join(lines)


def _tendency(difference: PairedDifference) -> str:
    low, high = difference.interval
    return "better" if high < 0 else "worse, within the tolerance" if low > 0 else "no difference shown"


def _paired_runs(old: Sequence[ModelRun], new: Sequence[ModelRun]) -> list[tuple[ModelRun, ModelRun]]:
    if len(old) == len(new) == 1:  # the same model under another name, or its successor
        return [(old[0], new[0])]
    by_name = {run.name: run for run in old}
    return [(by_name[run.name], run) for run in new if run.name in by_name]


def _by_dataset(run: ModelRun) -> dict[str, dict[ObjectKey, ObjectResult]]:
    """All objects of a run by data set and key; a data set has one measurement per seed."""
    found: dict[str, dict[ObjectKey, ObjectResult]] = {}
    for measurement in run.measurements:
        found.setdefault(measurement.dataset, {}).update(_by_key(measurement))
    return found


def _by_key(measurement: Measurement) -> dict[ObjectKey, ObjectResult]:
    return {(measurement.seed, one.image, one.object_id): one for one in measurement.objects}


def _nocs(objects: Sequence[ObjectResult], thresholds: Sequence[int], cap: int) -> NDArray[np.float64]:
    """NoC of N objects at K thresholds, float64 (N, K)."""
    return np.array([[noc(one.ious, percent / 100, cap) for percent in thresholds] for one in objects], np.float64)


def _name(key: ObjectKey) -> str:
    seed, image, object_id = key
    return f"{image} #{object_id}" + ("" if seed is None else f" (seed {seed})")
