"""Protects the threads from clients that send slowly, and clients from half an answer; `test_backend_safety.py` and
`test_backend_process.py` have the same against a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from backend import worker
from backend.worker import Arriving, Whole

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The client's end and the server's."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def test_what_has_arrived_is_read_and_the_connection_stays_as_it_was(pair: Pair) -> None:
    client, server = pair
    client.sendall(b"POST")
    assert Arriving(server, time.monotonic() + 60).recv(100) == b"POST"
    assert server.gettimeout() is None
    client.close()
    assert Arriving(server, time.monotonic() + 60).recv(100) == b""


def test_a_silent_client_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SILENCE", 0.05)
    with pytest.raises(ConnectionResetError):
        Arriving(pair[1], time.monotonic() + 60).recv(100)
    assert pair[1].gettimeout() is None


@pytest.mark.parametrize("pause", [0.05, 0.0])
def test_a_client_that_never_pauses_for_long_is_given_up_too(pair: Pair, pause: float) -> None:
    """The second sends faster than it is read."""
    client, server = pair
    over = threading.Event()

    def drip() -> None:
        with suppress(TimeoutError):
            while not over.wait(pause):
                client.send(b"a")

    client.settimeout(1)
    dripping = threading.Thread(target=drip)
    dripping.start()
    arriving = Arriving(server, time.monotonic() + 0.3)
    received = []
    try:
        with pytest.raises(ConnectionResetError):
            received.extend(arriving.recv(1) for _ in range(10_000_000))
    finally:
        over.set()
        dripping.join(5)
    assert received[:2] == [b"a", b"a"]


def test_an_answer_is_held_back_until_it_is_complete(pair: Pair) -> None:
    client, server = pair
    client.settimeout(0)
    with Whole(server) as answering:
        answering.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        answering.sendall(bytearray(b"a mask"))
        with pytest.raises(BlockingIOError):
            client.recv(100)
        answering.leave()
    assert client.recv(100) == b"HTTP/1.1 200 OK\r\n\r\na mask"


def test_an_answer_that_fails_half_way_is_not_begun(pair: Pair) -> None:
    client, server = pair
    with Whole(server) as answering:
        answering.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    server.sendall(b"HTTP/1.1 500")
    assert client.recv(100) == b"HTTP/1.1 500"


def test_a_client_that_does_not_read_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SENDING", 0.05)
    with Whole(pair[1]) as answering:
        answering.sendall(bytes(16 << 20))  # more than the kernel keeps
        with pytest.raises(ConnectionResetError):
            answering.leave()
