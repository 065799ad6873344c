"""Figures of a result file, fit for a paper: vector PDF and PNG of each, in colours that colour-blind readers can tell.

    miou.*        mean IoU against clicks, a panel per data set, a line per model
    noc.*         how many objects needed how many clicks
    radar-*.*     NoC over the classes of a data set, with the published methods (Fig. 1)
    gallery-*.*   the objects that needed most clicks and the median ones, with clicks, mask and ground truth (Fig. 3-4)

A result file holds no masks: the gallery replays the recorded clicks through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench import tables
from bench.published import TABLES, WSESEG_CLASSES
from skipclick.atomic_io import atomic_write
from skipclick.drawing import draw_overlay
from skipclick.evaluation.datasets import EvaluationSet, Sample
from skipclick.evaluation.evaluate import ClickModel, Rules, replay
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results
from skipclick.metrics import mean_iou_at, noc

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
POSITIVE, NEGATIVE = "#00C040", "#FF2020"  # clicks differ in shape too

PAGE_WIDTH = 7.0  # inches: a page of two columns
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
}

GALLERY_ROWS = 4
MAX_ASPECT = 1.2  # of a row's height to its width; taller photos leave their sides free
MAX_PIXELS = 700  # longer side of a photo in the gallery: 300 per inch
GALLERY_THRESHOLD = 90
"""The gallery ranks objects by NoC at this IoU in percent, and shows the mask after so many clicks."""


@dataclass(frozen=True)
class GalleryEntry:
    """An object as the gallery shows it: its clicks and the mask that they led to."""

    sample: Sample
    result: ObjectResult
    num_clicks: int
    """How many of the result's clicks were given."""
    mask: NDArray[np.bool_]


def save_plots(
    results: Results,
    folder: Path,
    load_model: Callable[[ModelRun, Measurement], ClickModel[Any]],
    open_set: Callable[[Measurement], EvaluationSet],
) -> list[Path]:
    """Write all figures into a folder; returns the files.

    load_model and open_set give the model and the data set of a measurement once more, for the gallery.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rules = Rules.from_dict(results.rules)
    with mpl.rc_context(STYLE):
        figures = {"miou": miou_figure(results), "noc": noc_figure(results, _main_threshold(rules.thresholds))}
        for name in tables.datasets(results):
            if len(tables.classes(results, name)) > 2:
                figures[f"radar-{name}"] = radar_figure(results, name, rules.thresholds[0])
        paths = [path for name, figure in figures.items() for path in _save(figure, folder / name)]
        for run in results.runs:
            for measurement in run.measurements:
                if measurement.seed not in (None, *rules.seeds[:1]):
                    continue  # one seed shows enough
                model, dataset = load_model(run, measurement), open_set(measurement)
                for kind, chosen in choose_objects(measurement.objects, rules.num_clicks).items():
                    entries = replay_objects(model, dataset, chosen, rules)
                    name = _file_name(f"gallery-{measurement.dataset}-{run.name}-{kind}")
                    paths += _save(gallery_figure(entries), folder / name)
    return paths


def miou_figure(results: Results) -> Figure:
    """Mean IoU after each click; with several seeds the mean, and a band from the smallest to the largest."""
    figure, panels = _panels(tables.datasets(results), "mean IoU (%)")
    ticks = _click_ticks(results.rules["num_clicks"])
    for dataset, axes in panels.items():
        for index, run in enumerate(results.runs):
            curves = np.array([_miou_curve(one, results.rules) for one in _measurements(run, dataset)])
            if not curves.size:
                continue
            clicks = np.arange(1, curves.shape[1] + 1)
            axes.plot(
                clicks, curves.mean(axis=0), label=run.name, **_style(index), markevery=[tick - 1 for tick in ticks]
            )
            if len(curves) > 1:
                axes.fill_between(clicks, curves.min(axis=0), curves.max(axis=0), color=_colour(index), alpha=0.2)
        axes.set_title(f"{dataset} ({tables.num_objects(results, dataset)} objects)")
        axes.set_xlabel("clicks")
        axes.set_ylim(top=100)
        axes.set_xticks(ticks)
    _legend(figure, panels, results)
    return figure


def noc_figure(results: Results, percent: int) -> Figure:
    """Share of the objects by the clicks they needed; the last bar holds those that needed all or failed."""
    figure, panels = _panels(tables.datasets(results), "objects (%)")
    cap = results.rules["num_clicks"]
    width = 0.84 / len(results.runs)
    for dataset, axes in panels.items():
        for index, run in enumerate(results.runs):
            objects = [one for measurement in _measurements(run, dataset) for one in measurement.objects]
            nocs = [noc(one.ious, percent / 100, cap) for one in objects]
            share = 100 * np.bincount(nocs, minlength=cap + 1)[1:] / max(1, len(nocs))
            offset = (index - (len(results.runs) - 1) / 2) * width
            axes.bar(np.arange(1, cap + 1) + offset, share, width, color=_colour(index), label=run.name)
        axes.set_title(f"{dataset} ({tables.num_objects(results, dataset)} objects)")
        axes.set_xlabel(f"clicks to reach {percent} % IoU")
        axes.grid(axis="x", visible=False)
        ticks = _click_ticks(cap)
        axes.set_xticks(ticks, [*map(str, ticks[:-1]), f"≥{cap}"])
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    _legend(figure, panels, results)
    return figure


def radar_figure(results: Results, dataset: str, percent: int) -> Figure:
    """NoC by class, a spoke each; of WSESeg also the published figures, dotted, where they are of this IoU."""
    names, metric = tables.classes(results, dataset), f"NoC@{percent}"
    heads = {folder: head for head, folder in WSESEG_CLASSES.items()}
    curves = {
        run.name: [
            float(np.mean(tables.metric_values(run, results.rules, dataset, metric, name) or [np.nan]))
            for name in names
        ]
        for run in results.runs
    }
    if dataset == "WSESeg" and percent == 85:
        place = {column.category: number for number, column in enumerate(TABLES[2].columns)}
        for method, cells in TABLES[2].rows.items():
            curves[f"{method}, published"] = [float(cells[place[name]].partition("/")[0]) for name in names]
    figure = Figure(figsize=(PAGE_WIDTH, 4.6), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for index, (name, curve) in enumerate(curves.items()):
        line = ":" if name.endswith(", published") else "-"
        axes.plot([*angles, 0], [*curve, curve[0]], line, color=_colour(index), marker=MARKERS[index % 7], label=name)
    axes.set_xticks(angles, [heads.get(name, name) for name in names])
    axes.tick_params(axis="x", pad=14)  # names stay clear of the ring
    axes.set_title(f"{dataset}, {metric}: nearer to the middle is better")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def gallery_figure(entries: Sequence[GalleryEntry]) -> Figure:
    """A row per object: the photo with its clicks, the mask after them, the ground truth (ignored pixels are pale)."""
    gap, title_height = 0.06, 0.2  # inches
    width = (PAGE_WIDTH - 2 * gap) / 3
    heights = [width * min(MAX_ASPECT, entry.mask.shape[0] / entry.mask.shape[1]) for entry in entries]
    page_height = sum(heights) + len(entries) * (title_height + gap)
    figure = Figure(figsize=(PAGE_WIDTH, page_height))
    top = page_height
    for entry, height in zip(entries, heights, strict=True):
        top -= title_height + height
        titles = [f"{entry.result.image} #{entry.result.object_id}", _caption(entry), "ground truth"]
        for column, (picture, title) in enumerate(zip(_pictures(entry), titles, strict=True)):
            left = column * (width + gap)
            box = (left / PAGE_WIDTH, top / page_height, width / PAGE_WIDTH, height / page_height)
            axes = figure.add_axes(box)
            rows, columns = entry.mask.shape
            axes.imshow(picture, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))  # a click's (x, y) is its pixel
            axes.set_title(title, pad=3)
            axes.set_axis_off()
            if column == 0:
                _draw_clicks(axes, entry)
        top -= gap
    return figure


def choose_objects(objects: Sequence[ObjectResult], cap: int) -> dict[str, list[ObjectResult]]:
    """The objects that needed most clicks and those around the median; among equals the lower final IoU is worse."""
    ranked = sorted(objects, key=lambda one: (-_clicks_shown(one, cap), one.ious[-1], one.image, one.object_id))
    middle = max(0, (len(ranked) - GALLERY_ROWS) // 2)
    chosen = {"worst": ranked[:GALLERY_ROWS], "median": ranked[middle : middle + GALLERY_ROWS]}
    return {kind: few for kind, few in chosen.items() if few}


def replay_objects(
    model: ClickModel[Any], dataset: EvaluationSet, objects: Sequence[ObjectResult], rules: Rules
) -> list[GalleryEntry]:
    """The masks of recorded clicks, computed again, after as many clicks as the object needed."""
    index_of = {photo.name: index for index, photo in enumerate(dataset.photos)}
    entries = []
    for result in objects:
        sample = dataset.load(index_of[result.image])
        num_clicks = _clicks_shown(result, rules.num_clicks)
        mask = replay(model, sample.image, result.clicks[:num_clicks], rules)
        entries.append(GalleryEntry(sample, result, num_clicks, mask))
    return entries


def _clicks_shown(result: ObjectResult, cap: int) -> int:
    return min(noc(result.ious, GALLERY_THRESHOLD / 100, cap), len(result.clicks))


def _caption(entry: GalleryEntry) -> str:
    iou = 100 * entry.result.ious[entry.num_clicks - 1]
    return f"{entry.num_clicks} click{'s' if entry.num_clicks > 1 else ''}, IoU {iou:.0f} %"


def _pictures(entry: GalleryEntry) -> list[NDArray[np.uint8]]:
    """The photo, the photo with the mask, the photo with the ground truth; no larger than print needs."""
    truth = entry.sample.targets[entry.result.object_id]
    photo = entry.sample.image
    pale = np.where((truth == -1)[:, :, None], photo // 2 + 128, photo)
    pictures = [photo, draw_overlay(photo, entry.mask), draw_overlay(pale, truth == 1)]
    scale = min(1.0, MAX_PIXELS / max(photo.shape[:2]))
    return [np.asarray(cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)) for one in pictures]


def _draw_clicks(axes: Axes, entry: GalleryEntry) -> None:
    for click in entry.result.clicks[: entry.num_clicks]:
        marker, colour = ("o", POSITIVE) if click.positive else ("X", NEGATIVE)
        axes.plot(click.x, click.y, marker, color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6)


def _panels(datasets: Sequence[str], label: str) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel per data set, at most three in a row; the label is left of each row."""
    num_columns = min(3, len(datasets))
    num_rows = math.ceil(len(datasets) / num_columns)
    width = PAGE_WIDTH / 2 if num_columns == 1 else PAGE_WIDTH
    figure = Figure(figsize=(width, 2.4 * num_rows + 0.3), layout="constrained")
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    panels = dict(zip(datasets, grid, strict=False))
    for unused in grid[len(datasets) :]:
        unused.set_visible(False)
    for first in grid[::num_columns]:
        first.set_ylabel(label)
    return figure, panels


def _legend(figure: Figure, panels: dict[str, Axes], results: Results) -> None:
    if len(results.runs) > 1:
        handles, labels = next(iter(panels.values())).get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(panels) > 1 else 2)


def _save(figure: Figure, path: Path) -> list[Path]:
    """As PDF and as PNG, each written whole or not at all."""
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("pdf", "png")]
    for target in paths:
        with atomic_write(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:])
    return paths


def _measurements(run: ModelRun, dataset: str) -> list[Measurement]:
    return [one for one in run.measurements if one.dataset == dataset and one.objects]


def _miou_curve(measurement: Measurement, rules: dict[str, Any]) -> list[float]:
    ious = [one.ious for one in measurement.objects]
    return [100 * mean_iou_at(ious, count) for count in range(1, rules["num_clicks"] + 1)]


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _colour(index),
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _click_ticks(cap: int) -> list[int]:
    return sorted({1, *range(5, cap, 5), cap})


def _main_threshold(thresholds: Sequence[int]) -> int:
    """90 where it was measured, as in most papers; else the first."""
    return GALLERY_THRESHOLD if GALLERY_THRESHOLD in thresholds else thresholds[0]


def _file_name(text: str) -> str:
    """Models may be paths: keep the last part, and what every file system takes."""
    name = text.replace("\\", "/")
    return "".join(one if one.isalnum() or one in "-_." else "_" for one in name)
