"""Immediate adaptation: a few steps right after an accepted mask, on it and on a few accepted before.

`finetune` learns from everything, is measured, and may take minutes; this takes seconds and is not measured before it
serves, so it may not go far from the base: every adaptation ends with a part of the way back. The paper's references 41
and 42 adapt SAM and HQ-SAM so. Whether it helps here is measured by bench/learning/finetune_immediate.py.
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
"""Of one adaptation; of those in docs/results/finetune.md what did best on horses (there in bfloat16)."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How far one accepted mask may move the head."""

    recipe: FinetuneConfig = RECIPE
    """Its `max_seconds` hold for all of one adaptation; when they are over, the step on the way is finished. Its
    precision should be named: to find the faster one takes as long as the steps."""
    share: float = 0.9
    """Share of the way from the base's weights to those just learnt, at which the head serves and the next adaptation
    starts."""
    num_images: int = 8
    """Number of the newest images whose masks are learnt from; older ones are forgotten."""

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

    accepted: all accepted masks of the image worked on (or of several). Half of what is drawn is theirs, half is in
    memory, and some, `recipe.replay`, asks for what `base` answers beside them. Nothing given is changed. Where no
    mask can be seen (all too small, images that have gone), `before` comes back.
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
    many, few = ([view for views in group.values() for view in views] for group in (earlier, newest))
    count, wanted = (sum(view.num_objects for view in views) for views in (few, many))
    return many + few * max(1, round(wanted / count))
