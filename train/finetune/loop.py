"""The head learns: simulated clicks on encoded views, graded answers, best weights by what held-out objects say.

The network stays in evaluation mode: batch norm's statistics are those that it is served with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import cos, pi

import numpy as np
import torch
from torch import Tensor, nn

from skipclick.model import SkipClick
from train.config import PRECISIONS
from train.dataset import ObjectBatch
from train.finetune.config import FinetuneConfig, Progress
from train.finetune.gate import Measured
from train.finetune.views import MIN_AREA, View
from train.losses import LOSSES
from train.objective import autocast, graded_answer
from train.sampler import SamplerConfig, sample_object, sample_points

SAMPLER = SamplerConfig(min_object_area=MIN_AREA, merge_prob=0.0, single_centre_prob=0.5)


@dataclass(frozen=True, eq=False)
class Learnt:
    """The best weights, and how it went."""

    model: SkipClick  # on the CPU
    step: int
    """After which these weights were; 0: nothing that was learnt was better than the start."""
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

    start: what `measure` says of `base`. on_progress: called at every step; what it raises ends the work.
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
    """The head of `model` learns in place, one step at each turn, until the steps or the seconds are used up.

    The first step is always taken; what is done between two turns counts as time of the run.
    """
    weights: list[Tensor] = [*head_weights(model)]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    precision = PRECISIONS[config.precision] if config.precision else faster_precision(model, views, config)
    step, share, begin = 0, 0.0, time.monotonic()
    while share < 1:
        optimizer.param_groups[0]["lr"] = learning_rate(config, share)
        optimizer.zero_grad()
        loss = graded_loss(model, draw(views, config, step), config, step, precision)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        optimizer.step()
        step += 1
        seconds = time.monotonic() - begin
        share = min(1.0, max(step / config.steps, seconds / config.max_seconds))
        yield Progress("learning", share, step, loss.item(), None, seconds * (1 / share - 1))


def head_weights(model: SkipClick) -> list[nn.Parameter]:
    """All weights but the backbone's, which are frozen, in place, whatever the model's configuration says."""
    model.backbone.requires_grad_(False)
    return [weight for name, weight in model.named_parameters() if not name.startswith("backbone.")]


def learning_rate(config: FinetuneConfig, share: float) -> float:
    """At a share of the run: rises evenly, then falls to nothing by a cosine."""
    if share < config.warmup:
        return config.learning_rate * max(0.1, share / config.warmup)
    return config.learning_rate * 0.5 * (1 + cos(pi * (share - config.warmup) / (1 - config.warmup)))


@dataclass(frozen=True, eq=False)
class Drawn:
    """B objects, each in a view of its own."""

    taps: tuple[Tensor, ...]  # (B, C_i, h_i, w_i)
    objects: ObjectBatch
    rngs: tuple[np.random.Generator, ...]  # of each object's next clicks


def draw(views: Sequence[View], config: FinetuneConfig, step: int) -> Drawn:
    """The batch of a step, all objects of all views alike likely; it depends on (seed, step) and nothing else."""
    device = torch.device(config.device)
    rngs = tuple(np.random.default_rng((config.seed, step, place)) for place in range(config.batch_size))
    accepted = np.array([view.num_objects for view in views], np.float64)
    replayed = np.array([len(view.elsewhere.objects) for view in views], np.float64)
    chosen, objects = [], []
    for rng in rngs:
        replays = rng.random() < config.replay and replayed.any()
        weights = replayed if replays else accepted
        view = views[int(rng.choice(len(views), p=weights / weights.sum()))]
        chosen.append(view)
        objects.append(sample_object(view.elsewhere if replays else view.scene, SAMPLER, rng))
    points = [sample_points(one, SAMPLER, rng) for one, rng in zip(objects, rngs, strict=True)]
    taps = tuple(torch.cat(level).to(device) for level in zip(*(view.taps for view in chosen), strict=True))
    batch = ObjectBatch(
        torch.from_numpy(np.stack([one.target for one in objects])),
        torch.from_numpy(np.stack([one.positives for one in points])),
        torch.from_numpy(np.stack([one.negatives for one in points])),
    )
    return Drawn(taps, batch.to(device), rngs)


def graded_loss(model: SkipClick, drawn: Drawn, config: FinetuneConfig, step: int, precision: torch.dtype) -> Tensor:
    """The mean loss of the answers after 0 to `max_num_next_clicks` simulated corrections, which carry no gradient."""
    num_clicks = int(np.random.default_rng((config.seed, step)).integers(config.max_num_next_clicks + 1))
    with autocast(drawn.objects.target.device, precision):
        features = model.prepare(tuple(tap.float() for tap in drawn.taps))
    return graded_answer(model, features, drawn.objects, num_clicks, drawn.rngs, LOSSES[config.loss], precision)[0]


def faster_precision(model: SkipClick, views: Sequence[View], config: FinetuneConfig) -> torch.dtype:
    """float32 or bfloat16, whichever a step takes less time in here."""

    def seconds(precision: torch.dtype) -> float:
        drawn = draw(views, config, 0)
        begin = time.perf_counter()
        graded_loss(model, drawn, config, 0, precision).item()
        return time.perf_counter() - begin

    candidates = (torch.float32, torch.bfloat16)
    rounds = [[seconds(precision) for precision in candidates] for _ in range(3)]
    return candidates[int(np.argmin(np.min(rounds, axis=0)))]
