"""A run's curves as a picture, from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skipclick.atomic_io import atomic_write
from train.log import read_log


def plot_run(folder: Path) -> Path:
    """Draw loss, IoU, learning rate and NoC against steps to `curves.png` in a run's folder, and return its path.

    Raises `ValueError` if the folder holds no log or matplotlib is missing.
    """
    lines = read_log(folder / "log.jsonl")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plotting needs matplotlib: pip install -r requirements/train.txt") from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for panel, name in zip(panels[:3], ("loss", "iou", "learning_rate"), strict=True):
        _draw(panel, [(line["step"], line[name]) for line in lines if name in line], name.replace("_", " "))
    validations = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    for metric in ("NoC@85", "NoC@90"):
        _draw(panels[3], [(step, figures[metric]) for step, figures in validations], "NoC", label=metric)
    panels[3].legend()
    path = folder / "curves.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _draw(panel: Any, points: list[tuple[int, float]], title: str, **style: Any) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    panel.plot(steps, values, marker="." if len(points) < 50 else "", **style)
    panel.set_title(title)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
