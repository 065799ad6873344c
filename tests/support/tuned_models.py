"""Models for tests of versions: heads of different weights on one backbone."""

from __future__ import annotations

import copy
from functools import cache

import torch

from skipclick.head import head_state, put_head
from skipclick.model import SkipClick
from tests.support.small_models import SMALL_CONV


@cache
def base_model() -> SkipClick:
    """A model with random weights, the same for everybody."""
    torch.manual_seed(0)
    return SkipClick(SMALL_CONV, version="tiny").eval()


def tuned_model(seed: int, base: SkipClick | None = None) -> SkipClick:
    """A base with a head a little beside its own; each seed gives another one."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base or base_model())
    moved = {
        name: tensor + 0.05 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() and "running" not in name
        else tensor
        for name, tensor in head_state(model).items()
    }
    put_head(model, moved)
    return model
