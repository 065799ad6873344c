"""Interpolation between the starting weights and those that were learnt.

Weights between the two keep most of what was learnt and forget less of what was known before (Wortsman et al., Robust
fine-tuning of zero-shot models, 2022, section 3), at no cost in serving.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from skipclick.model import SkipClick

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the way from the starting weights to the learnt ones, in the order in which they are tried."""


def interpolate(start: SkipClick, learnt: SkipClick, share: float) -> SkipClick:
    """A new model whose head lies at `share` in [0, 1] of the way from that of `start` to that of `learnt`.

    They share a backbone, which is left alone to stay the same to the bit: rounding would turn a weight of -0 into 0.
    """
    model, goals = copy.deepcopy(start), dict(learnt.named_parameters())
    with torch.no_grad():
        for name, mine in model.named_parameters():
            if not name.startswith("backbone."):
                mine.lerp_(goals[name], share)
    return model


def largest_safe_share(
    start: SkipClick, learnt: SkipClick, is_safe: Callable[[SkipClick], bool], shares: Sequence[float] = SHARES
) -> tuple[float, SkipClick]:
    """The first of the shares, and its model, for which `is_safe` holds; the last one if it holds for none."""
    for share in shares[:-1]:
        model = interpolate(start, learnt, share)
        if is_safe(model):
            return share, model
    return shares[-1], interpolate(start, learnt, shares[-1])
