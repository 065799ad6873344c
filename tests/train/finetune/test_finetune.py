"""Protects fine-tuning: what is held out stays held out, the backbone stays frozen, a head learns, and only a model
that needs fewer clicks is called worth promoting."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skipclick import Click, Predictor
from skipclick.evaluation.bootstrap import PairedDifference
from skipclick.evaluation.datasets import open_dataset
from skipclick.evaluation.results import ObjectResult
from skipclick.head import backbone_digest, head_digest, head_state
from skipclick.model import SkipClick
from tests.support.drawn_squares import drawn_example, fixed
from tests.support.small_models import bundled_at_160_pixels
from train.finetune import Candidate, Example, FinetuneConfig, Progress, TooFewError, finetune, split
from train.finetune.annotators import in_turns, owners_of_objects
from train.finetune.examples import load_images
from train.finetune.gate import ForAnnotator, Measured, cost_to_others, measured, num_left_out, promotion_gate
from train.finetune.loop import Learnt, draw, learn, learning_rate
from train.finetune.picture import annotator_lines, picture
from train.finetune.run import allowed_objects
from train.finetune.views import View, encoded_views

CHECK = open_dataset("folder", Path(__file__).parents[3] / "skipclick" / "evaluation" / "check_set")
RETENTION_SET = [CHECK[0], CHECK[10]]  # the others would take their time
QUICK = FinetuneConfig(steps=8, batch_size=4, views=2, checks=2, precision="float32")


@pytest.fixture(scope="module")
def base() -> SkipClick:
    return bundled_at_160_pixels()


@pytest.fixture(scope="module")
def views(base: SkipClick) -> list[View]:
    return encoded_views(base, [drawn_example(n) for n in range(3)], QUICK, [], lambda _: None)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=80), st.data())
def test_split_is_by_image_and_holds_out_a_fifth(numbers: list[int], data: st.DataObject) -> None:
    examples = [Example(f"image {n}", fixed(np.zeros(1)), fixed(np.zeros(1))) for n in numbers]  # type: ignore[arg-type]
    learning, held_out = split(examples)
    images, held_images = {e.key for e in examples}, {e.key for e in held_out}
    assert not held_images & {e.key for e in learning}
    assert len(learning) + len(held_out) == len(examples)
    assert len(held_images) * 5 >= len(images) or len(images) == 1
    assert len(held_images) * 2 <= len(images)
    shuffled = data.draw(st.permutations(examples))
    assert {e.key for e in split(shuffled)[1]} == held_images  # whatever the order


def test_a_fifth_of_each_annotators_images_is_held_out() -> None:
    """Else a head would serve people whose objects nobody has measured it on."""
    who = {"a": 40, "b": 2, "c": 6, "d": 1}
    numbered = enumerate(name for name, count in who.items() for _ in range(count))
    examples = [dataclasses.replace(drawn_example(number), annotator=name) for number, name in numbered]
    learning, held_out = split(examples)
    for name, count in who.items():
        held = sum(example.annotator == name for example in held_out)
        assert held + sum(example.annotator == name for example in learning) == count
        assert held * 5 >= count or count == 1
    assert len(held_out) * 2 <= len(examples)


def test_images_stay_on_their_side_when_others_come() -> None:
    """Else a model in service would be measured on what it has learnt."""
    examples = [drawn_example(n) for n in range(400)]
    few, many = ({e.key for e in split(examples[:count])[1]} for count in (100, 400))
    known = {e.key for e in examples[:100]}
    assert few == many & known


def test_unreadable_images_are_passed_over() -> None:
    def broken() -> NDArray[np.uint8]:
        raise ValueError("gone: status 404")

    whole = drawn_example(0)
    wrong = dataclasses.replace(drawn_example(1), target=fixed(np.ones((5, 5), np.int8)))  # type: ignore[arg-type]
    empty = dataclasses.replace(drawn_example(2), target=fixed(np.zeros((96, 128), np.int8)))  # type: ignore[arg-type]
    problems: list[str] = []
    samples = list(load_images([Example("gone", broken, whole.target), whole, wrong, empty], problems))
    assert [sample.name for sample in samples] == ["drawn-0"]
    assert [problem.split(":")[0] for problem in problems] == ["gone", "drawn-1", "drawn-2"]


def test_a_mask_that_cannot_be_used_does_not_take_its_image_with_it() -> None:
    """One annotator's damaged mask, or one of another size, leaves the other objects of the photo."""

    def missing() -> NDArray[np.int8]:
        raise ValueError("the mask file is gone")

    good = drawn_example(0, "same")
    bad = [
        dataclasses.replace(good, target=target)
        for target in (fixed(np.ones((5, 5), np.int8)), fixed(np.zeros((96, 128), np.int8)), missing)  # type: ignore[arg-type]
    ]
    problems: list[str] = []
    (sample,) = load_images([*bad, good], problems)
    assert list(sample.targets) == [4]
    np.testing.assert_array_equal(sample.targets[4], good.target())
    assert problems == [
        "same: a mask has the shape (5, 5), its image (96, 128)",
        "same: a mask is empty",
        "the mask file is gone",
    ]


def test_objects_of_one_image_are_one_sample() -> None:
    [sample] = load_images([drawn_example(0, "same"), dataclasses.replace(drawn_example(0), key="same")], [])
    assert list(sample.targets) == [1, 2]


def test_first_view_is_what_serving_sees(base: SkipClick, views: list[View]) -> None:
    features = Predictor(base, keep_taps=True).encode(drawn_example(0).image())
    for mine, served in zip(views[0].taps, features.taps, strict=True):
        assert torch.nn.functional.cosine_similarity(mine.float().flatten(), served.flatten(), dim=0) > 0.999
    mirrored = views[1].scene.mask(views[1].scene.objects[0])
    assert np.array_equal(mirrored[:, ::-1], views[0].scene.mask(views[0].scene.objects[0]))


def test_replayed_answers_never_touch_accepted_masks(views: list[View]) -> None:
    for view in views:
        accepted = view.scene.covered(range(len(view.scene.objects)))
        for one in view.elsewhere.objects:
            assert not (view.elsewhere.mask(one) & accepted).any()


def test_memory_bounds_the_views(base: SkipClick) -> None:
    examples = [drawn_example(n) for n in range(4)]
    size = sum(tap.nbytes for tap in encoded_views(base, examples[:1], QUICK, [], lambda _: None)[0].taps)
    problems: list[str] = []

    def count(**changes: int) -> int:
        config = dataclasses.replace(QUICK, views=6, **changes)
        return len(encoded_views(base, examples, config, problems, lambda _: None))

    assert count(max_bytes=8 * size) == count(max_views=9) == 8  # two of each
    assert not problems
    assert count(max_bytes=3 * size) == 3
    assert "after the first 3 are left out" in problems[0]


def test_an_object_depends_on_seed_and_number_only(views: list[View]) -> None:
    def clicks(number: int, seed: int = 0) -> tuple[Click, ...]:
        return draw(views, dataclasses.replace(QUICK, seed=seed), number).clicks

    assert clicks(3) == clicks(3)
    assert len({clicks(3), clicks(4), clicks(3, seed=1)}) == 3


def test_zoom_in_is_learnt_where_it_is_served(base: SkipClick) -> None:
    """Crops begin at the answer to the clicks on the whole photo; without zoom-in there are windows instead."""

    def starts(zoom: bool) -> list[bool]:
        config = dataclasses.replace(QUICK, views=8, zoom=zoom)
        return [view.start is not None for view in encoded_views(base, [drawn_example(0)], config, [], lambda _: None)]

    with_zoom = starts(True)
    assert not any(with_zoom[:2])  # the first click sees the whole photo
    assert any(with_zoom[2:])
    assert not any(starts(False))


def test_what_is_replayed_is_what_the_base_answered(views: list[View]) -> None:
    replays = dataclasses.replace(QUICK, replay=0.999)
    if not any(view.num_replayed for view in views):
        pytest.fail("no view replays anything: draw other examples")
    targets = [draw(views, replays, number).target == 1 for number in range(6)]
    accepted = [view.scene.covered(range(len(view.scene.objects))) for view in views]
    for target in targets:
        assert any(not (target & mask).any() for mask in accepted)


def needing(clicks: int) -> Measured:
    """A measurement of one object that takes so many clicks."""
    return Measured((ObjectResult("a", 1, None, [0.1] * (clicks - 1) + [0.95], [], 0.0, []),))


def learnt_with(base: SkipClick, views: list[View], *clicks: int, **changes: Any) -> Learnt:
    """Four steps with a check after each, which finds these clicks, those of the base first."""
    config = dataclasses.replace(QUICK, steps=4, checks=4, **changes)
    start, *found = map(needing, clicks)
    return learn(base, start, views, lambda _: found.pop(0), config, lambda _: None)


def test_learning_changes_the_head_and_nothing_else(base: SkipClick, views: list[View]) -> None:
    before = head_digest(head_state(base))
    learnt = learnt_with(base, views, 9, 8, 7, 6, 5)
    assert learnt.step == 4
    assert head_digest(head_state(learnt.model)) != before == head_digest(head_state(base))
    assert backbone_digest(learnt.model) == backbone_digest(base)
    kept = {key: tensor for key, tensor in learnt.model.state_dict().items() if "running_" in key}
    assert kept
    assert all(torch.equal(tensor, base.state_dict()[key]) for key, tensor in kept.items())


def test_the_best_weights_count_and_patience_ends_the_run(base: SkipClick, views: list[View]) -> None:
    learnt = learnt_with(base, views, 9, 6, 7, 6, patience=2)
    assert (learnt.step, learnt.measured.clicks) == (1, 6)
    assert learnt.curve == ((0, 9), (1, 6), (2, 7), (3, 6))


def test_where_nothing_gets_better_the_base_comes_back(base: SkipClick, views: list[View]) -> None:
    learnt = learnt_with(base, views, 5, 6, 7, patience=2)
    assert learnt.step == 0
    assert head_digest(head_state(learnt.model)) == head_digest(head_state(base))


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [learning_rate(QUICK, share) for share in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(QUICK.learning_rate)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_slow_machine_has_a_shorter_schedule(base: SkipClick, views: list[View]) -> None:
    seen: list[Progress] = []
    config = dataclasses.replace(QUICK, steps=100_000, checks=1, max_seconds=1.0)
    learn(base, needing(6), views, lambda _: needing(5), config, seen.append)
    learning = [one for one in seen if one.stage == "learning"]
    assert learning[-1].share == 1.0
    assert learning[-1].step < 100_000


def difference(old: float, new: float, low: float, high: float) -> PairedDifference:
    return PairedDifference("set", "model", 0, 10, 8, old, new, (low, high))


@pytest.mark.parametrize(
    ("gain", "loss", "worth", "word"),
    [
        ((9.0, 6.0, -4.0, -2.0), (5.0, 5.2, -0.1, 0.5), True, "retention set"),
        ((9.0, 8.5, -1.2, 0.1), (5.0, 5.0, 0.0, 0.0), False, "chance"),
        ((9.0, 9.0, 0.0, 0.0), (5.0, 5.0, 0.0, 0.0), False, "chance"),
        ((9.0, 6.0, -4.0, -2.0), (5.0, 5.6, 0.2, 1.0), False, "forgetting"),
    ],
)
def test_only_fewer_clicks_without_forgetting_are_worth_promoting(
    gain: tuple[float, float, float, float], loss: tuple[float, float, float, float], worth: bool, word: str
) -> None:
    decided, reason = promotion_gate([difference(*gain)], [difference(*loss)], margin=0.5)
    assert decided == worth
    assert word in reason


def of_annotator(name: str, *changes: float) -> ForAnnotator:
    """Whose held-out objects, which took 5 clicks, change by so many."""
    return ForAnnotator(name, 10, 0.5, (5.0,) * len(changes), tuple(5 + change for change in changes))


@pytest.mark.parametrize(
    ("annotators", "words"),
    [
        ([], ""),
        ([of_annotator("7", -4, -4)], ""),
        ([of_annotator("7", -4, -4), of_annotator("8", -0.5, 0.5)], ""),
        ([of_annotator("7", -4, -4), of_annotator("8")], ""),  # nothing of 8 is held out
        ([of_annotator("7", -4, -4, -4), of_annotator("8", 1)], "+1.00 clicks on the 1 of all annotators but 7"),
        ([of_annotator("", -4), of_annotator("8", 1), of_annotator("9", -0.5)], "but unknown, who gain most"),
        ([of_annotator("7", 1), of_annotator("8", -4), of_annotator("9", -4)], ""),  # one is no majority, nor a veto
        (  # two who draw alike do not hide behind each other
            [of_annotator("7", -4, -4), of_annotator("8", -3, -4), of_annotator("9", 1), of_annotator("10", -0.5)],
            "+0.25 clicks on the 2 of all annotators but 7 and 8",
        ),
        (
            [of_annotator(f"{n}", -4) for n in range(4)] + [of_annotator(f"1{n}", 0.1) for n in range(4)],
            "only 4 of 8 annotators need no more clicks",
        ),
    ],
)
def test_a_gain_must_not_be_one_annotators_at_the_cost_of_others(annotators: list[ForAnnotator], words: str) -> None:
    assert words in cost_to_others(annotators)
    assert bool(words) == bool(cost_to_others(annotators))
    decided, reason = promotion_gate([difference(9, 6, -4, -2)], [difference(5, 5, 0, 0)], 0.5, annotators)
    assert decided == (not words)
    assert words in reason


@pytest.mark.parametrize("num_annotators", [2, 5, 20])
def test_a_team_that_draws_alike_is_hardly_ever_refused(num_annotators: int) -> None:
    """40 held-out objects whose changes differ by chance alone (a standard deviation of 3 clicks): a gain that is shown
    on all of them is refused for its annotators in fewer than one case of twenty."""
    rng = np.random.default_rng(0)
    num_shown = num_refused = 0
    for _ in range(1000):
        changes = rng.normal(-1.5, 3, 40)
        if changes.mean() + 1.96 * changes.std() / 40**0.5 < 0:
            num_shown += 1
            team = [of_annotator(str(n), *changes[n::num_annotators].tolist()) for n in range(num_annotators)]
            num_refused += bool(cost_to_others(team))
    assert num_shown > 500
    assert num_refused * 20 < num_shown


def test_two_or_a_fifth_of_the_annotators_may_be_left_out() -> None:
    assert [num_left_out(count) for count in (2, 3, 4, 5, 10, 11, 20, 100)] == [1, 1, 2, 2, 2, 3, 4, 20]


def test_a_crowded_image_of_one_annotator_is_not_all_that_is_measured() -> None:
    crowded = [dataclasses.replace(drawn_example(0, "crowded"), annotator="7") for _ in range(30)]
    others = [dataclasses.replace(drawn_example(number), annotator="8") for number in range(1, 30)]
    turns = in_turns([*crowded, *others])
    owners = owners_of_objects(turns)
    allowed = {"7": 5, "8": 5}
    samples = list(allowed_objects(load_images(turns, []), owners, allowed))
    assert Counter(owners[sample.name, number] for sample in samples for number in sample.targets) == allowed


def test_the_weight_of_a_view_says_how_often_it_is_drawn(views: list[View]) -> None:
    config = dataclasses.replace(QUICK, replay=0.0)
    first, second = dataclasses.replace(views[0], weight=3.0), dataclasses.replace(views[-1], weight=1.0)
    targets = [draw([first, second], config, number).target == 1 for number in range(200)]
    mask = first.scene.mask(first.scene.objects[0])
    assert 120 < sum(np.array_equal(target, mask) for target in targets) < 180  # of 200, three quarters


def test_too_few_objects_are_told_so(base: SkipClick) -> None:
    with pytest.raises(TooFewError, match="3 objects in 3 images are too few: it takes 8 objects"):
        finetune(base, [drawn_example(n) for n in range(3)], [], QUICK)
    with pytest.raises(TooFewError, match="9 objects in 1 image are too few"):
        finetune(base, [drawn_example(n, "the only one") for n in range(9)], [], QUICK)


def test_what_progress_raises_ends_the_work(base: SkipClick) -> None:
    def seen(progress: Progress) -> None:
        if progress.stage == "learning":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(base, [drawn_example(n) for n in range(8)], RETENTION_SET, QUICK, seen)


SHOWN = [drawn_example(n) for n in range(32)]  # seven of them are held out: enough to tell learning from chance


@pytest.fixture(scope="module")
def candidate(base: SkipClick) -> Candidate:
    config = FinetuneConfig(steps=40, batch_size=4, views=2, checks=1, precision="float32")
    return finetune(base, SHOWN, RETENTION_SET, config)


@pytest.mark.slow
def test_a_head_learns_what_it_is_shown(base: SkipClick, candidate: Candidate) -> None:
    """The whole way, on squares whose stripe the base model takes for something else."""
    report = candidate.report
    assert report.step > 0
    assert report.worth_promoting, report.reason
    assert report.held_out[-1].interval[1] < 0
    assert report.retention[-1].change <= report.config.retention_margin
    assert candidate.after.clicks < candidate.before.clicks
    new = measured(candidate.model, [s for n in range(90, 94) for s in load_images([drawn_example(n)], [])])
    old = measured(base, [s for n in range(90, 94) for s in load_images([drawn_example(n)], [])])
    assert new.clicks < old.clicks  # objects that had no part in the choice
    assert json.loads(json.dumps(report.to_dict()))["num_objects"] == len(SHOWN)
    (one,) = report.annotators
    assert (one.annotator, one.share, one.num_learnt + len(one.old)) == ("", 1.0, len(SHOWN))
    assert np.mean(one.new) == pytest.approx(candidate.after.clicks)


@pytest.mark.slow
def test_the_model_in_service_is_what_must_be_beaten(base: SkipClick, candidate: Candidate) -> None:
    """A second, short job on the same data makes nothing better than the first one's head."""
    config = dataclasses.replace(candidate.report.config, steps=4)
    again = finetune(base, SHOWN, RETENTION_SET, config, in_service=candidate.model)
    assert not again.report.worth_promoting
    assert again.report.held_out[-1].old == candidate.after.clicks


def test_the_picture_says_whose_objects_taught() -> None:
    assert annotator_lines([of_annotator("7", -4)]) == []
    assert annotator_lines([of_annotator("7", -4, -2), of_annotator("")]) == [
        "annotator 7: taught 50% (10 objects), held out 2: 5.00 to 2.00 clicks",
        "annotator unknown: taught 50% (10 objects), none held out",
    ]
    assert annotator_lines([of_annotator(f"{n}") for n in range(11)])[8:] == ["and 3 more, who taught less"]


@pytest.mark.slow
def test_the_picture_shows_both_models(base: SkipClick, candidate: Candidate) -> None:
    shown = picture(candidate, base, num_rows=2)
    assert shown.dtype == np.uint8
    assert shown.shape[1:] == (960, 3)
    assert shown.shape[0] > 2 * 234
