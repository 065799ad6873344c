"""Part of the way back: between the starting weights and those that were learnt.

Weights between the two keep most of what was learnt and lose less of what was known before (Wortsman et al., Robust
fine-tuning of zero-shot models, 2022, section 3), at no cost when they are served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from skipclick.model import SkipClick

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the way from the starting weights that a candidate may go."""


def interpolate(start: SkipClick, learnt: SkipClick, share: float) -> SkipClick:
    """A new model whose weights lie at `share` in [0, 1] of the way from `start` to `learnt`."""
    model = copy.deepcopy(start)
    with torch.no_grad():
        for mine, goal in zip(model.parameters(), learnt.parameters(), strict=True):
            mine.lerp_(goal, share)
    return model


def largest_safe_share(
    start: SkipClick, learnt: SkipClick, is_safe: Callable[[SkipClick], bool], shares: Sequence[float] = SHARES
) -> tuple[float, SkipClick]:
    """The first of the shares, and its model, for which `is_safe` holds; the last one where it holds for none."""
    for share in shares[:-1]:
        model = interpolate(start, learnt, share)
        if is_safe(model):
            return share, model
    return shares[-1], interpolate(start, learnt, shares[-1])
