"""Training images as the head sees them: the backbone's taps of a few views each, computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from skipclick import Click, Predictor
from skipclick.evaluation.datasets import Sample
from skipclick.model import SkipClick
from skipclick.prompts import click_points, prompt_maps
from train.augment import AugmentConfig, augment
from train.finetune.annotators import weights_by_image
from train.finetune.config import FinetuneConfig
from train.finetune.examples import Example, by_image, load_images
from train.frozen.rollout import MIN_AREA
from train.frozen.store import KEPT_AS, EncodedView
from train.frozen.views import DrawnView, Start, ViewKind, draw_view
from train.scene import Scene, scene_of_masks

SHARES: dict[ViewKind, float] = {"window": 0.3, "zoom": 0.7}  # of the views after the first two
SHARES_WITHOUT_ZOOM: dict[ViewKind, float] = {"window": 1.0}
NUM_ELSEWHERE = 2  # clicks beside the accepted objects, in each view
UNSURE = (0.25, 0.75)  # pixels with a probability between these are ignored in replayed answers
_BESIDE = np.ones((15, 15), np.uint8)
LARGEST_SHARE = 0.5  # of a view that a replayed answer may cover


@dataclass(frozen=True, eq=False)
class View:
    """One view of one image."""

    taps: tuple[Tensor, ...]
    """Of the backbone, each (1, C_i, h_i, w_i), on the CPU."""
    scene: Scene
    """The accepted masks, at network resolution."""
    start: Start | None
    """For a zoomed-in crop, the answer to the clicks on the whole photo."""
    elsewhere: Scene
    """The starting model's answers to clicks beside them, which are replayed so that they are not forgotten."""
    weight: float = 1.0
    """Relative probability with which one of its accepted objects is drawn; see `annotators`."""

    @property
    def num_objects(self) -> int:
        """Accepted objects that are large enough to be drawn."""
        return _large_enough(self.scene)

    @property
    def num_replayed(self) -> int:
        """Answers of the starting model that are large enough to be drawn."""
        return _large_enough(self.elsewhere)

    @property
    def accepted(self) -> EncodedView:
        """The view with the accepted objects as its targets."""
        return EncodedView(self.taps, self.scene, self.start)

    @property
    def replayed(self) -> EncodedView:
        """The view with the starting model's answers as its targets."""
        return EncodedView(self.taps, self.elsewhere, None)


def _large_enough(scene: Scene) -> int:
    height, width = scene.layers.shape[1:]
    return sum(area >= int(MIN_AREA * height * width) for area in scene.areas)


def encoded_views(
    model: SkipClick,
    examples: Sequence[Example],
    config: FinetuneConfig,
    problems: list[str],
    on_progress: Callable[[float], None],
) -> list[View]:
    """The views that show an object: of each image the whole, its mirror image, then windows and zoomed-in crops with
    random colours.

    If that makes too many, there are fewer of each image; if even one of each is too much, the last images are left out
    and listed in `problems`, like those that cannot be read. on_progress: called with the share that is done.
    """
    num_images, predictor = len(by_image(examples)), Predictor(model, device=config.device)
    weights = weights_by_image(examples)
    views: list[View] = []
    for index, sample in enumerate(load_images(examples, problems)):
        rng = np.random.default_rng((config.seed, index))
        if not index:
            size = sum(tap.nbytes for tap in _encoded(predictor, sample, 1, config.zoom, rng)[0].taps)
            room = max(1, min(config.max_views, config.max_bytes // size))
            each = max(1, min(config.views, room // num_images))
        if len(views) + each > room:
            problems.append(f"the images after the first {index} are left out: there is room for {room} views")
            break
        encoded = _encoded(predictor, sample, each, config.zoom, rng)
        views += [replace(view, weight=weights[sample.name]) for view in encoded]
        on_progress((index + 1) / num_images)
    return [view for view in views if view.num_objects]


@torch.no_grad()
def _encoded(predictor: Predictor, sample: Sample, num_views: int, zoom: bool, rng: np.random.Generator) -> list[View]:
    shape = sample.image.shape[0], sample.image.shape[1]
    ignored = np.logical_or.reduce([target == -1 for target in sample.targets.values()])
    scene = scene_of_masks(
        [target == 1 for target in sample.targets.values()], shape, ignored if ignored.any() else None
    )
    model = predictor.model
    drawn = [_drawn(sample, scene, index, predictor, zoom, rng) for index in range(num_views)]
    pixels = torch.stack([torch.from_numpy(view.image).permute(2, 0, 1) for view in drawn]).to(predictor.device)
    taps = model.backbone((pixels.float() / 255).contiguous(memory_format=torch.channels_last))
    kept = [tap.to("cpu", KEPT_AS) for tap in taps]
    return [
        View(
            tuple(tap[i : i + 1].clone() for tap in kept),
            view.scene,
            view.start,
            _elsewhere(model, tuple(tap[i : i + 1] for tap in taps), view.scene, rng),
        )
        for i, view in enumerate(drawn)
    ]


def _elsewhere(model: SkipClick, taps: tuple[Tensor, ...], scene: Scene, rng: np.random.Generator) -> Scene:
    """The model's answers to single clicks beside a view's objects, unless they overlap these or cover too much."""
    size = scene.layers.shape[1:]
    taken = scene.covered(range(len(scene.objects)))
    free = np.flatnonzero(~cv2.dilate(taken.astype(np.uint8), _BESIDE).astype(bool))
    if not len(free):
        return replace(scene, objects=())
    rows, columns = np.divmod(rng.choice(free, NUM_ELSEWHERE), size[1])
    clicks = [[Click(float(column), float(row))] for row, column in zip(rows, columns, strict=True)]
    positives, negatives = click_points(clicks, taps[0].device)
    nothing = torch.zeros(NUM_ELSEWHERE, 1, *size, device=taps[0].device)
    prompt = prompt_maps(nothing, positives, negatives, model.config.click_radius)
    answers = model.decode(model.prepare(taps).repeat(NUM_ELSEWHERE), prompt).sigmoid().squeeze(1).cpu().numpy()
    masks = [(answer, answer > 0.5) for answer in answers]
    smallest, largest = MIN_AREA * size[0] * size[1], LARGEST_SHARE * size[0] * size[1]
    kept = [answer for answer, mask in masks if smallest <= mask.sum() <= largest and not (taken & mask).any()]
    unsure = np.logical_or.reduce([(answer > UNSURE[0]) & (answer < UNSURE[1]) for answer in kept] or [~taken & False])
    return scene_of_masks([answer > 0.5 for answer in kept], (size[0], size[1]), unsure | taken)


def _drawn(
    sample: Sample, scene: Scene, index: int, first_look: Predictor, zoom: bool, rng: np.random.Generator
) -> DrawnView:
    """View number `index`: 0 is the whole image as the first click sees it, 1 its mirror image; others are random."""
    crop = first_look.resolution[0]
    if index > 1:
        return draw_view(sample.image, scene, crop, first_look, rng, SHARES if zoom else SHARES_WITHOUT_ZOOM)
    whole = AugmentConfig(crop=crop, view="window", whole_prob=1.0, flip_prob=float(index))
    whole = replace(whole, brightness_contrast_prob=0.0, rgb_shift_prob=0.0)
    return DrawnView("whole", *augment(sample.image, scene, whole, rng), start=None)
