"""Protects zoom-in as served: a mask depends on its request alone, whatever crop was encoded before, by whom and when;
a click waits for one encode at most; and each crop is encoded once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.annotator import Annotator, ObjectMask, OverloadedError, _Photo
from backend.executor import DeviceExecutor, Priority
from backend.heads import Head, Heads
from backend.images.decode import DecodedImage, ImageError, decode_image
from backend.images.loader import Look
from backend.prompts import Box, ImageReference, SmartClick, Start, StartMask
from skipclick import Click, Predictor
from skipclick.cache import ByteLru, SharedCache
from skipclick.features import ImageFeatures
from skipclick.simulation import correcting_clicks
from skipclick.zoom import (
    DEFAULT_RULE,
    ZoomPrediction,
    ZoomRequest,
    crop_encoder,
    next_view,
    predict_zoomed,
    start_in_box,
    start_zoomed,
    whole_view,
    zoom_request,
)
from tests.support.small_models import bundled

T = TypeVar("T")

OBJECTS = (
    [SmartClick("a", 60, 60, True), SmartClick("b", 100, 60, True), SmartClick("c", 60, 140, False)],
    [SmartClick("a", 500, 350, True), SmartClick("b", 540, 300, True), SmartClick("c", 400, 300, False)],
    [SmartClick("a", 440, 250, True), SmartClick("b", 470, 280, True), SmartClick("c", 400, 200, False)],
)
"""The first two need crops from their second click on, the last one fills the photo."""


@cache
def coffee() -> NDArray[np.uint8]:
    """The sample photo of the page /ui, (H, W, 3)."""
    with (Path(__file__).parents[2] / "backend" / "ui" / "sample.jpg").open("rb") as file:
        return decode_image(file, max_pixels=1_000_000).pixels


def pixels_of(name: str) -> NDArray[np.uint8]:
    return coffee() if name == "plain" else np.ascontiguousarray(coffee()[:, ::-1])


class Photos:
    """The photos "plain" and "mirrored", of which the first look gets half of the pixels, as from a large JPEG."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.broken = False

    def place(self, reference: ImageReference) -> str:
        return reference.url

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        return reference.url

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        kept = find(reference.url)
        if kept is not None:
            return Look(reference.url, kept, asked=False)
        pixels = pixels_of(reference.url)
        size = (pixels.shape[0], pixels.shape[1])
        return Look(reference.url, photo=DecodedImage(np.ascontiguousarray(pixels[::2, ::2]), size))

    def pixels(self, reference: ImageReference, name: str) -> NDArray[np.uint8]:
        if self.broken:
            raise ImageError("it is gone")
        self.fetched.append(name)
        return pixels_of(name)


class Counting(Predictor):
    """Notes the sizes of what it encodes."""

    def __init__(self) -> None:
        super().__init__(bundled(), resolution=(96, 96))
        self.encoded: list[tuple[int, ...]] = []

    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures:
        self.encoded.append(image.shape[:2])
        return super().encode(image)


@pytest.fixture
def predictor() -> Counting:
    return Counting()


@pytest.fixture
def images() -> Photos:
    return Photos()


MakeAnnotator = Callable[..., Annotator]


@pytest.fixture
def make_annotator(predictor: Counting, images: Photos) -> Iterator[MakeAnnotator]:
    made: list[Annotator] = []

    def make(
        feature_bytes: int = 1 << 30,
        memo_bytes: int = 1 << 30,
        photo_bytes: int = 1 << 30,
        batch: int = 1,
        fetching: int = 48,
    ) -> Annotator:
        features: SharedCache[ImageFeatures] = SharedCache("features", ByteLru(feature_bytes))
        made.append(
            Annotator(
                Heads(Head("base", predictor)),
                images,
                DeviceExecutor(batch=batch),
                features=features,
                memo_bytes=memo_bytes,
                zoom=DEFAULT_RULE,
                photo_bytes=photo_bytes,
                fetching=fetching,
            )
        )
        return made[-1]

    yield make
    for annotator in made:
        annotator.close()


def asked(
    annotator: Annotator, clicks: Sequence[SmartClick], name: str = "plain", start: Start | None = None
) -> ObjectMask:
    size = coffee().shape[0], coffee().shape[1]
    return annotator.annotate(ImageReference(name, 1), clicks, start, size)


@cache
def plain_predictor() -> Predictor:
    return Predictor(bundled(), resolution=(96, 96))


@cache
def serial(name: str, clicks: tuple[SmartClick, ...]) -> ZoomPrediction:
    """By definition: one click after the other, each on the state of the one before, with nothing cached."""
    predictor, pixels = plain_predictor(), pixels_of(name)
    photo = predictor.encode(np.ascontiguousarray(pixels[::2, ::2]))
    photo = ImageFeatures(photo.taps, photo.prepared, (pixels.shape[0], pixels.shape[1]), photo.head)
    points = [Click(click.x, click.y, click.positive) for click in clicks]
    answer: ZoomPrediction | None = None
    for count in range(1, len(points) + 1):
        request = zoom_request(photo, points[:count], answer and answer.state, crop_encoder(predictor, pixels))
        (answer,) = predict_zoomed(predictor, [request])
    assert answer is not None
    return answer


def assert_serial(annotation: ObjectMask, name: str, clicks: Sequence[SmartClick]) -> None:
    expected = serial(name, tuple(clicks))
    np.testing.assert_array_equal(annotation.mask.full(), expected.mask.full())
    assert annotation.score == expected.score


def crops_wanted() -> int:
    """How many different crops the clicks of `OBJECTS` need on one photo."""
    size, views = (coffee().shape[0], coffee().shape[1]), set()
    for clicks in OBJECTS:
        for count in (2, 3):
            state = serial("plain", tuple(clicks[: count - 1])).state
            points = [Click(click.x, click.y, click.positive) for click in clicks[:count]]
            views.add(next_view(state, points, size))
    return len(views - {(0, 0, *size)})


@pytest.mark.parametrize("budget", [1 << 30, 400_000, 0])
def test_eight_threads_get_the_serial_answers(make_annotator: MakeAnnotator, budget: int) -> None:
    """Small budgets evict features, crops, photos and memos all the time."""
    assert crops_wanted() >= 2, "the objects do not show zoom-in"
    requests = [(name, object_[:n]) for name in ("plain", "mirrored") for object_ in OBJECTS for n in (1, 2, 3)]
    requests = random.Random(0).sample(requests * 2, 2 * len(requests))
    annotator = make_annotator(budget, budget, budget)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: asked(annotator, request[1], request[0]), requests))
    for annotation, (name, clicks) in zip(found, requests, strict=True):
        assert_serial(annotation, name, clicks)
    for stats in annotator.cache_stats().values():
        assert stats.bytes <= budget


def test_a_crop_is_encoded_ahead_of_the_click_that_needs_it(
    make_annotator: MakeAnnotator, predictor: Counting, images: Photos
) -> None:
    annotator = make_annotator()
    clicks = OBJECTS[0]
    asked(annotator, clicks[:1])
    wait_until(lambda: annotator.encodes()["crop ahead"] == 1)
    looks = len(predictor.encoded)
    assert looks == 2
    assert images.fetched == ["plain"]
    assert_serial(asked(annotator, clicks[:2]), "plain", clicks[:2])
    assert annotator.encodes() == {"photo": 1, "crop": 0, "crop ahead": 1}


def test_a_click_that_comes_early_encodes_the_crop_itself_and_once(
    make_annotator: MakeAnnotator, predictor: Counting
) -> None:
    annotator = make_annotator()
    annotator._warmers.shutdown()  # nothing is encoded ahead
    annotator._encode_ahead = lambda *_: None  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: asked(annotator, OBJECTS[0][:2]), range(8)))
    assert annotator.encodes() == {"photo": 1, "crop": 1, "crop ahead": 0}
    assert {annotation.score for annotation in found} == {serial("plain", tuple(OBJECTS[0][:2])).score}
    assert sum("crop" in annotation.stages for annotation in found) >= 1
    assert all(annotation.stages["click"] >= 0 for annotation in found)


def test_encoding_ahead_goes_after_all_that_somebody_waits_for(make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator()
    asked(annotator, OBJECTS[0][:1])
    wait_until(lambda: annotator.encodes()["crop ahead"] == 1)
    annotator._features.free()
    annotator.prepare(ImageReference("plain", 1))
    released, order = threading.Event(), list[str]()
    annotator._executor.submit(lambda: Priority.CLICK, lambda: released.wait(60))
    with ThreadPoolExecutor(2) as pool:
        annotator._encode_ahead(*ahead_of(annotator))
        wait_until(lambda: annotator.queue()["prefetch"] == 1)
        annotator._executor.submit(lambda: Priority.ENCODE, partial(order.append, "somebody's photo"))
        click = pool.submit(asked, annotator, OBJECTS[0][:2])  # needs that crop: it moves forward
        wait_until(lambda: annotator.queue()["prefetch"] == 0)
        released.set()
        assert_serial(click.result(60), "plain", OBJECTS[0][:2])
    assert order == ["somebody's photo"]


def test_nothing_is_encoded_ahead_of_a_click_that_gets_a_crop_around_itself(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows where it will be."""
    annotator = make_annotator()
    asked(annotator, OBJECTS[0][:1])
    wait_until(lambda: annotator.encodes()["crop ahead"] == 1)
    annotator._features.free()
    monkeypatch.setattr("backend.annotator.local_side", lambda *_: 40)
    annotator._encode_ahead(*ahead_of(annotator))
    assert not annotator._likely
    monkeypatch.undo()
    annotator._encode_ahead(*ahead_of(annotator))
    wait_until(lambda: annotator.encodes()["crop ahead"] == 2)


def ahead_of(annotator: Annotator) -> tuple[object, ...]:
    """The arguments of `_encode_ahead` after the first click on an object."""
    head = annotator._heads.base
    pixels = coffee()
    features = plain_predictor().encode(pixels)
    photo = _Photo(ImageReference("plain", 1), "plain", features, head)
    state = serial("plain", tuple(OBJECTS[0][:1])).state
    return photo, (Click(OBJECTS[0][0].x, OBJECTS[0][0].y),), state


def test_a_photo_that_cannot_be_fetched_again_is_said_so_and_asked_for_again(
    make_annotator: MakeAnnotator, images: Photos
) -> None:
    annotator = make_annotator(photo_bytes=0)
    images.broken = True
    asked(annotator, OBJECTS[0][:1])
    with pytest.raises(ImageError, match="gone"):
        asked(annotator, OBJECTS[0][:2])
    images.broken = False
    assert_serial(asked(annotator, OBJECTS[0][:2]), "plain", OBJECTS[0][:2])


def test_crops_of_several_photos_that_were_not_kept_are_waited_for_at_once(
    make_annotator: MakeAnnotator, images: Photos
) -> None:
    names, arrived, all_there = ["one", "two", "three", "four"], threading.Semaphore(0), threading.Event()

    def pixels(reference: ImageReference, name: str) -> NDArray[np.uint8]:
        arrived.release()
        assert all_there.wait(60)
        return pixels_of(name)

    annotator, clicks = make_annotator(photo_bytes=1, fetching=6), OBJECTS[0][:2]
    images.pixels = pixels  # type: ignore[method-assign]
    with ThreadPoolExecutor(len(names)) as annotators:
        answers = [annotators.submit(asked, annotator, clicks, name) for name in names]
        for _ in names:
            assert arrived.acquire(timeout=60)
        all_there.set()
        for answer in answers:
            assert_serial(answer.result(), "mirrored", clicks)


def test_a_photo_without_memory_is_an_overload(make_annotator: MakeAnnotator, images: Photos) -> None:
    def full(reference: ImageReference, name: str) -> NDArray[np.uint8]:
        raise MemoryError

    annotator = make_annotator()
    images.pixels = full  # type: ignore[method-assign]
    with pytest.raises(OverloadedError, match="memory"):
        asked(annotator, OBJECTS[0][:2])


def test_a_box_starts_on_the_whole_photo_and_its_corrections_zoom_in(
    make_annotator: MakeAnnotator, predictor: Counting
) -> None:
    annotator, box = make_annotator(), Box(20, 20, 100, 100, 0)
    boxed = asked(annotator, [], start=box)
    corrected = asked(annotator, [SmartClick("c", 30, 110, False)], start=box)
    photo = predictor.encode(np.ascontiguousarray(coffee()[::2, ::2]))
    photo = ImageFeatures(photo.taps, photo.prepared, (coffee().shape[0], coffee().shape[1]), photo.head)
    area = box.area(photo.image_size)
    request = ZoomRequest(
        photo, whole_view(area.shape), area.shape, [Click(70, 70)], start_in_box(predictor, area), within=area
    )
    (expected,) = predict_zoomed(predictor, [request])
    assert not boxed.mask.empty
    np.testing.assert_array_equal(boxed.mask.full(), expected.mask.full())
    assert (boxed.mask.full() != corrected.mask.full()).any()
    again = make_annotator()
    assert asked(again, [SmartClick("c", 30, 110, False)], start=box).score == corrected.score


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_correction_begins_close_to_the_mask_that_it_corrects(
    make_annotator: MakeAnnotator, predictor: Counting
) -> None:
    """Also where its first click is a negative one."""
    mask = np.zeros(coffee().shape[:2], np.bool_)
    mask[40:100, 60:140] = True
    click = SmartClick("a", 130, 90, False)
    found = asked(make_annotator(), [click], start=StartMask.of(mask))
    pixels, points = coffee(), correcting_clicks(mask, [Click(click.x, click.y, click.positive)])
    assert [point.positive for point in points] == [True, False]
    photo = predictor.encode(np.ascontiguousarray(pixels[::2, ::2]))
    photo = ImageFeatures(photo.taps, photo.prepared, (pixels.shape[0], pixels.shape[1]), photo.head)
    state = start_zoomed(predictor, mask)
    for count in (1, 2):
        request = zoom_request(photo, points[:count], state, crop_encoder(predictor, pixels))
        assert request.view == next_view(state, points[:count], photo.image_size) != (0, 0, *photo.image_size)
        (expected,) = predict_zoomed(predictor, [request])
        state = expected.state
    np.testing.assert_array_equal(found.mask.full(), expected.mask.full())
