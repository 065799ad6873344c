"""How many clicks two models need on the same objects, and whether to put the new one in service."""

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
"""Masks as annotators get them; each object is clicked until it reaches an IoU of 90 %, at most 20 times."""


@dataclass(frozen=True)
class Measured:
    """The clicks that one model needed on a set of objects."""

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
        """The decisive figure: the mean of both."""
        return float(self.nocs.mean())

    @property
    def error(self) -> float:
        """The mean of 1 - IoU over the first 20 clicks of all objects; the last mask stands for clicks not needed.

        On a few objects it tells more than numbers of clicks, most of which do not change, so it decides which weights
        of a run are best."""
        ious = [one.ious for one in self.results]
        return float(np.mean([1 - mean_iou_at(ious, click) for click in range(1, RULES.num_clicks + 1)]))


def measured(model: SkipClick, samples: Sequence[Sample], device: str = "cpu", zoom: bool = True) -> Measured:
    """Simulated clicks on all objects, in float32."""
    return Measured(tuple(evaluate(Predictor(model, device=device), samples, replace(RULES, zoom=zoom))))


def differences(name: str, version: str, before: Measured, after: Measured) -> tuple[PairedDifference, ...]:
    """At 85 %, at 90 % and, as percent 0, their mean, with paired bootstrap intervals over images."""
    old, new = (np.column_stack([one.nocs, one.nocs.mean(axis=1)]) for one in (before, after))
    images = [one.image for one in before.results]
    intervals = bootstrap_intervals(new - old, images)
    counts = len(images), len(set(images))
    means = zip((*RULES.thresholds, 0), old.mean(axis=0).tolist(), new.mean(axis=0).tolist(), intervals, strict=True)
    return tuple(PairedDifference(name, version, percent, *counts, a, b, interval) for percent, a, b, interval in means)


@dataclass(frozen=True)
class ForAnnotator:
    """An annotator's share in the training, and the candidate's effect on their held-out objects."""

    annotator: str
    """Empty for unknown annotators."""
    num_learnt: int
    """Objects that were learnt from."""
    share: float
    """Share of all objects sampled in training."""
    old: tuple[float, ...]
    """Clicks of each held-out object with the model in service: the mean of those to 85 % and to 90 %."""
    new: tuple[float, ...]
    """The same with the candidate."""

    @property
    def change(self) -> float:
        """Mean over the held-out objects, in clicks; positive is worse. 0 where nothing is held out."""
        return sum(self.new) / len(self.new) - sum(self.old) / len(self.old) if self.old else 0.0


def promotion_gate(
    held_out: Sequence[PairedDifference],
    retention: Sequence[PairedDifference],
    margin: float,
    annotators: Sequence[ForAnnotator] = (),
) -> tuple[bool, str]:
    """Whether to serve the new model, and why: fewer clicks on held-out objects, not by chance, at most `margin` more
    clicks on the retention set, and not at the cost of some annotators. The last difference of each list decides, which
    is the mean over the thresholds."""
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
    if cost := cost_to_others(annotators):
        return False, f"{clicks}, but {cost}"
    return True, f"{clicks} (95 % interval of the change {low:+.2f} to {high:+.2f}); retention set {loss.change:+.2f}"


def num_left_out(num_annotators: int) -> int:
    """How many annotators, those who gain most, are left out when the cost to others is measured: two, a fifth of more
    than ten, and never more than half."""
    return min(num_annotators // 2, max(2, -(-num_annotators // 5)))


def cost_to_others(annotators: Sequence[ForAnnotator]) -> str:
    """What the candidate costs annotators other than those who gain most, in words; empty if it costs them nothing.

    Annotators with a way of their own of drawing masks teach it to the head and gain from it, so the whole gain may be
    theirs. Hence those who gain most are left out: the objects of all others must not need more clicks, and more than
    half of the annotators must not need more clicks on theirs. There is no test of significance, since the held-out
    objects of a few annotators are too few to prove harm.
    """
    ranked = sorted((one for one in annotators if one.old), key=lambda one: (one.change, one.annotator))
    if len(ranked) < 2:
        return ""
    others = ranked[num_left_out(len(ranked)) :]
    old, new = ([clicks for one in others for clicks in getattr(one, key)] for key in ("old", "new"))
    if (change := float(np.mean(new) - np.mean(old))) > 0:
        gaining = " and ".join(one.annotator or "unknown" for one in ranked[: -len(others)])
        return f"{change:+.2f} clicks on the {len(old)} of all annotators but {gaining}, who gain most"
    unharmed = sum(one.change <= 0 for one in ranked)
    if 2 * unharmed <= len(ranked):
        return f"only {unharmed} of {len(ranked)} annotators need no more clicks on theirs"
    return ""
