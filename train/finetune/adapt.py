"""Immediate adaptation: a few steps right after an accepted mask, on it and on a few accepted before.

`finetune` learns from everything, is evaluated, and may take minutes; this takes seconds and is not evaluated before it
serves, so it may not go far from the base: every adaptation ends by interpolating back towards it. The paper's
references 41 and 42 adapt SAM and HQ-SAM like this. bench/learning/finetune_immediate.py measures whether it helps.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from skipclick.model import SkipClick
from train.finetune.config import FinetuneConfig
from train.finetune.examples import Example, by_image
from train.finetune.interpolate import interpolate
from train.finetune.loop import steps
from train.finetune.views import View, encoded_views

RECIPE = FinetuneConfig(steps=16, batch_size=4, views=2, learning_rate=1e-4, max_seconds=10.0, precision="float32")
"""Of one adaptation; the one that did best on horses in docs/results/finetune.md (there in bfloat16)."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How far one accepted mask may move the head."""

    recipe: FinetuneConfig = RECIPE
    """Its `max_seconds` limit one whole adaptation; the step in progress is still finished. Its `precision` should be
    set: finding the faster one takes as long as the steps."""
    share: float = 0.9
    """Where between the base's weights (0) and those just learnt (1) the head serves and the next adaptation starts."""
    num_images: int = 8
    """Number of newest images to learn from; older ones are forgotten."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.num_images < 1:
            raise ValueError("share must be above 0 and at most 1, and the number of images at least 1")


@dataclass(frozen=True, eq=False)
class Adapted:
    """A model, and everything that its next adaptation needs."""

    model: SkipClick
    """On the CPU; its backbone is the base's."""
    memory: Mapping[str, tuple[View, ...]] = field(default_factory=dict)
    """Views by the key of their image, the newest last."""
    num_steps: int = 0
    """Steps taken so far, in all adaptations."""


def adapt(before: Adapted, base: SkipClick, accepted: Sequence[Example], config: AdaptConfig) -> Adapted:
    """The model in service, adapted to the masks just accepted.

    accepted: all accepted masks of the current image (or of several). Half of the drawn objects are theirs and half
    come from memory; a share of `recipe.replay` are answers of `base` beside them. The arguments are not changed. If no
    mask can be used (all too small, images that are gone), `before` is returned.
    """
    begin = time.monotonic()
    recipe = replace(config.recipe, seed=config.recipe.seed + before.num_steps)  # other draws than the last time
    newest = seen(base, accepted, recipe)
    if not newest:
        return before
    earlier = {key: views for key, views in before.memory.items() if key not in newest}
    memory = dict([*earlier.items(), *newest.items()][-config.num_images :])
    model: SkipClick = copy.deepcopy(before.model).eval()
    model = model.to(torch.device(recipe.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    left = max(1e-3, recipe.max_seconds - (time.monotonic() - begin))
    num_steps = 0
    for progress in steps(model, balanced(newest, earlier), replace(recipe, max_seconds=left)):
        num_steps = progress.step
    return Adapted(interpolate(base, model.cpu(), config.share), memory, before.num_steps + num_steps)


def seen(base: SkipClick, examples: Sequence[Example], recipe: FinetuneConfig) -> dict[str, tuple[View, ...]]:
    """Views by the key of their image; images without a visible mask are left out."""
    encoded = {
        key: tuple(encoded_views(base, of_image, recipe, [], lambda _: None))
        for key, of_image in by_image(examples).items()
    }
    return {key: views for key, views in encoded.items() if views}


def balanced(newest: Mapping[str, tuple[View, ...]], earlier: Mapping[str, tuple[View, ...]]) -> list[View]:
    """All views, with the newest repeated until they have about as many objects as the earlier ones."""
    old_views, new_views = ([view for views in group.values() for view in views] for group in (earlier, newest))
    count, wanted = (sum(view.num_objects for view in views) for views in (new_views, old_views))
    return old_views + new_views * max(1, round(wanted / count))
