"""Protects that a server with too much to do says so, harms nobody's work, and recovers: seen from HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.annotator import Annotator, OverloadedError
from backend.executor import DeviceExecutor, Priority
from backend.images.decode import DecodedImage
from backend.images.loader import Look
from backend.places import places
from backend.prompts import ImageReference, SmartClick
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.http import client_disconnected
from skipclick.predictor import ClickRequest, Prediction
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.recorded import clicked_bodies

T = TypeVar("T")

MakeAnnotator = Callable[..., Annotator]
SIZE = (120, 160)  # of the recordings' images


class FullDevice(DiscPredictor):
    """Has no memory until told otherwise."""

    full = True

    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(requests)


def test_a_full_device_is_a_503_and_passes(make_annotator: MakeAnnotator) -> None:
    predictor = FullDevice()
    client = create_app(Settings(), make_annotator(predictor=predictor)).test_client()
    refused = client.post("/predict", json=clicked_bodies("03")[0])
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert "no memory for this image" in refused.json["error"]
    assert "CUDA" not in refused.text
    predictor.full = False
    assert client.post("/predict", json=clicked_bodies("03")[0]).status_code == 200


def test_under_overload_those_who_get_in_get_the_serial_answer(make_annotator: MakeAnnotator) -> None:
    """Twenty at once where there is room for four: a mask or a 503, and every mask is the right one."""
    bodies = clicked_bodies("04")
    expected = [create_app(Settings(), make_annotator()).test_client().post("/predict", json=b).json for b in bodies]
    executor = DeviceExecutor()
    app = create_app(Settings(threads=8), make_annotator(executor=executor))
    released = threading.Event()
    executor.submit(lambda: Priority.CLICK, lambda: released.wait(60))

    def ask(number: int) -> tuple[int, int, list[int] | None]:
        which = number % len(bodies)
        answer = app.test_client().post("/predict", json=bodies[which])
        return which, answer.status_code, rle(answer.json) if answer.status_code == 200 else None

    def rle(answer: dict[str, list[dict[str, list[dict[str, dict[str, list[int]]]]]]]) -> list[int]:
        return answer["results"][0]["result"][0]["value"]["rle"]

    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask, number) for number in range(20)]
        while sum(answer.done() for answer in answers) < 16:
            time.sleep(0.001)
        released.set()
        found = [answer.result(10) for answer in answers]
    assert sorted(status for _, status, _ in found) == [200] * 4 + [503] * 16
    for which, status, mask in found:
        if status == 200:
            assert mask == rle(expected[which])
    assert app.test_client().post("/predict", json=bodies[0]).status_code == 200


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    with client, server:
        yield client, server


def test_a_client_has_left_when_its_connection_is_closed(connection: tuple[socket.socket, socket.socket]) -> None:
    client, server = connection
    left = client_disconnected({"gunicorn.socket": server})
    assert not left()
    client.send(b"a further request")
    time.sleep(0.01)
    assert not left()
    assert server.recv(100) == b"a further request"  # looking took nothing away
    client.close()
    time.sleep(0.01)
    assert left()
    server.close()
    assert not left()  # the request is over: nobody asks in earnest


def test_a_client_whose_connection_broke_has_left(connection: tuple[socket.socket, socket.socket]) -> None:
    client, server = connection
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    client.close()
    time.sleep(0.01)
    assert client_disconnected({"gunicorn.socket": server})()


def test_without_gunicorn_everybody_stays() -> None:
    assert not client_disconnected({})()


def test_warming_waits_and_says_what_failed(make_annotator: MakeAnnotator, images: FlatImages) -> None:
    annotator = make_annotator()
    client = create_app(Settings(), annotator).test_client()
    body = clicked_bodies("03")[0]
    assert client.post("/warm", json=body).json == {"kept": 1}
    assert client.post("/warm", json=body).json == {"kept": 1}
    assert len(images.loaded) == 1
    assert annotator.cache_stats()["features"].entries == 1
    refused = client.post("/warm", json=body | {"tasks": body["tasks"] * 2})
    assert refused.status_code == 400
    assert "one task is warmed at a time, this request has 2" in refused.json["error"]
    assert client.post("/warm", data=b"{").status_code == 400


def test_a_server_without_memory_for_a_photo_is_a_503(make_annotator: MakeAnnotator) -> None:
    class NoRoom(FlatImages):
        def load(self, reference: ImageReference) -> DecodedImage:
            raise MemoryError

    client = create_app(Settings(), make_annotator(images=NoRoom())).test_client()
    refused = client.post("/predict", json=clicked_bodies("03")[0])
    assert refused.status_code == 503
    assert "IMAGE_MAX_PIXELS" in refused.json["error"]


def test_saved_masks_are_decoded_within_the_places_for_predictions(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with many saved regions take processor time before any image is fetched: they must leave the threads
    that /health needs."""
    decoding, released = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> NDArray[np.uint8]:
        decoding.release()
        assert released.wait(60)
        return np.zeros(SIZE, np.uint8)

    app = create_app(Settings(threads=4), make_annotator())
    first, body = clicked_bodies("35")
    region = app.test_client().post("/predict", json=first).json["results"][0]["result"][0]
    saved = [*first["params"]["context"]["result"], region]
    body["tasks"][0]["drafts"] = [{"id": 1, "user": "a@b", "result": saved, "annotation": None}]
    monkeypatch.setattr("backend.web.predict.read_mask", slow)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(app.test_client().post, "/predict", json=body) for _ in range(2)]
        for _ in busy:
            assert decoding.acquire(timeout=60)
        assert app.test_client().post("/predict", json=body).status_code == 503
        assert app.test_client().get("/health").status_code == 200
        released.set()
        assert [answer.result(60).status_code for answer in busy] == [200, 200]


def test_warming_leaves_places_for_clicks(make_annotator: MakeAnnotator) -> None:
    executor, released = DeviceExecutor(), threading.Event()
    app = create_app(Settings(threads=32), make_annotator(executor=executor))
    executor.submit(lambda: Priority.CLICK, lambda: released.wait(60))
    body = clicked_bodies("03")[0]
    num_places = places(32).warming
    with ThreadPoolExecutor(num_places + 1) as pool:
        asked = [pool.submit(app.test_client().post, "/warm", json=body) for _ in range(num_places + 1)]
        while not any(one.done() for one in asked):
            time.sleep(0.001)
        released.set()
        assert sorted(one.result(60).status_code for one in asked) == [200] * num_places + [503]


class HangingImages(FlatImages):
    """Photos of a host that does not answer, but for those that were seen before; those are due to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.num_hanging = threading.Semaphore(0)
        self.is_due = False

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        return reference.url if reference.url in self.loaded and (unconfirmed or not self.is_due) else None

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        if self.is_due or "hanging" in reference.url:
            self.num_hanging.release()
            assert self.released.wait(60)
        return super().look(reference, find, doubt)


def test_photos_whose_source_hangs_leave_places_for_known_ones(make_annotator: MakeAnnotator) -> None:
    """Also where a known one is due to be looked at again: it is taken as it was."""
    images = HangingImages()
    annotator = make_annotator(images=images, fetching=2)
    known, click = ImageReference("known", 1), [SmartClick("a", 20, 20, True)]
    expected = annotator.annotate(known, click, None, SIZE).mask
    with ThreadPoolExecutor(2) as pool:
        hanging = [
            pool.submit(annotator.annotate, ImageReference(f"hanging {number}", 2), click, None, SIZE)
            for number in range(2)
        ]
        for _ in hanging:
            assert images.num_hanging.acquire(timeout=60)
        for images.is_due in (False, True):
            assert annotator.annotate(known, click, None, SIZE).mask == expected
        images.is_due = False
        annotator.forget()  # as where crops have taken the room of its features
        again = annotator.annotate(known, click, None, SIZE).mask
        np.testing.assert_array_equal(again.full(), expected.full())
        with pytest.raises(OverloadedError, match="a source is slow"):
            annotator.annotate(ImageReference("hanging 3", 2), click, None, SIZE)
        images.released.set()
        for one in hanging:
            one.result(60)
    images.is_due = False
    annotator.annotate(ImageReference("hanging 3", 2), click, None, SIZE)
