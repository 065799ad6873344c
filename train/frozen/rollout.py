"""A batch whose places hold one object each for several clicks; every answer has a loss and is the next previous mask.

No forward pass is spent on simulation alone: eight clicks on an object are eight training examples. That needs the
answers that serving gives, so the network stays in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipclick import Click
from skipclick.model import SkipClick
from skipclick.prompts import click_points, prompt_maps
from skipclick.simulation import TRAINING_THRESHOLD
from train.frozen.store import EncodedView, read_view
from train.frozen.views import simulated_click
from train.losses import Loss
from train.objective import autocast
from train.sampler import Points, SamplerConfig, sample_object, sample_points

MIN_AREA = 1.5e-3  # of a view; smaller objects are not drawn
MAX_CLICKS = 8  # maximum number of steps that an object stays, which is drawn uniformly from 1
START_PROB = 0.8  # probability that a zoomed-in view starts from the answer on the whole photo
SPREAD_PROB = 0.1  # otherwise, of several clicks at once, as the released code samples them, instead of one
MAX_TRIES = 20


@dataclass(frozen=True, eq=False)
class Place:
    """One object of one view, with its clicks so far and the answer to all but the last."""

    taps: tuple[Tensor, ...]  # (1, C_i, h_i, w_i) float32
    target: NDArray[np.int8]  # (H, W): 1 object, 0 background, -1 ignored
    clicks: tuple[Click, ...]
    previous: NDArray[np.float32]  # (H, W)
    remaining: int  # answers to come
    rng: np.random.Generator


class Answers(NamedTuple):
    loss: Tensor  # (B,), with gradient
    probability: NDArray[np.float32]  # (B, H, W)


def new_place(views: Sequence[Path], rng: np.random.Generator) -> Place:
    """An object of a random view. Raises `ValueError` if `MAX_TRIES` views in a row have none, or one is broken."""
    for _ in range(MAX_TRIES):
        view = read_view(views[int(rng.integers(len(views)))])
        place = place_in(view, rng)
        if place is not None:
            return place
    raise ValueError(f"{views[0].parent}: {MAX_TRIES} views in a row show no object that is large enough")


def place_in(view: EncodedView, rng: np.random.Generator) -> Place | None:
    """A random object of a view; None if it shows none that is large enough."""
    taps = tuple(tap.float() for tap in view.taps)
    remaining = int(rng.integers(1, MAX_CLICKS + 1))
    if view.start is not None and rng.random() < START_PROB:
        previous = view.start.probability.astype(np.float32) / np.float32(255)
        click = simulated_click(previous, view.start.target, view.start.clicks, rng)
        return Place(taps, view.start.target, (*view.start.clicks, click), previous, remaining, rng)
    size = view.scene.layers.shape[1:]
    sampler = SamplerConfig(min_object_area=int(MIN_AREA * size[0] * size[1]), merge_prob=0.05)
    chosen = sample_object(view.scene, sampler, rng)
    if not chosen.parts:
        return None
    nothing = np.zeros(size, np.float32)
    if rng.random() < SPREAD_PROB:
        clicks = _clicks(sample_points(chosen, sampler, rng))
    else:
        clicks = (simulated_click(nothing, chosen.target, (), rng),)
    return Place(taps, chosen.target, clicks, nothing, remaining, rng)


def _clicks(points: Points) -> tuple[Click, ...]:
    both = ((points.positives, True), (points.negatives, False))
    return tuple(Click(float(x), float(y), kind) for slots, kind in both for y, x in slots if y >= 0)


def answers(model: SkipClick, places: Sequence[Place], grade: Loss, dtype: torch.dtype = torch.float32) -> Answers:
    """The network's answers to the places' clicks, and their loss by `grade`. dtype: of the matrix products."""
    device = next(model.parameters()).device
    taps = tuple(
        torch.cat(level).to(device, memory_format=torch.channels_last)
        for level in zip(*(place.taps for place in places), strict=True)
    )
    previous = torch.from_numpy(np.stack([place.previous for place in places]))[:, None].to(device)
    positives, negatives = click_points([place.clicks for place in places], device)
    prompt = prompt_maps(previous, positives, negatives, model.config.click_radius)
    with autocast(device, dtype):
        logits = model.decode(model.prepare(taps), prompt).float()
    target = torch.from_numpy(np.stack([place.target for place in places]))[:, None].to(device).float()
    loss = grade(logits, target)
    return Answers(loss, logits.detach().sigmoid()[:, 0].cpu().numpy())


def advanced(place: Place, probability: NDArray[np.float32]) -> Place | None:
    """The place after an answer, with its next click; None if it has had all its clicks, or nothing is wrong."""
    wrong = (place.target >= 0) & ((probability > TRAINING_THRESHOLD) != (place.target == 1))
    if place.remaining <= 1 or not wrong.any():
        return None
    click = simulated_click(probability, place.target, place.clicks, place.rng)
    return replace(place, clicks=(*place.clicks, click), previous=probability, remaining=place.remaining - 1)


def still_clicked(places: Sequence[Place], probability: NDArray[np.float32]) -> list[Place]:
    """The places that get another click after these answers, (B, H, W)."""
    moved = [advanced(place, answer) for place, answer in zip(places, probability, strict=True)]
    return [place for place in moved if place is not None]
