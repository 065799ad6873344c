"""Protects decision 4 of the design: a mask depends on its request alone, not on what came before or beside it; and
that neither a full device nor a client who left does harm to others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.annotator import Annotator, OverloadedError, SizeMismatchError
from backend.executor import DeviceExecutor, Priority
from backend.images.decode import DecodedImage
from backend.prompts import Box, ImageReference, SmartClick
from skipclick.cache import ByteLru, FileLru, SharedCache
from skipclick.config import TINY
from skipclick.features import read_features, write_features
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest, Prediction, Predictor
from skipclick.prompts import Click
from tests.support.fakes import DiscFeatures, DiscPredictor, FlatImages

SIZE = (120, 160)
MakeAnnotator = Callable[..., Annotator]


def clicks(*points: tuple[int, int, bool]) -> list[SmartClick]:
    return [SmartClick(f"id{i}", x, y, positive) for i, (x, y, positive) in enumerate(points)]


A, B, C = (40, 60, True), (70, 60, True), (55, 60, False)
IMAGE = ImageReference("/data/upload/1/a.png", 1)


def test_a_memo_spares_what_was_computed(annotator: Annotator, predictor: DiscPredictor) -> None:
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
    np.testing.assert_array_equal(step_by_step.mask.full(), at_once.mask.full())
    assert step_by_step.score == at_once.score
    predictor.calls.clear()
    warm.annotate(IMAGE, clicks(A, (80, 60, True)), None, SIZE)  # undo of two clicks, then another one
    assert [len(call) for call in predictor.calls] == [2]


def test_without_room_for_memos_the_answer_is_the_same(make_annotator: MakeAnnotator) -> None:
    roomy, poor = make_annotator(), make_annotator(memo_bytes=0, feature_bytes=0)
    for count in (1, 2, 3):
        first = roomy.annotate(IMAGE, clicks(A, B, C)[:count], None, SIZE)
        second = poor.annotate(IMAGE, clicks(A, B, C)[:count], None, SIZE)
        np.testing.assert_array_equal(first.mask.full(), second.mask.full())
    assert poor.cache_stats()["memo"].bytes == poor.cache_stats()["features"].bytes == 0


def test_the_sign_and_the_image_are_part_of_the_key(annotator: Annotator) -> None:
    positive = annotator.annotate(IMAGE, clicks(A, B), None, SIZE).mask.full()
    negative = annotator.annotate(IMAGE, clicks(A, (70, 60, False)), None, SIZE).mask.full()
    assert positive[60, 70]
    assert not negative[60, 70]
    other = ImageReference("/data/upload/1/b.png", 2)
    annotator.annotate(other, clicks(A, B), None, SIZE)
    assert annotator.cache_stats()["features"].entries == 2


def test_a_box_starts_from_its_area_and_holds_the_first_mask(annotator: Annotator) -> None:
    narrow = annotator.annotate(IMAGE, [], Box(60, 30, 4, 40), SIZE).mask  # the disc at its centre is wider
    assert narrow.box == (30, 60, 70, 64)
    widened = annotator.annotate(IMAGE, clicks((100, 50, True)), Box(60, 30, 4, 40), SIZE).mask
    assert widened.full()[50, 100]
    mask = annotator.annotate(IMAGE, [], Box(20, 30, 60, 40), SIZE).mask.full()
    expected = np.zeros(SIZE, bool)
    expected[30:70, 20:80] = True
    np.testing.assert_array_equal(mask, expected)  # the disc at its centre lies inside
    refined = annotator.annotate(IMAGE, clicks((25, 35, False)), Box(20, 30, 60, 40), SIZE).mask.full()
    assert not refined[35, 25]
    assert refined[65, 75]


def test_a_turned_box_turns_around_its_corner(annotator: Annotator) -> None:
    mask = annotator.annotate(IMAGE, [], Box(100, 20, 60, 40, rotation=90), SIZE).mask.full()
    expected = np.zeros(SIZE, bool)
    expected[20:80, 60:100] = True  # a quarter turn clockwise lies to the left of the corner
    np.testing.assert_array_equal(mask, expected)


def test_another_size_than_the_screen_is_refused(annotator: Annotator) -> None:
    with pytest.raises(SizeMismatchError, match="160 x 120 pixels, but the annotator sees 120 x 160"):
        annotator.annotate(IMAGE, clicks(A), None, (160, 120))


def test_the_score_is_the_mean_probability_inside(annotator: Annotator) -> None:
    assert annotator.annotate(IMAGE, clicks(A), None, SIZE).score == pytest.approx(0.9)


def test_warming_encodes_in_the_background_and_once(
    annotator: Annotator, predictor: DiscPredictor, images: FlatImages
) -> None:
    for _ in range(3):
        annotator.warm(IMAGE)
    annotator.annotate(IMAGE, clicks(A), None, SIZE)
    annotator.warm(IMAGE)
    assert predictor.encoded == [SIZE]
    assert images.loaded == [IMAGE.url]


def test_a_warming_that_fails_is_tried_again_by_the_click(make_annotator: MakeAnnotator) -> None:
    class OnceBroken(FlatImages):
        def load(self, reference: ImageReference) -> DecodedImage:
            photo = super().load(reference)
            if len(self.loaded) == 1:
                raise ValueError("not yet")
            return photo

    images = OnceBroken()
    annotator = make_annotator(images=images)
    annotator.warm(IMAGE)
    while not images.loaded or annotator._warming:
        time.sleep(0.001)
    assert annotator.annotate(IMAGE, clicks(A), None, SIZE).mask.full()[60, 40]


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
    executor.submit(lambda: Priority.CLICK, lambda: (running.set(), released.wait(60)))
    assert running.wait(60)
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
        waiting.result(60)
    prefetch.result(60)
    assert order == ["encode", "other prefetch"]


def test_concurrent_first_clicks_fetch_and_encode_once(
    annotator: Annotator, predictor: DiscPredictor, images: FlatImages
) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(annotator.annotate, IMAGE, clicks(A, B), None, SIZE) for _ in range(8)]
        found = [future.result(10).mask.full() for future in futures]
    assert images.loaded == [IMAGE.url]
    assert predictor.encoded == [SIZE]
    assert [len(call) for call in predictor.calls] == [1, 2]
    assert all((mask == found[0]).all() for mask in found)


class NoisyImages(FlatImages):
    """Different noise for every address."""

    def load(self, reference: ImageReference) -> DecodedImage:
        seed = sum(reference.url.encode())
        return DecodedImage(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8), SIZE)


@pytest.fixture(scope="module")
def network() -> Predictor:
    torch.manual_seed(0)
    return Predictor(SkipClick(TINY), resolution=(64, 64))


Request = tuple[ImageReference, list[SmartClick]]


def shuffled_requests() -> list[Request]:
    """Two annotators on each of four images; each of their three clicks is a request, in any order."""
    rng = random.Random(0)
    requests = []
    for image in range(4):
        reference = ImageReference(f"/data/upload/1/{image}.png", image)
        for _ in range(2):
            points = [(rng.randrange(160), rng.randrange(120), rng.random() < 0.7) for _ in range(3)]
            requests += [(reference, clicks(*points[:count])) for count in (1, 2, 3)]
    return rng.sample(requests, len(requests))


def serial_answer(network: Predictor, request: Request) -> Prediction:
    """By definition: one click after the other, each on the state of the one before."""
    reference, smart = request
    features = network.encode(NoisyImages().load(reference).pixels)
    points = [Click(click.x, click.y, click.positive) for click in smart]
    answer = None
    for count in range(1, len(points) + 1):
        (answer,) = network.predict([ClickRequest(features, points[:count], answer and answer.state)])
    assert answer is not None
    return answer


def assert_serial(network: Predictor, annotator: Annotator, requests: Sequence[Request]) -> None:
    """Eight threads get the serial answers, to the bit."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: annotator.annotate(*request, None, SIZE), requests))
    for annotation, request in zip(found, requests, strict=True):
        expected = serial_answer(network, request)
        np.testing.assert_array_equal(annotation.mask.full(), expected.mask.full())
        assert annotation.score == expected.score
    assert len({annotation.score for annotation in found}) > 20  # the requests do differ


@pytest.mark.parametrize("budget", [1 << 30, 300_000, 0])
def test_eight_threads_on_several_images_get_the_serial_answers(
    make_annotator: MakeAnnotator, network: Predictor, budget: int
) -> None:
    """With a real network; small budgets evict features and memos all the time."""
    annotator = make_annotator(predictor=network, images=NoisyImages(), feature_bytes=budget, memo_bytes=budget)
    assert_serial(network, annotator, shuffled_requests())
    for stats in annotator.cache_stats().values():
        assert stats.bytes <= budget


def test_the_memo_may_be_lost_at_any_time(make_annotator: MakeAnnotator, network: Predictor) -> None:
    annotator = make_annotator(predictor=network, images=NoisyImages(), feature_bytes=1 << 30)
    stop = threading.Event()

    def forget() -> None:
        while not stop.wait(0.002):
            annotator._memo.free()
            annotator._features.free()

    with ThreadPoolExecutor(1) as pool:
        forgetting = pool.submit(forget)
        assert_serial(network, annotator, shuffled_requests())
        stop.set()
        forgetting.result(60)


def test_features_of_an_earlier_process_give_the_serial_answers(
    make_annotator: MakeAnnotator, network: Predictor, tmp_path: Path
) -> None:
    class Counted:
        def __init__(self) -> None:
            self.encoded = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(network, name)

        def encode(self, image: NDArray[np.uint8]) -> Any:
            self.encoded += 1
            return network.encode(image)

    for num_encoded in (4, 0):  # the second time all come from files
        files = FileLru(tmp_path, 1 << 30, write_features, read_features)
        predictor, features = Counted(), SharedCache("features", ByteLru(0), {"files": files})
        annotator = make_annotator(predictor=predictor, images=NoisyImages(), features=features)
        if num_encoded:
            for image in range(4):
                annotator.prepare(ImageReference(f"/data/upload/1/{image}.png", image))
            while files.stats().entries < 4:
                time.sleep(0.001)
        else:
            assert_serial(network, annotator, shuffled_requests())
        assert predictor.encoded == num_encoded


def test_batches_change_no_more_than_last_bits(make_annotator: MakeAnnotator, network: Predictor) -> None:
    """The bound that the documentation of CLICK_BATCH rests on: masks agree but for pixels on the threshold."""
    sizes: list[int] = []

    class Batching:
        def __getattr__(self, name: str) -> Any:
            return getattr(network, name)

        def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
            sizes.append(len(requests))
            return network.predict(requests)

    executor = DeviceExecutor(batch=8)
    annotator = make_annotator(
        predictor=Batching(), images=NoisyImages(), executor=executor, feature_bytes=1 << 30, memo_bytes=1 << 30
    )
    requests = shuffled_requests()
    for reference in {request[0] for request in requests}:
        annotator.prepare(reference)
    with ThreadPoolExecutor(len(requests)) as pool:
        released = threading.Event()
        executor.submit(lambda: Priority.CLICK, lambda: released.wait(60))
        futures = [pool.submit(annotator.annotate, *request, None, SIZE) for request in requests]
        while annotator.queue()["click"] < 8:
            time.sleep(0.001)
        released.set()
        found = [future.result(30) for future in futures]
    assert max(sizes) == 8
    for annotation, request in zip(found, requests, strict=True):
        expected = serial_answer(network, request)
        assert annotation.score == pytest.approx(expected.score, abs=1e-4)
        assert (annotation.mask.full() != expected.mask.full()).mean() < 1e-3


class FullDevice(DiscPredictor):
    """Has no memory for the first `failures` calls."""

    def __init__(self, failures: int, error: Exception) -> None:
        super().__init__()
        self.failures = failures
        self.error = error

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error

    def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
        self._fail()
        return super().encode(image)

    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        self._fail()
        return super().predict(requests)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_empties_the_caches_and_tries_once_more(make_annotator: MakeAnnotator, error: Exception) -> None:
    predictor = FullDevice(0, error)
    annotator = make_annotator(predictor=predictor)
    other = ImageReference("/data/upload/1/b.png", 2)
    expected = annotator.annotate(other, clicks(A, B), None, SIZE)
    predictor.failures = 1
    annotator.annotate(IMAGE, clicks(A), None, SIZE)
    assert annotator.cache_stats()["features"].evictions == 1  # "b" made room
    predictor.failures = 1
    again = annotator.annotate(IMAGE, clicks(A, B), None, SIZE)
    np.testing.assert_array_equal(again.mask.full(), annotator.annotate(IMAGE, clicks(A, B), None, SIZE).mask.full())
    np.testing.assert_array_equal(annotator.annotate(other, clicks(A, B), None, SIZE).mask.full(), expected.mask.full())


def test_memory_that_stays_full_is_said_and_the_server_goes_on(make_annotator: MakeAnnotator) -> None:
    predictor = FullDevice(2, OUT_OF_MEMORY[0])
    annotator = make_annotator(predictor=predictor)
    with pytest.raises(OverloadedError, match="no memory for this image; try again, or lower FEATURE_CACHE_BYTES"):
        annotator.annotate(IMAGE, clicks(A), None, SIZE)
    assert annotator.annotate(IMAGE, clicks(A), None, SIZE).mask.full()[60, 40]
    predictor.failures = 2
    with pytest.raises(OverloadedError):
        annotator.annotate(IMAGE, clicks(A, B), None, SIZE)
    assert annotator.annotate(IMAGE, clicks(A, B), None, SIZE).mask.full()[60, 70]


def test_other_errors_empty_no_cache(make_annotator: MakeAnnotator) -> None:
    predictor = FullDevice(0, RuntimeError("something else"))
    annotator = make_annotator(predictor=predictor)
    annotator.annotate(IMAGE, clicks(A), None, SIZE)
    predictor.failures = 1
    with pytest.raises(RuntimeError, match="something else"):
        annotator.annotate(IMAGE, clicks(A, B), None, SIZE)
    assert annotator.cache_stats()["features"].entries == 1


def test_a_click_whose_client_left_is_not_computed_but_for_those_who_wait_too(
    make_annotator: MakeAnnotator, predictor: DiscPredictor
) -> None:
    executor = DeviceExecutor()
    annotator = make_annotator(executor=executor)
    annotator.prepare(IMAGE)
    released, left = threading.Event(), threading.Event()
    executor.submit(lambda: Priority.CLICK, lambda: released.wait(60))
    with ThreadPoolExecutor(2) as pool:
        impatient = pool.submit(annotator.annotate, IMAGE, clicks(A), None, SIZE, left.is_set)
        while annotator.queue()["click"] < 1:
            time.sleep(0.001)
        patient = pool.submit(annotator.annotate, IMAGE, clicks(A), None, SIZE)
        time.sleep(0.02)
        left.set()
        released.set()
        assert patient.result(60).mask.full()[60, 40]
        with pytest.raises(OverloadedError, match="cancelled"):
            impatient.result(60)
    assert [len(call) for call in predictor.calls] == [1]


def test_an_image_whose_client_left_is_encoded_after_all_others(
    make_annotator: MakeAnnotator, images: FlatImages
) -> None:
    executor = DeviceExecutor()
    annotator = make_annotator(executor=executor)
    running, released, left = threading.Event(), threading.Event(), threading.Event()

    def occupy() -> None:
        running.set()
        released.wait(60)

    executor.submit(lambda: Priority.CLICK, occupy)
    assert running.wait(60)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(annotator.annotate, IMAGE, clicks(A), None, SIZE, left.is_set)
        while annotator.queue()["encode"] < 1:
            time.sleep(0.001)
        left.set()
        assert annotator.queue() == {"click": 0, "encode": 0, "prefetch": 1}
        released.set()


def test_a_server_that_stops_says_so(make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator()
    annotator.close()
    with pytest.raises(OverloadedError, match="the server is stopping"):
        annotator.annotate(IMAGE, clicks(A), None, SIZE)


def test_clicks_are_in_the_photos_own_pixels_whatever_size_it_was_decoded_at(
    make_annotator: MakeAnnotator, predictor: DiscPredictor
) -> None:
    class Reduced(FlatImages):
        def load(self, reference: ImageReference) -> DecodedImage:
            return DecodedImage(super().load(reference).pixels[::2, ::2], SIZE)

    annotation = make_annotator(images=Reduced()).annotate(IMAGE, clicks((150, 110, True)), None, SIZE)
    assert annotation.mask.size == SIZE
    assert annotation.mask.full()[110, 150]
    assert predictor.encoded == [(60, 80)]
