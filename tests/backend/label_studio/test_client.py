"""Protects how Label Studio is asked: with the right key, renewed when it ends, and errors that name what failed."""

from __future__ import annotations

import base64
import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from backend.label_studio.auth import KeyKind, LabelStudioAuth, NoAnswerError
from backend.label_studio.client import ApiError, LabelStudioApi
from tests.support.fake_label_studio import ACCESS, LEGACY, PERSONAL, FakeLabelStudio, fake_label_studio, jwt


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    with fake_label_studio() as state:
        yield state


def api(url: str, key: str | None) -> LabelStudioApi:
    return LabelStudioApi(LabelStudioAuth(url, key, 5), 5)


def test_a_personal_access_token_is_exchanged(label_studio: FakeLabelStudio) -> None:
    assert api(label_studio.url, PERSONAL).get("/api/current-user/whoami")["email"] == "annotator@example.com"


def test_an_access_token_that_ended_is_renewed_once(label_studio: FakeLabelStudio) -> None:
    asked = api(label_studio.url, PERSONAL)
    asked.get("/api/projects/1/")
    label_studio.access = label_studio.keys["Bearer"] = jwt(token_type="access", jti="newer")
    assert asked.get("/api/projects/1/")["id"] == 1


@pytest.mark.parametrize("key", [None, LEGACY, jwt(token_type="refresh", jti="revoked")])
def test_a_key_that_is_not_taken(label_studio: FakeLabelStudio, key: str | None) -> None:
    with pytest.raises(ApiError) as error:
        api(label_studio.url, key).get("/api/projects/1/")
    assert error.value.status == 401
    assert str(key) not in str(error.value)


def test_what_is_not_there_and_what_is_not_json(label_studio: FakeLabelStudio) -> None:
    label_studio.files["/page"] = b"<html>"
    asked = api(label_studio.url, PERSONAL)
    with pytest.raises(ApiError, match=r"tried GET .*/api/projects/9/: status 404"):
        asked.get("/api/projects/9/")
    with pytest.raises(ApiError, match="is not JSON"):
        asked.get("/page")


def test_nobody_there() -> None:
    with pytest.raises(ApiError, match="ConnectionError") as error:
        api("http://127.0.0.1:1", None).get("/api/projects/1/")
    assert error.value.status is None


def test_queries_are_sent(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks += [{"id": number} for number in range(5)]
    assert len(api(label_studio.url, PERSONAL).get("/api/tasks/", project=1, page_size=2)["tasks"]) == 2


@pytest.mark.parametrize(
    ("key", "kind"),
    [(None, None), (LEGACY, "legacy token"), (PERSONAL, "personal access token"), (ACCESS, "access token")],
)
def test_keys_are_told_by_their_shape(key: str | None, kind: KeyKind | None) -> None:
    assert LabelStudioAuth("http://ls", key, 5).key_kind == kind


def test_a_redirect_says_which_address_to_set(label_studio: FakeLabelStudio) -> None:
    label_studio.redirect = "https://127.0.0.1"
    with pytest.raises(
        ApiError, match=r"redirects to https://127\.0\.0\.1; set LABEL_STUDIO_URL=https://127\.0\.0\.1$"
    ):
        api(label_studio.url, LEGACY).get("/api/projects/1/")


def test_answers_with_nan_and_lone_surrogates_are_read(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks.append({"id": 1, "data": {"a": float("nan"), "b": "\ud800"}, "annotations": []})
    answer = api(label_studio.url, PERSONAL).get("/api/tasks/", page_size=1)
    assert answer["tasks"][0]["data"] == {"a": None, "b": "\ufffd"}


@contextmanager
def dripping(beginning: bytes) -> Iterator[str]:
    """A server that answers every request with a beginning, then a byte every 50 ms for as long as somebody reads."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(beginning)
            while not over.wait(0.05):
                connection.sendall(b" ")

    def accept() -> None:
        with suppress(OSError), ThreadPoolExecutor(64) as pool:
            while True:
                pool.submit(answer, listener.accept()[0])

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n{"],
    ids=["status line", "header", "body"],
)
def test_a_dripping_answer_ends_with_the_time_limit(beginning: bytes) -> None:
    with dripping(beginning) as url:
        with pytest.raises(ApiError, match="tried GET"):
            LabelStudioApi(LabelStudioAuth(url, LEGACY, 0.3), 0.3).get("/api/projects/1/")
        with pytest.raises(NoAnswerError, match="api/token/refresh"):
            LabelStudioAuth(url, PERSONAL, 0.3).header()


def test_a_token_that_does_not_come_keeps_nobody_for_longer_than_one_try() -> None:
    """One after the other, behind the lock, 28 clicks would wait 28 times the limit."""
    begin = time.monotonic()
    with dripping(b"HTTP/1.1 200 OK\r\n") as url, ThreadPoolExecutor(28) as pool:
        auth = LabelStudioAuth(url, PERSONAL, 1.0)
        errors = [pool.submit(auth.header).exception() for _ in range(28)]
        assert {type(error) for error in errors} == {NoAnswerError}
    assert time.monotonic() - begin < 14  # half of what it would be, however busy the machine


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A host that answers every request with these bytes, the last of them again and again; its address."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            for piece in pieces:
                connection.sendall(piece)
            while True:
                connection.sendall(pieces[-1])

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("key", [PERSONAL, LEGACY])
@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(64 << 20)), b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n",),
    ],
    ids=["endless", "compressed", "continued"],
)
def test_an_answer_without_end_takes_neither_memory_nor_long(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...], key: str
) -> None:
    monkeypatch.setattr("backend.label_studio.client._MAX_BYTES", 4 << 20)
    with answering(*pieces) as url:
        asked = LabelStudioApi(LabelStudioAuth(url, key, 2), 2)
        begin = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(ApiError, match="tried"):
                asked.get("/api/projects/1/")
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()
        assert time.monotonic() - begin < 10


def test_a_token_that_is_nested_without_end_is_just_wrong(label_studio: FakeLabelStudio) -> None:
    claims = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    auth = LabelStudioAuth(label_studio.url, f"a.{claims}.c", 5)
    assert auth.key_kind == "legacy token"
