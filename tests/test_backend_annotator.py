"""Protects decision 4 of the design: a mask depends on its request alone, not on what came before or beside it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fakes import DiscFeatures, DiscPredictor, FlatImages
from numpy.typing import NDArray

from backend.annotator import Annotator, SizeMismatchError
from backend.executor import DeviceExecutor, Priority
from backend.protocol import Box, ImageReference, SmartClick
from skipclick.config import TINY
from skipclick.model import SkipClick
from skipclick.predictor import Predictor

SIZE = (120, 160)
MakeAnnotator = Callable[..., Annotator[Any]]


def clicks(*points: tuple[int, int, bool]) -> list[SmartClick]:
    return [SmartClick(f"id{i}", x, y, positive) for i, (x, y, positive) in enumerate(points)]


A, B, C = (40, 60, True), (70, 60, True), (55, 60, False)
IMAGE = ImageReference("/data/upload/1/a.png", 1)


def test_a_memo_spares_what_was_computed(annotator: Annotator[Any], predictor: DiscPredictor) -> None:
    annotator.annotate(IMAGE, clicks(A), None, SIZE)
    annotator.annotate(IMAGE, clicks(A, B), None, SIZE)
    assert [len(call) for call in predictor.calls] == [1, 2]
    annotator.annotate(IMAGE, clicks(A, B), None, SIZE)
    assert len(predictor.calls) == 2
    assert predictor.encoded == [SIZE]


def test_lost_memos_are_replayed_from_the_longest_known_prefix(
    make_annotator: MakeAnnotator, predictor: DiscPredictor
) -> None:
    warm, cold = make_annotator(), make_annotator()
    for count in (1, 2, 3):
        step_by_step = warm.annotate(IMAGE, clicks(A, B, C)[:count], None, SIZE)
    predictor.calls.clear()
    at_once = cold.annotate(IMAGE, clicks(A, B, C), None, SIZE)
    assert [len(call) for call in predictor.calls] == [1, 2, 3]
    np.testing.assert_array_equal(step_by_step.mask, at_once.mask)
    assert step_by_step.score == at_once.score
    predictor.calls.clear()
    warm.annotate(IMAGE, clicks(A, (80, 60, True)), None, SIZE)  # undo of two clicks, then another one
    assert [len(call) for call in predictor.calls] == [2]


def test_without_room_for_memos_the_answer_is_the_same(make_annotator: MakeAnnotator) -> None:
    roomy, poor = make_annotator(), make_annotator(memo_bytes=0, feature_bytes=0)
    for count in (1, 2, 3):
        first = roomy.annotate(IMAGE, clicks(A, B, C)[:count], None, SIZE)
        second = poor.annotate(IMAGE, clicks(A, B, C)[:count], None, SIZE)
        np.testing.assert_array_equal(first.mask, second.mask)
    assert poor.cache_stats()["memo"].bytes == poor.cache_stats()["features"].bytes == 0


def test_the_sign_and_the_image_are_part_of_the_key(annotator: Annotator[Any]) -> None:
    positive = annotator.annotate(IMAGE, clicks(A, B), None, SIZE).mask
    negative = annotator.annotate(IMAGE, clicks(A, (70, 60, False)), None, SIZE).mask
    assert positive[60, 70]
    assert not negative[60, 70]
    other = ImageReference("/data/upload/1/b.png", 2)
    annotator.annotate(other, clicks(A, B), None, SIZE)
    assert annotator.cache_stats()["features"].entries == 2


def test_a_box_starts_from_its_area(annotator: Annotator[Any]) -> None:
    mask = annotator.annotate(IMAGE, [], Box(20, 30, 60, 40), SIZE).mask
    expected = np.zeros(SIZE, bool)
    expected[30:70, 20:80] = True
    np.testing.assert_array_equal(mask, expected)  # the disc at its centre lies inside
    refined = annotator.annotate(IMAGE, clicks((25, 35, False)), Box(20, 30, 60, 40), SIZE).mask
    assert not refined[35, 25]
    assert refined[65, 75]


def test_a_turned_box_turns_around_its_corner(annotator: Annotator[Any]) -> None:
    mask = annotator.annotate(IMAGE, [], Box(100, 20, 60, 40, rotation=90), SIZE).mask
    expected = np.zeros(SIZE, bool)
    expected[20:80, 60:100] = True  # a quarter turn clockwise lies to the left of the corner
    np.testing.assert_array_equal(mask, expected)


def test_another_size_than_the_screen_is_refused(annotator: Annotator[Any]) -> None:
    with pytest.raises(SizeMismatchError, match="160 x 120 pixels, but the annotator sees 120 x 160"):
        annotator.annotate(IMAGE, clicks(A), None, (160, 120))


def test_the_score_is_the_mean_probability_inside(annotator: Annotator[Any]) -> None:
    assert annotator.annotate(IMAGE, clicks(A), None, SIZE).score == pytest.approx(0.9)


def test_warming_encodes_in_the_background_and_once(
    annotator: Annotator[Any], predictor: DiscPredictor, images: FlatImages
) -> None:
    for _ in range(3):
        annotator.warm(IMAGE)
    annotator.annotate(IMAGE, clicks(A), None, SIZE)
    annotator.warm(IMAGE)
    assert predictor.encoded == [SIZE]
    assert images.loaded == [IMAGE.url]


def test_a_warming_that_fails_is_tried_again_by_the_click(make_annotator: MakeAnnotator) -> None:
    class OnceBroken(FlatImages):
        def load(self, reference: ImageReference) -> NDArray[np.uint8]:
            pixels = super().load(reference)
            if len(self.loaded) == 1:
                raise ValueError("not yet")
            return pixels

    images = OnceBroken()
    annotator = make_annotator(images=images)
    annotator.warm(IMAGE)
    while not images.loaded or annotator._warming:
        time.sleep(0.001)
    assert annotator.annotate(IMAGE, clicks(A), None, SIZE).mask[60, 40]


def test_a_click_on_an_image_being_warmed_overtakes_other_prefetches(
    make_annotator: MakeAnnotator, images: FlatImages
) -> None:
    order: list[str] = []

    class Recorder(DiscPredictor):
        def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
            order.append("encode")
            return super().encode(image)

    executor = DeviceExecutor()
    annotator = make_annotator(executor=executor, predictor=Recorder())
    released, running = threading.Event(), threading.Event()
    executor.submit(lambda: Priority.CLICK, lambda: (running.set(), released.wait(5)))
    assert running.wait(5)
    prefetch = executor.submit(lambda: Priority.PREFETCH, lambda: order.append("other prefetch"))
    annotator.warm(IMAGE)
    while not images.loaded:
        time.sleep(0.001)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(annotator.annotate, IMAGE, clicks(A), None, SIZE)
        while not annotator._waiting:
            time.sleep(0.001)
        time.sleep(0.02)
        released.set()
        waiting.result(5)
    prefetch.result(5)
    assert order == ["encode", "other prefetch"]


def test_concurrent_first_clicks_fetch_and_encode_once(
    annotator: Annotator[Any], predictor: DiscPredictor, images: FlatImages
) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(annotator.annotate, IMAGE, clicks(A, B), None, SIZE) for _ in range(8)]
        found = [future.result(10).mask for future in futures]
    assert images.loaded == [IMAGE.url]
    assert predictor.encoded == [SIZE]
    assert [len(call) for call in predictor.calls] == [1, 2]
    assert all((mask == found[0]).all() for mask in found)


class NoisyImages(FlatImages):
    """Different noise for every address."""

    def load(self, reference: ImageReference) -> NDArray[np.uint8]:
        seed = sum(reference.url.encode())
        return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def network() -> Predictor:
    torch.manual_seed(0)
    return Predictor(SkipClick(TINY), resolution=(64, 64))


@pytest.mark.parametrize("budget", [1 << 30, 300_000])
def test_eight_threads_on_several_images_give_the_serial_answers(
    make_annotator: MakeAnnotator, network: Predictor, budget: int
) -> None:
    """With a real network; the small budget evicts features and memos all the time."""
    rng = random.Random(0)
    requests = []
    for image in range(4):
        reference = ImageReference(f"/data/upload/1/{image}.png", image)
        for _ in range(2):  # two annotators of each image, whose clicks differ
            points = [(rng.randrange(160), rng.randrange(120), rng.random() < 0.7) for _ in range(3)]
            requests += [(reference, clicks(*points[:count])) for count in (1, 2, 3)]
    shuffled = rng.sample(requests, len(requests))

    serial = make_annotator(predictor=network, images=NoisyImages())
    expected = [serial.annotate(*request, None, SIZE) for request in shuffled]
    together = make_annotator(predictor=network, images=NoisyImages(), feature_bytes=budget, memo_bytes=budget)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: together.annotate(*request, None, SIZE), shuffled))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.score == other.score
    assert len({annotation.score for annotation in expected}) > 20  # the requests do differ
    for stats in together.cache_stats().values():
        assert stats.bytes <= budget
