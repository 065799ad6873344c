"""The training loop: successive clicks on encoded views, a loss for each answer, best weights by held-out objects.

The network stays in evaluation mode, so that batch norm has the statistics that it is served with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

from skipclick.model import SkipClick
from train.config import PRECISIONS
from train.finetune.config import FinetuneConfig, Progress
from train.finetune.gate import Measured
from train.finetune.views import View
from train.frozen.fit import head_weights
from train.frozen.rollout import MAX_TRIES, Place, answers, place_in, still_clicked
from train.losses import LOSSES


@dataclass(frozen=True, eq=False)
class Learnt:
    """The best weights, and how it went."""

    model: SkipClick  # on the CPU
    step: int
    """The step after which they were taken; 0: nothing better than the start was learnt."""
    measured: Measured
    """On the held-out objects."""
    curve: tuple[tuple[int, float], ...]
    """(step, clicks) at each check, the start included."""


def learn(
    base: SkipClick,
    start: Measured,
    views: Sequence[View],
    measure: Callable[[SkipClick], Measured],
    config: FinetuneConfig,
    on_progress: Callable[[Progress], None],
) -> Learnt:
    """Weights of the head with the least error by `measure`, starting from `base`, which stays as it is.

    start: `measure(base)`. on_progress: called at every step; what it raises ends the work.
    """
    device = torch.device(config.device)
    model: SkipClick = copy.deepcopy(base).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    best_step, best_model, best = 0, copy.deepcopy(base).eval(), start
    curve = [(0, best.clicks)]
    misses, before = 0, 0.0
    for progress in steps(model, views, config):
        on_progress(replace(progress, noc=best.noc))
        if int(before * config.checks) < int(progress.share * config.checks):
            now = measure(model)
            curve.append((progress.step, now.clicks))
            misses += 1
            if now.error < best.error:
                best_step, best_model, best, misses = progress.step, copy.deepcopy(model).cpu(), now, 0
            if misses == config.patience:
                break
        before = progress.share
    return Learnt(best_model, best_step, best, tuple(curve))


def steps(model: SkipClick, views: Sequence[View], config: FinetuneConfig) -> Iterator[Progress]:
    """Train the head of `model` in place, one step per iteration, until the steps or the seconds are used up.

    At least one step is taken; the caller's work between two iterations counts as time of the run.
    """
    model.backbone.requires_grad_(False)  # whatever the model's configuration says
    weights: list[Tensor] = [*head_weights(model).values()]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    precision = PRECISIONS[config.precision] if config.precision else faster_precision(model, views, config)
    places: list[Place] = []
    drawn, step, share, begin = 0, 0, 0.0, time.monotonic()
    while share < 1:
        while len(places) < config.batch_size:
            places.append(draw(views, config, drawn))
            drawn += 1
        optimizer.param_groups[0]["lr"] = learning_rate(config, share)
        optimizer.zero_grad()
        graded = answers(model, places, LOSSES[config.loss], precision)
        loss = graded.loss.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        optimizer.step()
        places = still_clicked(places, graded.probability)
        step += 1
        seconds = time.monotonic() - begin
        share = min(1.0, max(step / config.steps, seconds / config.max_seconds))
        yield Progress("learning", share, step, loss.item(), None, seconds * (1 / share - 1))


def learning_rate(config: FinetuneConfig, share: float) -> float:
    """At a share of the run: rises linearly, then falls to zero along a cosine."""
    if share < config.warmup:
        return config.learning_rate * max(0.1, share / config.warmup)
    return config.learning_rate * 0.5 * (1 + cos(pi * (share - config.warmup) / (1 - config.warmup)))


def draw(views: Sequence[View], config: FinetuneConfig, number: int) -> Place:
    """Object `number` of a run, drawn by the weights of the views; it depends on the seed and the number alone.

    Raises `ValueError` if `MAX_TRIES` objects in a row cannot be clicked on.
    """
    rng = np.random.default_rng((config.seed, number))
    accepted = np.array([view.num_objects * view.weight for view in views], np.float64)
    replayed = np.array([view.num_replayed for view in views], np.float64)
    for _ in range(MAX_TRIES):
        replays = rng.random() < config.replay and replayed.any()
        weights = replayed if replays else accepted
        view = views[int(rng.choice(len(views), p=weights / weights.sum()))]
        place = place_in(view.replayed if replays else view.accepted, rng)
        if place is not None:
            return place
    raise ValueError(f"{MAX_TRIES} objects in a row cannot be clicked on")


def faster_precision(model: SkipClick, views: Sequence[View], config: FinetuneConfig) -> torch.dtype:
    """float32 or bfloat16, whichever is faster on this machine."""
    places = [draw(views, config, number) for number in range(config.batch_size)]

    def seconds(precision: torch.dtype) -> float:
        begin = time.perf_counter()
        answers(model, places, LOSSES[config.loss], precision).loss.mean().item()
        return time.perf_counter() - begin

    candidates = (torch.float32, torch.bfloat16)
    rounds = [[seconds(precision) for precision in candidates] for _ in range(3)]
    return candidates[int(np.argmin(np.min(rounds, axis=0)))]
