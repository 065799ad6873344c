"""The figures of runs of a fleet, as tables, and a picture of one in which a replica dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.plots import COLOURS, PAGE_WIDTH, STYLE
from bench.scaling.fleet_simulation import Served
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.timing import percentiles

WARM_UP = 0.1  # share of a run that is not counted


@dataclass(frozen=True)
class FleetFigures:
    """The figures of one run; times in milliseconds."""

    annotators: int
    replicas: int
    clicks_per_second: float
    later: dict[str, float]
    """Percentiles of clicks on photos that the replica had encoded."""
    first: dict[str, float]
    """Of clicks for which it had to encode the photo."""
    failed: int


@dataclass(frozen=True)
class Need:
    """How many replicas are enough for a team, and what happens if one of them dies when there is one to spare."""

    enough: FleetFigures
    after_a_death: FleetFigures
    """With one more replica, from the moment one of them dies; it returns later with empty caches."""


def fleet_figures(
    annotators: int, replicas: int, served: Sequence[Served], since: float, until: float, failed: int = 0
) -> FleetFigures:
    """Of the clicks sent from `since` on, in seconds of the run, which ended at `until`."""
    counted = [one for one in served if one.begin >= since]
    return FleetFigures(
        annotators,
        replicas,
        len(counted) / (until - since),
        percentiles([1000 * one.seconds for one in counted if not one.first]),
        percentiles([1000 * one.seconds for one in counted if one.first]),
        failed,
    )


def _cells(row: FleetFigures) -> str:
    """The cells of a row after its first ones."""
    cells = [f"{part[p]:.0f}" if p in part else "" for part in (row.later, row.first) for p in ("p50", "p95", "p99")]
    return " | ".join([f"{row.clicks_per_second:.0f}", *cells, str(row.failed)])


HEAD = "clicks/s | later clicks, ms: p50 | p95 | p99 | first on a photo: p50 | p95 | p99 | failed"


def measured_table(rows: Sequence[FleetFigures]) -> str:
    """Markdown."""
    lines = [f"| annotators | replicas | {HEAD} |", "|" + "---:|" * 10]
    return "\n".join([*lines, *(f"| {row.annotators:,} | {row.replicas} | {_cells(row)} |" for row in rows)])


def overhead_table(added: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    lines = ["| | p50, ms | p95 | p99 |", "|---|---:|---:|---:|"]
    for name, figures in added.items():
        lines.append(f"| {name} | " + " | ".join(f"{figures[p]:.2f}" for p in ("p50", "p95", "p99")) + " |")
    return "\n".join(lines)


def need_table(needs: Sequence[Need]) -> str:
    """Markdown."""
    lines = [
        "| annotators | clicks/s | replicas | later clicks, ms: p50 | p95 | first on a photo: p50 | p95 | "
        "with one to spare | later clicks after a death: p50 | p95 | first: p50 | p95 |",
        "|" + "---:|" * 12,
    ]
    for one in needs:
        enough, death = (
            " | ".join(f"{part[p]:.0f}" if p in part else "" for part in (row.later, row.first) for p in ("p50", "p95"))
            for row in (one.enough, one.after_a_death)
        )
        head = f"{one.enough.annotators:,} | {one.enough.clicks_per_second:,.0f} | **{one.enough.replicas}**"
        lines.append(f"| {head} | {enough} | **{one.after_a_death.replicas}** | {death} |")
    return "\n".join(lines)


def failure_table(
    annotators: int, replicas: int, served: Sequence[Served], failed: Sequence[float], seconds: float
) -> str:
    """Markdown: before, after the death, after the return."""
    names = ("all alive", "one killed", "back, cold")
    lines = [f"| | {HEAD} |", "|---|" + "---:|" * 8]
    for place, name in enumerate(names):
        since, until = place * seconds / 3, (place + 1) * seconds / 3
        part = [one for one in served if since <= one.begin < until]
        lost = sum(since <= moment < until for moment in failed)
        figures = fleet_figures(annotators, replicas, part, since, until, lost)
        lines.append(f"| {name} | {_cells(figures)} |")
    return "\n".join(lines)


def draw_failure(served: Sequence[Served], failed: Sequence[float], seconds: float, path: Path, title: str) -> None:
    """Each click over time, as PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        for first, colour, name in ((False, COLOURS[0], "later clicks"), (True, COLOURS[1], "photo encoded for it")):
            points = [(one.begin, 1000 * one.seconds) for one in served if one.first == first]
            if points:
                axes.plot(*zip(*points, strict=True), ".", color=colour, markersize=1.5, label=name)
        if failed:
            axes.plot(failed, [1.0] * len(failed), "x", color="black", label="failed")
        for moment, what in ((seconds / 3, "killed"), (2 * seconds / 3, "back, cold")):
            axes.axvline(moment, color="black", linewidth=0.8)
            axes.annotate(
                what, (moment, 1), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points"
            )
        axes.set(title=title, xlabel="time, s", ylabel="latency, ms", yscale="log")
        figure.legend(fontsize=7, loc="outside right upper", handlelength=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png")
