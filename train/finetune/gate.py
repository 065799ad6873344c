"""How many clicks two models need on the same objects, and whether the new one shall be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from skipclick import Predictor
from skipclick.evaluation.bootstrap import PairedDifference, bootstrap_intervals
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.evaluate import Rules, evaluate
from skipclick.evaluation.results import ObjectResult
from skipclick.masks import MASK_THRESHOLD
from skipclick.metrics import mean_iou_at, noc
from skipclick.model import SkipClick

RULES = Rules(protocol="serve", flip=False, thresholds=(85, 90), target_iou=0.90, threshold=MASK_THRESHOLD, zoom=True)
"""What annotators get, at most 20 clicks; an object is clicked until it reaches 90 %."""


@dataclass(frozen=True)
class Measured:
    """What one model needed on a set of objects."""

    results: tuple[ObjectResult, ...]

    @property
    def nocs(self) -> NDArray[np.float64]:
        """float64 (objects, 2): clicks to 85 % and to 90 %."""
        return np.array([[noc(one.ious, percent / 100) for percent in RULES.thresholds] for one in self.results])

    @property
    def noc(self) -> dict[str, float]:
        """Means, by name: "NoC@85" and "NoC@90"."""
        means = self.nocs.mean(axis=0)
        return {f"NoC@{percent}": float(mean) for percent, mean in zip(RULES.thresholds, means, strict=True)}

    @property
    def clicks(self) -> float:
        """The one figure that decides: the mean of both."""
        return float(self.nocs.mean())

    @property
    def error(self) -> float:
        """The mean of 1 - IoU over the first 20 clicks of all objects, the last mask standing for those not needed.

        Of a few objects it says more than counts do, most of which stay what they are: by it the best weights of a run
        are chosen."""
        ious = [one.ious for one in self.results]
        return float(np.mean([1 - mean_iou_at(ious, click) for click in range(1, RULES.num_clicks + 1)]))


def measured(model: SkipClick, samples: Sequence[Sample], device: str = "cpu", zoom: bool = True) -> Measured:
    """The NoC simulation, float32."""
    return Measured(tuple(evaluate(Predictor(model, device=device), samples, replace(RULES, zoom=zoom))))


def differences(name: str, version: str, before: Measured, after: Measured) -> tuple[PairedDifference, ...]:
    """At 85 %, at 90 % and, as percent 0, their mean, with paired bootstrap intervals over images."""
    old, new = (np.column_stack([one.nocs, one.nocs.mean(axis=1)]) for one in (before, after))
    images = [one.image for one in before.results]
    intervals = bootstrap_intervals(new - old, images)
    counts = len(images), len(set(images))
    means = zip((*RULES.thresholds, 0), old.mean(axis=0).tolist(), new.mean(axis=0).tolist(), intervals, strict=True)
    return tuple(PairedDifference(name, version, percent, *counts, a, b, interval) for percent, a, b, interval in means)


def promotion_gate(
    held_out: Sequence[PairedDifference], retention: Sequence[PairedDifference], margin: float
) -> tuple[bool, str]:
    """Whether to serve the new model, and why: fewer clicks on held-out objects, not by chance, and at most `margin`
    clicks lost on the retention set. Of each list the last difference, the mean over the thresholds, decides."""
    gain, loss = held_out[-1], retention[-1]
    low, high = gain.interval
    clicks = f"{gain.old:.2f} → {gain.new:.2f} clicks on {gain.num_objects} held-out objects"
    if high >= 0:
        return False, f"{clicks} may be chance: the 95 % interval of the change is {low:+.2f} to {high:+.2f}"
    if loss.change > margin:
        return (
            False,
            f"{clicks}, but the retention set needs {loss.change:+.2f} clicks, more than {margin:g} (forgetting)",
        )
    return True, f"{clicks} (95 % interval of the change {low:+.2f} to {high:+.2f}); retention set {loss.change:+.2f}"
