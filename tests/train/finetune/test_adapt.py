"""Protects immediate adaptation: it keeps to its time, to its bound and to its seed, forgets old images, touches no
backbone, and a head learns by it."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from skipclick import load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.head import backbone_digest, head_digest, head_state
from skipclick.model import SkipClick
from tests.support.drawn_squares import drawn_example, fixed
from tests.support.small_models import bundled_at_160_pixels
from train.finetune import Example
from train.finetune.adapt import RECIPE, AdaptConfig, Adapted, adapt, balanced
from train.finetune.examples import load_images
from train.finetune.gate import measured
from train.finetune.views import View

UNHURRIED = dataclasses.replace(RECIPE, max_seconds=600.0)  # so that a busy machine takes all steps
QUICK = AdaptConfig(recipe=dataclasses.replace(UNHURRIED, steps=2, batch_size=2, views=1), num_images=2)


@pytest.fixture(scope="module")
def base() -> SkipClick:
    return bundled_at_160_pixels()


@pytest.fixture(scope="module")
def once(base: SkipClick) -> Adapted:
    return adapt(Adapted(base), base, [drawn_example(0)], QUICK)


def head(model: SkipClick) -> str:
    return head_digest(head_state(model))


def distance(one: SkipClick, other: SkipClick) -> float:
    """Of their weights."""
    flat = [torch.cat([weight.detach().flatten() for weight in model.parameters()]) for model in (one, other)]
    return float((flat[0] - flat[1]).norm())


def test_the_head_changes_and_nothing_else(base: SkipClick, once: Adapted) -> None:
    assert head(once.model) != head(base) == head(load_checkpoint("bundled"))
    assert backbone_digest(once.model) == backbone_digest(base)
    kept = {key: tensor for key, tensor in once.model.state_dict().items() if "running_" in key}
    assert kept
    assert all(torch.equal(tensor, base.state_dict()[key]) for key, tensor in kept.items())
    assert once.num_steps == 2


def test_the_seed_decides(base: SkipClick, once: Adapted) -> None:
    def again(seed: int) -> str:
        config = dataclasses.replace(QUICK, recipe=dataclasses.replace(QUICK.recipe, seed=seed))
        return head(adapt(Adapted(base), base, [drawn_example(0)], config).model)

    assert again(0) == head(once.model) != again(1)


def test_it_begins_at_the_model_in_service_and_draws_anew(base: SkipClick, once: Adapted) -> None:
    twice = adapt(once, base, [drawn_example(0)], QUICK)
    assert twice.num_steps == 4
    late = dataclasses.replace(Adapted(base), num_steps=2)
    assert len({head(one.model) for one in (once, twice, adapt(late, base, [drawn_example(0)], QUICK))}) == 3


def test_the_way_back_bounds_the_drift(base: SkipClick, once: Adapted) -> None:
    half = adapt(Adapted(base), base, [drawn_example(0)], dataclasses.replace(QUICK, share=QUICK.share / 2))
    assert distance(half.model, base) == pytest.approx(distance(once.model, base) / 2, rel=1e-3)


def test_time_is_kept(base: SkipClick) -> None:
    """No time at all is still one step; a hundred thousand steps end when their time does."""
    long = dataclasses.replace(QUICK.recipe, steps=100_000)
    for seconds in (1e-9, 1.5):
        config = dataclasses.replace(QUICK, recipe=dataclasses.replace(long, max_seconds=seconds))
        begin = time.monotonic()
        adapted = adapt(Adapted(base), base, [drawn_example(0)], config)
        assert 1 <= adapted.num_steps < 1000
        assert adapted.num_steps == 1 or time.monotonic() - begin > seconds  # used up, not given away


def test_the_newest_images_are_remembered(base: SkipClick, once: Adapted) -> None:
    state = once
    for number in (1, 2):
        state = adapt(state, base, [drawn_example(number)], QUICK)
    assert list(state.memory) == ["drawn-1", "drawn-2"]
    more = [drawn_example(1), dataclasses.replace(drawn_example(5), key="drawn-1")]
    state = adapt(state, base, more, QUICK)
    assert list(state.memory) == ["drawn-2", "drawn-1"]  # worked on again: all its masks, and the newest
    assert len(state.memory["drawn-1"][0].scene.objects) == 2


def test_what_cannot_be_seen_changes_nothing(base: SkipClick, once: Adapted) -> None:
    def gone() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        raise ValueError("gone: status 404")

    speck = np.zeros((96, 128), np.int8)
    speck[5, 5] = 1
    small = dataclasses.replace(drawn_example(1), target=fixed(speck))  # type: ignore[arg-type]
    for nothing in ([], [small], [Example("gone", gone, drawn_example(1).target)]):
        assert adapt(once, base, nothing, QUICK) is once


def test_newest_masks_are_half_of_what_is_drawn(once: Adapted) -> None:
    views: tuple[View, ...] = once.memory["drawn-0"]
    newest, earlier = {"new": views}, {str(place): tuple(map(dataclasses.replace, views)) for place in range(5)}
    drawn = balanced(newest, earlier)
    assert sum(view is views[0] for view in drawn) * 2 == len(drawn) == 10
    assert balanced(newest, {}) == list(views)


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"num_images": 0}):
        with pytest.raises(ValueError, match="share must be above 0"):
            AdaptConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_head_learns_on_the_way(base: SkipClick) -> None:
    """After a few squares, one after the other, clicks leave less wrong on others."""
    config = AdaptConfig(recipe=dataclasses.replace(UNHURRIED, steps=4, views=1, learning_rate=5e-4))
    state = Adapted(base)
    for number in range(4):
        state = adapt(state, base, [drawn_example(number)], config)
    others: list[Sample] = [s for n in range(90, 93) for s in load_images([drawn_example(n)], [])]
    before, after = measured(base, others), measured(state.model, others)
    assert after.error < 0.95 * before.error
