"""How many replicas a team needs, found by simulation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

from bench.scaling.fleet_simulation import Pace, Plan, Times, simulate
from bench.scaling.report import WARM_UP, FleetFigures, Need, fleet_figures

TIMES = {
    "gpu": Times("GPU, assumed", 0.030, 0.005, "assumed, not measured"),
    "tiny-cpu": Times("skipclick-tiny, two cores", 0.0275, 0.0145, "docs/results/latency.md: 320 pixels, float32"),
    "vit-b-cpu": Times("ViT-B, two cores", 0.380, 0.165, "docs/results/latency.md: 448 pixels, bfloat16"),
}


def times_of(text: str) -> Times:
    """The times that `--times` names. Raises `ValueError`."""
    if text in TIMES:
        return TIMES[text]
    file, *wanted = text.rsplit(":", 4)
    if len(wanted) != 4:
        raise ValueError(f"--times {text} is none of {', '.join(TIMES)}, nor FILE:MODEL:RESOLUTION:DEVICE:DTYPE")
    totals = {
        row["state"]: row["total"]["median"] / 1000
        for row in json.loads(Path(file).read_text())["stages"]
        if [str(row["setting"][name]) for name in ("model", "resolution", "device", "dtype")] == wanted
    }
    if totals.keys() != {"warm", "cold"}:
        raise ValueError(f"{file} has no stages of {', '.join(wanted)}; measure them with bench/serving/latency.py")
    return Times(" ".join(wanted), totals["cold"] - totals["warm"], totals["warm"], f"measured, {Path(file).name}")


def simulated(times: Times, annotators: int, replicas: int, seconds: float, pace: Pace, one_dies: bool) -> FleetFigures:
    """A simulated run. A replica that dies does so after a third of the time, and returns with empty caches after two
    thirds; then only what follows its death counts."""
    plan = Plan(annotators, replicas, seconds, pace)
    if not one_dies:
        return fleet_figures(annotators, replicas, simulate(times, plan), WARM_UP * seconds, seconds)
    plan = replace(plan, dies_at=seconds / 3, returns_at=2 * seconds / 3)
    return fleet_figures(annotators, replicas, simulate(times, plan), seconds / 3, seconds)


def find_need(times: Times, annotators: int, seconds: float, pace: Pace, later_ms: float, first_ms: float) -> Need:
    """The fewest replicas at which 95 % of the clicks are answered in time, by bisection.

    Raises `ValueError` where no number is enough.
    """
    if 1000 * times.click > later_ms or 1000 * (times.encode + times.click) > first_ms:
        raise ValueError(f"{times.name} alone takes longer than --later {later_ms:g} or --first {first_ms:g} allow")

    @cache
    def alive(replicas: int) -> FleetFigures:
        return simulated(times, annotators, replicas, seconds, pace, one_dies=False)

    def is_enough(replicas: int) -> bool:
        figures = alive(replicas)
        return figures.later.get("p95", 0.0) <= later_ms and figures.first.get("p95", 0.0) <= first_ms

    busy = annotators * (times.click / pace.think + times.encode / pace.photo)  # devices that would never be idle
    low = high = max(1, math.floor(busy))
    while not is_enough(high):
        low, high = high + 1, high + max(1, high // 8)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return Need(alive(high), simulated(times, annotators, high + 1, seconds, pace, one_dies=True))
