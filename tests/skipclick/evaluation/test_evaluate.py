"""Protects the simulated session: its clicks one by one, what the model is given, batches, seeds, both protocols."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from skipclick import Click, Predictor, load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.evaluate import (
    MAX_BATCH,
    Rules,
    evaluate,
    evaluate_together,
    extent_of,
    make_rules,
    replay,
    simulate,
)
from skipclick.evaluation.results import ObjectResult
from skipclick.metrics import mask_iou
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest
from skipclick.simulation import error_regions, jittered_click
from skipclick.zoom import crop_encoder, predict_zoomed, zoom_request
from tests.support.bench_models import BatchDiscModel, DiscModel, scene
from tests.support.parity_files import for_each_golden, load_golden
from tests.support.rule_weights import layout_of, rule_model
from tests.support.small_models import SMALL_CONV


def found(results: list[ObjectResult]) -> list[tuple[str, int, list[float], list[Click]]]:
    """Everything but the times."""
    return [(one.image, one.object_id, one.ious, one.clicks) for one in results]


def two_objects() -> Sample:
    image, target = scene()
    other = np.zeros_like(target)
    other[5:30, 5:30] = 1
    return Sample("two", image, {1: target, 7: other}, "shape")


def test_a_session_clicks_the_error_and_hands_the_answer_back() -> None:
    _, target = scene()
    model = DiscModel(radius=10)
    ious, clicks, click_ms = simulate(model, target.shape, target, Rules(num_clicks=6))
    assert len(ious) == len(clicks) == len(click_ms) == 6
    assert clicks[0].positive
    assert np.hypot(clicks[0].x - 60, clicks[0].y - 45) < 3
    assert len(set(clicks)) == 6
    assert model.previous_sums[0] is None
    final = model.click(target.shape, clicks, None) > 0.49
    assert ious[-1] == mask_iou(final, target)
    assert model.previous_sums[1] == pytest.approx((model.click(target.shape, clicks[:1], None) > 0.49).sum())


def test_a_session_ends_when_the_object_is_good_enough() -> None:
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 10, (1,), cv2.FILLED)
    target = np.asarray(disc, np.int8)
    ious, clicks, _ = simulate(DiscModel(radius=10), target.shape, target)
    assert ious == [1.0]
    assert clicks == [Click(30.0, 30.0)]


def test_a_photo_is_encoded_once_for_all_its_objects() -> None:
    image, target = scene()
    model = DiscModel(radius=10)
    samples = [two_objects(), Sample("b", image, {3: target}), Sample("c", image, {})]
    results = list(evaluate(model, samples, Rules(num_clicks=2)))
    assert model.num_encoded == 3
    assert [(one.image, one.object_id, one.category) for one in results] == [
        ("two", 1, "shape"),
        ("two", 7, "shape"),
        ("b", 3, None),
    ]
    assert results[0].encode_ms == results[1].encode_ms > 0


def test_objects_are_clicked_in_one_batch_that_finished_ones_leave() -> None:
    sample = two_objects()
    disc = np.asarray(cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 10, (1,), cv2.FILLED), np.int8)
    sample = replace(sample, targets=sample.targets | {9: disc})
    model = BatchDiscModel(radius=10)
    results = list(evaluate(model, [sample], Rules(num_clicks=4)))
    assert model.batches == [3, 2, 2, 2]  # the disc is right after one click
    assert found(results) == found(list(evaluate(DiscModel(radius=10), [sample], Rules(num_clicks=4))))


def test_many_objects_come_in_several_batches() -> None:
    image, target = scene()
    model = BatchDiscModel(radius=5)
    list(evaluate(model, [Sample("many", image, dict.fromkeys(range(1, MAX_BATCH + 3), target))], Rules(num_clicks=1)))
    assert model.batches == [MAX_BATCH, 2]


def test_photos_together_give_what_they_give_alone() -> None:
    image, target = scene()
    samples = [two_objects(), Sample("b", image[:, ::-1], {3: target[:, ::-1].copy()})]
    rules = Rules(num_clicks=5)
    together = evaluate_together(BatchDiscModel(radius=8), samples, rules, None)
    assert found(together) == found(list(evaluate(BatchDiscModel(radius=8), samples, rules)))


def test_jittered_clicks_depend_on_seed_photo_and_object_alone() -> None:
    image, target = scene()
    rules = Rules(num_clicks=3, clicks="jitter", seeds=(0, 1))
    sample = two_objects()
    first = found(list(evaluate(DiscModel(radius=8), [sample], rules, seed=0)))
    assert first == found(list(evaluate(DiscModel(radius=8), [Sample("x", image, {1: target}), sample], rules, 0)))[1:]
    only_second = replace(sample, targets={7: sample.targets[7]})
    assert first[1:] == found(list(evaluate(DiscModel(radius=8), [only_second], rules, seed=0)))
    assert first != found(list(evaluate(DiscModel(radius=8), [sample], rules, seed=1)))
    renamed = replace(sample, name="other")
    assert first[0][3] != found(list(evaluate(DiscModel(radius=8), [renamed], rules, seed=0)))[0][3]


def test_a_jittered_click_lies_in_the_error() -> None:
    _, target = scene()
    (result,) = evaluate(DiscModel(8), [Sample("a", np.zeros((90, 120, 3), np.uint8), {1: target})], Rules(), seed=4)
    mask = np.zeros(target.shape, np.bool_)
    for count, click in enumerate(result.clicks, start=1):
        false_negative, false_positive = error_regions(mask, target)
        assert (false_negative if click.positive else false_positive)[int(click.y), int(click.x)]
        mask = DiscModel(8).click(target.shape, result.clicks[:count], None) > 0.49


def test_weighted_clicks_are_drawn_by_depth() -> None:
    """In the error, a pixel as often as it is deep: at times near the outline, where the inner half never is."""
    target = np.zeros((90, 120), np.int8)
    cv2.circle(target.view(np.uint8), (60, 45), 30, (1,), cv2.FILLED)
    drawn: dict[bool, list[float]] = {}
    for weighted in (False, True):
        rng = np.random.default_rng(1)
        clicks = [
            jittered_click(np.zeros(target.shape, np.bool_), target, [], rng, weighted=weighted) for _ in range(400)
        ]
        assert all(click.positive for click in clicks)
        drawn[weighted] = [float(np.hypot(click.x - 60, click.y - 45)) for click in clicks]
    assert max(drawn[False]) < 17 < 20 < max(drawn[True]) <= 30.5
    assert np.mean(drawn[True]) == pytest.approx(15, abs=1)  # of a cone: half the radius
    rules = make_rules("paper", "weighted", 2, [85], None)
    assert rules.seeds == (0, 1)
    sample = two_objects()
    found_weighted = found(list(evaluate(DiscModel(8), [sample], replace(rules, num_clicks=2), seed=0)))
    jitter = replace(rules, num_clicks=2, clicks="jitter")
    assert found_weighted != found(list(evaluate(DiscModel(8), [sample], jitter, seed=0)))


@pytest.fixture
def network() -> SkipClick:
    torch.manual_seed(0)
    return SkipClick(SMALL_CONV).eval()


def photo() -> NDArray[np.uint8]:
    return scene()[0]


def test_the_paper_protocol_is_click_by_click_what_the_predictor_says(network: SkipClick) -> None:
    predictor = Predictor(network, flip=True)
    _, target = scene()
    (result,) = evaluate(predictor, [Sample("a", photo(), {1: target})], Rules(num_clicks=3))
    features = predictor.encode(photo())
    previous = None
    for count, value in enumerate(result.ious, start=1):
        previous = predictor.click(features, result.clicks[:count], previous)
        assert value == mask_iou(previous > 0.49, target)


@for_each_golden("golden_rollout_*.npz")
@pytest.mark.parametrize("flip", [True, False], ids=["flip", "noflip"])
def test_the_paper_protocol_goes_as_the_released_evaluation(golden: Path, flip: bool) -> None:
    """Clicks and IoUs of the authors' script, for an object alone and for three in a batch."""
    data = load_golden(golden)
    prefix = "flip" if flip else "noflip"
    height, width = (int(v) for v in data["target"])
    model = rule_model(layout_of(golden), float(data["conv_seg_bias_shift"]))
    predictor = Predictor(model, (height, width), flip=flip)
    expected = [Click(float(x), float(y), bool(positive)) for positive, y, x in data[f"{prefix}_clicks"].tolist()]
    rules = Rules(num_clicks=len(expected), flip=flip)
    for object_ids in ((1,), (1, 2, 3)):
        sample = Sample("golden", data["image"], dict.fromkeys(object_ids, data["gt"]))
        for result in evaluate(predictor, [sample], rules):
            assert result.clicks == expected
            np.testing.assert_allclose(result.ious, data[f"{prefix}_ious"], atol=2e-3)


def test_the_serve_protocol_is_click_by_click_what_annotators_get(network: SkipClick) -> None:
    predictor = Predictor(network)
    _, target = scene()
    rules = replace(make_rules("serve", "center", 0, [85], None, zoom=False), num_clicks=3)
    (result,) = evaluate(predictor, [Sample("a", photo(), {1: target})], rules)
    features = predictor.encode(photo())
    state = None
    for count, value in enumerate(result.ious, start=1):
        (answer,) = predictor.predict([ClickRequest(features, result.clicks[:count], state)])
        assert value == mask_iou(answer.mask.full(), target)
        state = answer.state


def small_things() -> Sample:
    """Two small objects of a larger photo."""
    image = np.full((240, 320, 3), 90, np.uint8)
    targets = {}
    for number, centre in enumerate([(80, 60), (230, 170)], 1):
        cv2.circle(image, centre, 22, (250, 220, 30), cv2.FILLED)
        targets[number] = np.asarray(cv2.circle(np.zeros((240, 320), np.uint8), centre, 22, (1,), cv2.FILLED), np.int8)
    return Sample("small", image, targets)


def test_the_serve_protocol_zooms_in_click_by_click() -> None:
    """What `skipclick.zoom` answers from scratch, and which crops that took; the whole photo has other answers."""
    predictor = Predictor(load_checkpoint("bundled"), (192, 192))
    sample = small_things()
    rules = replace(make_rules("serve", "center", 0, [85], None), num_clicks=3, target_iou=1.01)
    results = list(evaluate(predictor, [sample], rules))
    features = predictor.encode(sample.image)
    for result in results:
        target = sample.targets[result.object_id]
        before, views = None, set()
        for count, value in enumerate(result.ious, start=1):
            request = zoom_request(features, result.clicks[:count], before, crop_encoder(predictor, sample.image))
            (answer,) = predict_zoomed(predictor, [request])
            assert value == pytest.approx(
                mask_iou(answer.mask.full(), target), abs=1e-3
            )  # a batch of two rounds otherwise
            before = answer.state
            views.add(request.view)
        assert result.crops == len(views) - 1 >= 1
        assert result.extent == pytest.approx(45 / 240)
        np.testing.assert_array_equal(replay(predictor, sample.image, result.clicks, rules), answer.mask.full())
    without = list(evaluate(predictor, [sample], replace(rules, zoom=False)))
    assert [one.crops for one in without] == [0, 0]
    assert [one.ious[0] for one in without] == [one.ious[0] for one in results]
    assert all(one.ious[1:] != other.ious[1:] for one, other in zip(results, without, strict=True))


def test_other_models_are_measured_without_zoom() -> None:
    rules = replace(make_rules("serve", "center", 0, [85], None), num_clicks=3)
    plain = list(evaluate(DiscModel(radius=8), [two_objects()], replace(rules, zoom=False)))
    assert found(list(evaluate(DiscModel(radius=8), [two_objects()], rules))) == found(plain)


def test_an_objects_extent_is_its_longer_side_in_the_photos() -> None:
    target = np.full((40, 200), -1, np.int8)
    assert extent_of(target) == 0.0
    target[10:30, 50:90] = 1
    assert extent_of(target) == 0.5


def test_a_batch_of_the_network_repeats_bit_for_bit(network: SkipClick) -> None:
    for flip in (True, False):
        runs = [list(evaluate(Predictor(network, flip=flip), [two_objects()], Rules(num_clicks=3))) for _ in range(2)]
        assert found(runs[0]) == found(runs[1])


def test_rules_follow_the_protocol() -> None:
    paper = make_rules("paper", "center", 3, [90, 85, 95, 90], None)
    assert paper == Rules()
    serve = make_rules("serve", "jitter", 2, [80], None)
    assert (serve.flip, serve.threshold, serve.seeds, serve.target_iou) == (False, 0.5, (0, 1), 0.95)
    assert make_rules("paper", "center", 3, [85, 98], False).target_iou == 0.98
    assert paper.to_dict()["thresholds"] == [85, 90, 95]
    assert (paper.zoom, serve.zoom) == (False, True)
    assert make_rules("serve", "center", 0, [85], None, zoom=False).zoom is False
    older = {name: value for name, value in paper.to_dict().items() if name != "zoom"}
    assert Rules.from_dict(older) == paper
    with pytest.raises(ValueError, match="published figures are without zoom-in"):
        make_rules("paper", "center", 0, [85], None, zoom=True)
    with pytest.raises(ValueError, match="mirrored photo"):
        make_rules("serve", "center", 0, [85], True)
