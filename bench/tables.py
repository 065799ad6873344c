"""Markdown tables of a result file: a table per data set, and the published figures.

A metric is written as the tables head it: "NoC@90", "≥20@90" (objects that needed all clicks), "FR20@90" (the same in
percent of the objects), "mIoU@5" (percent after so many clicks). Jittered clicks are measured under several seeds: then
a figure is the mean over the seeds ± their standard deviation. Of a data set with classes NoC and mIoU are the
unweighted mean over the classes, as in the paper.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.published import TABLES, Table
from skipclick.evaluation.datasets import LAYOUTS
from skipclick.evaluation.datasets.left_out import LeftOut, describe_left_out
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results, summarise
from skipclick.zoom import DEFAULT_RULE

MIOU_CLICKS = (1, 3, 5, 10)
NO_FIGURE = "–"


def report(results: Results) -> str:
    """Everything about a result file in Markdown: how it was measured, a table per data set, what was left out."""
    sections = ["\n".join(_model_line(run) for run in results.runs), _rules_line(results.rules)]
    names = datasets(results)
    if len(results.runs) > 1 and len(names) > 1:
        sections.append(overview_table(results))
    for dataset in names:
        head = f"### {dataset} ({num_objects(results, dataset)} objects)"
        sections.append(f"{head}\n\n{dataset_table(results, dataset)}")
        if classes(results, dataset):
            sections.append(class_table(results, dataset, f"NoC@{results.rules['thresholds'][0]}"))
        if results.rules.get("protocol") == "serve":
            sections.append(size_table(results, dataset))
    sections.append("### Times\n\n" + times_table(results))
    left_out = left_out_list(results)
    return "\n\n".join(sections + ([left_out] if left_out else []))


def dataset_table(results: Results, dataset: str) -> str:
    """One data set: a row per model, as in the paper's tables; the best NoC of several models is bold."""
    clicks = [count for count in MIOU_CLICKS if count <= results.rules["num_clicks"]]
    thresholds = results.rules["thresholds"]
    metrics = [
        *(f"NoC@{percent}" for percent in thresholds),
        *(f"≥{results.rules['num_clicks']}@{percent}" for percent in thresholds),
        *(f"FR{results.rules['num_clicks']}@{percent}" for percent in thresholds),
        *(f"mIoU@{count}" for count in clicks),
    ]
    return _models_table(results, [(dataset, metric, None) for metric in metrics], metrics)


def overview_table(results: Results) -> str:
    """All data sets side by side: a row per model, NoC at each threshold."""
    columns = [(dataset, f"NoC@{percent}") for dataset in datasets(results) for percent in results.rules["thresholds"]]
    heads = [f"{dataset} {metric}" for dataset, metric in columns]
    return _models_table(results, [(dataset, metric, None) for dataset, metric in columns], heads)


def class_table(results: Results, dataset: str, metric: str) -> str:
    """A data set with classes: a row per model, a column per class, and their unweighted mean."""
    names = classes(results, dataset)
    columns = [*((dataset, metric, name) for name in names), (dataset, metric, None)]
    return f"{metric} by class:\n\n" + _models_table(results, columns, [*names, "average"])


def size_table(results: Results, dataset: str) -> str:
    """One data set by the size of its objects: a row per model and size, NoC at each threshold, crops per object."""
    percents = results.rules["thresholds"]
    lines = [
        "By the part of the photo's sides that a crop around the object takes:",
        "",
        "| model | crop | objects | " + " | ".join(f"NoC@{percent}" for percent in percents) + " | crops encoded |",
        "|---|---|---:|" + "---:|" * (len(percents) + 1),
    ]
    for run in results.runs:
        objects = [one for measured in run.measurements if measured.dataset == dataset for one in measured.objects]
        for name, part in by_crop(objects).items():
            if part:
                noc = summarise(part, results.rules).noc
                crops = statistics.fmean(one.crops for one in part)
                figures = [str(len(part)), *(f"{noc[percent]:.2f}" for percent in percents), f"{crops:.2f}"]
                lines.append(f"| `{run.name}` | {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def by_crop(objects: Sequence[ObjectResult]) -> dict[str, list[ObjectResult]]:
    """Objects by the size of the crop that zoom-in would make around them; those of older files have none."""
    parts: dict[str, list[ObjectResult]] = {"below a third": [], "below a half": [], "the rest": []}
    for one in objects:
        if one.extent is not None:
            crop = DEFAULT_RULE.margin * one.extent
            parts["below a third" if crop < 1 / 3 else "below a half" if crop < 1 / 2 else "the rest"].append(one)
    return parts


def times_table(results: Results) -> str:
    """Milliseconds of encoding a photo and of a click: median and 95th percentile, a row per data set and model."""
    lines = ["| data set | model | encode ms | p95 | click ms | p95 |", "|---|---|---:|---:|---:|---:|"]
    for run in results.runs:
        for dataset in datasets(results):
            measured = [one for one in run.measurements if one.dataset == dataset]
            if objects := [one for measurement in measured for one in measurement.objects]:
                summary = summarise(objects, results.rules)
                times = (summary.encode_ms.median, summary.encode_ms.p95, summary.click_ms.median, summary.click_ms.p95)
                lines.append(f"| {dataset} | `{run.name}` | " + " | ".join(f"{ms:.1f}" for ms in times) + " |")
    return "\n".join(lines)


def paper_table(results: Results, number: int, published_rows: Mapping[str, str | None]) -> str:
    """A table of the paper, see `published_table`."""
    table = TABLES[number]
    return published_table(results, replace(table, title=f"Table {number}: {table.title}"), published_rows)


def published_table(
    results: Results, table: Table, published_rows: Mapping[str, str | None], num_objects: int | None = None
) -> str:
    """A published table: its rows, ours behind those that they belong to, and what is missing or differs.

    published_rows: by the model's name, its row there; None for a model that the table does not have. num_objects: of
    its data sets, where `LAYOUTS` does not say it.
    """
    lines = [f"| {' | '.join(['method', *(column.head for column in table.columns)])} |"]
    lines.append("|---" + "|---:" * len(table.columns) + "|")
    for method, cells in table.rows.items():
        lines.append(f"| {method}, published | {' | '.join(cells)} |")
        lines += [_our_row(run, results, table) for run in results.runs if published_rows.get(run.name) == method]
    lines += [_our_row(run, results, table) for run in results.runs if published_rows.get(run.name) is None]
    absent = [name for name in table.datasets if name not in datasets(results)]
    alone = [method for method in table.rows if method not in published_rows.values()]
    notes = [f"Source: {table.source}."]
    if absent:
        notes.append(f"Data sets not given: {', '.join(absent)} (`--list` says what their folders hold).")
    if others := [name for name in datasets(results) if name not in table.datasets]:
        notes.append(f"Measured instead, in the tables above, and not comparable with this one: {', '.join(others)}.")
    if alone:
        notes.append(f"Methods without a model given: {', '.join(alone)}")
    notes += _caveats(results, [name for name in table.datasets if name not in absent], num_objects)
    return f"### {table.title}\n\n" + "\n".join(lines) + "\n\n" + "\n".join(f"- {n}" for n in notes)


def _our_row(run: ModelRun, results: Results, table: Table) -> str:
    cells = [
        " / ".join(_cell(run, results.rules, column.dataset, metric, column.category) for metric in column.metrics)
        for column in table.columns
    ]
    return f"| `{run.name}` | {' | '.join(cells)} |"


def left_out_list(results: Results) -> str:
    """What was not used, counted by reason: photos, then annotations and records; empty if there was nothing."""
    photos: dict[tuple[str, str, str], LeftOut] = {}
    others: dict[tuple[str, str], LeftOut] = {}
    for measurement in (one for run in results.runs for one in run.measurements):  # all leave out the same
        for problem in measurement.problems:
            one = LeftOut(problem.kind or problem.reason, f"{problem.name} ({problem.reason})")
            photos[measurement.dataset, problem.name, problem.reason] = one
        for one in measurement.left_out:
            others[measurement.dataset, one.reason] = one
    names = datasets(results)
    sections = []
    if photos:
        by_dataset = {name: [one for key, one in sorted(photos.items()) if key[0] == name] for name in names}
        sections.append(f"Not measured, {len(photos)} photos:\n\n{_counted(by_dataset)}")
    if others:
        by_dataset = {name: [one for key, one in others.items() if key[0] == name] for name in names}
        sections.append(f"Left out of the data sets:\n\n{_counted(by_dataset)}")
    return "\n\n".join(sections)


def _counted(by_dataset: Mapping[str, Sequence[LeftOut]]) -> str:
    return "\n".join(f"- {name}: {line}" for name, things in by_dataset.items() for line in describe_left_out(things))


def datasets(results: Results) -> list[str]:
    """The data sets that were measured, in order."""
    return list(dict.fromkeys(one.dataset for run in results.runs for one in run.measurements))


def classes(results: Results, dataset: str) -> list[str]:
    """The classes of a data set's objects, in order; empty where it has none."""
    objects = (
        one
        for run in results.runs
        for measurement in run.measurements
        if measurement.dataset == dataset
        for one in measurement.objects
    )
    return list(dict.fromkeys(one.category for one in objects if one.category is not None))


def num_objects(results: Results, dataset: str) -> int:
    """How many objects of a data set were measured."""
    counts = (len(one.objects) for run in results.runs for one in run.measurements if one.dataset == dataset)
    return max(counts, default=0)


def metric_values(
    run: ModelRun, rules: Mapping[str, Any], dataset: str, metric: str, category: str | None = None
) -> list[float]:
    """A metric of a data set, or of one of its classes, once per seed of the clicks; empty if it was not measured."""
    measurements = (one for one in run.measurements if one.dataset == dataset)
    values = (_value(measurement, rules, metric, category) for measurement in measurements)
    return [value for value in values if value is not None]


def _value(measurement: Measurement, rules: Mapping[str, Any], metric: str, category: str | None) -> float | None:
    objects = [one for one in measurement.objects if category in (None, one.category)]
    if not objects:
        return None
    if metric.startswith(("NoC", "mIoU")):  # unweighted mean over the classes
        parts = [[one for one in objects if one.category == name] for name in {one.category for one in objects}]
        return statistics.fmean(_of_objects(part, rules, metric) for part in parts)
    return _of_objects(objects, rules, metric)


def _of_objects(objects: Sequence[ObjectResult], rules: Mapping[str, Any], metric: str) -> float:
    summary = summarise(objects, rules)
    name, _, number = metric.partition("@")
    match name:
        case "NoC":
            return summary.noc[int(number)]
        case "mIoU":
            return 100 * summary.miou[int(number) - 1]
        case rate if rate.startswith("FR"):
            return 100 * summary.failures[int(number)] / summary.num_objects
        case _:
            return float(summary.failures[int(number)])


def _models_table(results: Results, columns: Sequence[tuple[str, str, str | None]], heads: Sequence[str]) -> str:
    """A row per model and a column per (data set, metric, class)."""
    lines = ["| model | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    cells = [[_cell(run, results.rules, *column) for column in columns] for run in results.runs]
    for index, (dataset, metric, category) in enumerate(columns):
        if len(results.runs) > 1 and metric.startswith("NoC"):
            values = [metric_values(run, results.rules, dataset, metric, category) for run in results.runs]
            means = [round(statistics.fmean(value), 2) if value else float("inf") for value in values]
            for row, mean in zip(cells, means, strict=True):
                if mean == min(means):
                    row[index] = f"**{row[index]}**"
    for run, row in zip(results.runs, cells, strict=True):
        lines.append(f"| `{run.name}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(run: ModelRun, rules: Mapping[str, Any], dataset: str, metric: str, category: str | None = None) -> str:
    values = metric_values(run, rules, dataset, metric, category)
    if not values:
        return NO_FIGURE
    mean = _number(metric, statistics.fmean(values))
    return f"{mean} ± {_number(metric, statistics.stdev(values))}" if len(values) > 1 else mean


def _number(metric: str, value: float) -> str:
    if metric.startswith("NoC"):
        return f"{value:.2f}"
    is_count = metric.startswith("≥") and value.is_integer()
    return f"{value:.0f}" if is_count else f"{value:.1f}"


def _caveats(results: Results, names: Sequence[str], published_objects: int | None) -> list[str]:
    """Where this run's figures cannot be set beside published ones, and why."""
    rules, found = results.rules, []
    for name in names:
        ours, theirs = num_objects(results, name), published_objects or LAYOUTS[name].num_objects
        if theirs is not None and ours != theirs:
            found.append(f"{name}: {ours} objects here, {theirs} published; these figures are not comparable.")
        sides = {one.resolution for run in results.runs for one in run.measurements if one.dataset == name}
        if usual := LAYOUTS[name].resolution:
            found += [
                f"{name}: measured at {height} × {width} pixels, SkipClick's published figures at "
                f"{usual[0]} × {usual[1]}."
                for height, width in sorted(side for side in sides if side and side != usual)
            ]
    if rules.get("protocol", "paper") != "paper" or rules.get("clicks", "center") != "center":
        found.append("Published figures follow --protocol paper with --clicks center, and these do not.")
    if rules.get("start") is not None:
        found.append("Published figures begin with nothing, and these with --start.")
    if published_objects is None and not rules.get("flip", True):
        found.append("SkipClick's published figures average with the mirrored photo, and these do not.")
    return found


def _model_line(run: ModelRun) -> str:
    sides = {f"{one.resolution[0]} × {one.resolution[1]}" for one in run.measurements if one.resolution}
    parts = [f"{run.version}, {run.device}, {run.dtype}", *sorted(sides)]
    if run.checkpoint_sha256:
        parts.append(f"SHA-256 {run.checkpoint_sha256[:12]}")
    return f"- `{run.name}`: " + ", ".join(parts)


def _rules_line(rules: Mapping[str, Any]) -> str:
    return "Rules: " + ", ".join(f"{name} {value}" for name, value in rules.items()) + "."
