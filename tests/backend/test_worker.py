"""Protects the threads from clients that send slowly, and clients from half an answer; `test_backend_safety.py` and
`test_backend_process.py` have the same against a real server."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from io import BytesIO
from threading import BoundedSemaphore
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given
from hypothesis import strategies as st

from backend import worker
from backend.worker import (
    _HELD,
    BufferedSocket,
    DeadlineSocket,
    Worker,
    _is_unread,
    _is_whole,
    _receive,
    allow_files,
)

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
    assert DeadlineSocket(server, time.monotonic() + 60, BoundedSemaphore(1)).recv(100) == b"POST"
    assert server.gettimeout() is None
    client.close()
    assert DeadlineSocket(server, time.monotonic() + 60, BoundedSemaphore(1)).recv(100) == b""


def test_a_silent_client_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SILENCE", 0.05)
    with pytest.raises(ConnectionResetError):
        DeadlineSocket(pair[1], time.monotonic() + 60, BoundedSemaphore(1)).recv(100)
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
    arriving = DeadlineSocket(server, time.monotonic() + 0.3, BoundedSemaphore(1))
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
    with BufferedSocket(server, BoundedSemaphore(1)) as answering:
        answering.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        answering.sendall(bytearray(b"a mask"))
        with pytest.raises(BlockingIOError):
            client.recv(100)
        answering.leave()
    assert client.recv(100) == b"HTTP/1.1 200 OK\r\n\r\na mask"


def test_an_answer_that_fails_half_way_is_not_begun(pair: Pair) -> None:
    client, server = pair
    with BufferedSocket(server, BoundedSemaphore(1)) as answering:
        answering.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    server.sendall(b"HTTP/1.1 500")
    assert client.recv(100) == b"HTTP/1.1 500"


def test_a_client_that_does_not_read_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SENDING", 0.05)
    with BufferedSocket(pair[1], BoundedSemaphore(1)) as answering:
        answering.sendall(bytes(16 << 20))  # more than the kernel keeps
        with pytest.raises(ConnectionResetError):
            answering.leave()


def test_few_threads_wait_for_slow_clients(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PROMPT", 0.05)
    client, server = pair
    places = BoundedSemaphore(1)
    slow = DeadlineSocket(server, time.monotonic() + 60, places)
    threading.Timer(0.3, client.send, (b"a",)).start()
    assert slow.recv(1) == b"a"
    with pytest.raises(ConnectionResetError):  # while the first has the place
        DeadlineSocket(server, time.monotonic() + 60, places).recv(1)
    slow.release()
    slow.release()  # it gives back no more than it took
    with pytest.raises(ValueError, match="too many times"):
        places.release()


def test_pauses_add_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte before each moment is over keeps no thread without a place."""
    monkeypatch.setattr(worker, "_PROMPT", 0.2)
    client, server = pair
    none = BoundedSemaphore(1)
    none.acquire()
    dripping = DeadlineSocket(server, time.monotonic() + 60, none)
    for _ in range(50):
        time.sleep(0.01)
        timer = threading.Timer(0.05, client.send, (b"a",))
        timer.start()
        try:
            dripping.recv(1)
        except ConnectionResetError:
            timer.join()
            return
    pytest.fail("it was waited for")


def test_an_answer_for_a_slow_reader_needs_a_place(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PROMPT", 0.01)
    client, server = pair
    answer = bytes(4 << 20)
    places = BoundedSemaphore(1)
    with BufferedSocket(server, places) as answering:
        answering.sendall(answer)
        places.acquire()
        with pytest.raises(ConnectionResetError):
            answering.leave()
        places.release()
    received = []

    def read() -> None:
        time.sleep(0.1)
        while sum(map(len, received)) < len(answer):
            received.append(client.recv(1 << 20))

    drained = client.recv(16 << 20)  # what the first try has sent
    while len(drained) == 16 << 20:
        drained = client.recv(16 << 20)
    client.setblocking(False)
    with suppress(BlockingIOError):
        while client.recv(1 << 20):
            pass
    client.setblocking(True)
    reader = threading.Thread(target=read)
    reader.start()
    with BufferedSocket(server, places) as answering:
        answering.sendall(answer)
        answering.leave()
    reader.join(60)
    assert b"".join(received) == answer
    assert places.acquire(blocking=False)


@given(
    body=st.binary(max_size=40),
    cut=st.integers(min_value=0),
    name=st.sampled_from(["Content-Length", "content-length"]),
)
def test_a_request_is_whole_at_its_end_and_not_before(body: bytes, cut: int, name: str) -> None:
    request = f"POST /predict HTTP/1.1\r\nHost: x\r\n{name}: {len(body)}\r\nA: b\r\n\r\n".encode() + body
    assert _is_whole(request)
    assert not _is_whole(request[: cut % len(request)])


@pytest.mark.parametrize("header", ["Transfer-Encoding: chunked", "Expect: 100-continue\r\nContent-Length: 5"])
def test_a_client_that_waits_for_an_answer_meanwhile_has_a_thread(header: str) -> None:
    assert _is_whole(f"POST /predict HTTP/1.1\r\n{header}\r\n\r\n".encode())


def test_a_long_request_does_not_wait_in_memory_for_its_end(pair: Pair) -> None:
    client, server = pair
    head = b"POST /predict HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n"
    sending = threading.Thread(target=client.sendall, args=(head + bytes(_HELD),))
    sending.start()
    received = BytesIO()
    while not _receive(server, received):
        time.sleep(0.001)
    assert received.getbuffer().nbytes <= 2 * _HELD
    server.settimeout(0.05)
    while sending.is_alive():
        with suppress(TimeoutError):  # it may have sent the last byte before this was called
            server.recv(1 << 20)


def test_what_has_arrived_is_kept_until_the_rest_is_there(pair: Pair) -> None:
    client, server = pair
    received = BytesIO()
    for part in (b"GET /hea", b"lth HTTP/1.1\r\n", b"Host: x\r\n"):
        client.sendall(part)
        assert not _receive(server, received)
    client.sendall(b"\r\n")
    assert _receive(server, received)
    assert received.getvalue() == b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    client.close()
    assert _receive(server, BytesIO())


class Connection:
    """As gunicorn keeps it while its client is silent."""

    def __init__(self) -> None:
        self.client, self.sock = socket.socketpair()

    def close(self) -> None:
        self.sock.close()

    def is_open(self) -> bool:
        return self.sock.fileno() >= 0


@pytest.fixture
def full() -> Iterator[tuple[Worker, list[Connection]]]:
    """A worker with as many connections as it may have: two without a whole request, two that wait for their next."""
    connections = [Connection() for _ in range(4)]
    worker = Worker.__new__(Worker)
    worker.worker_connections = worker.nr_conns = 4
    worker.pending_conns, worker.keepalived_conns = deque(connections[:2]), deque(connections[2:])
    worker.poller = selectors.DefaultSelector()
    for one in connections:
        worker.poller.register(one.sock, selectors.EVENT_READ, lambda _: None)
    yield worker, connections
    worker.poller.close()
    for one in connections:
        one.client.close()
        one.close()


def test_whoever_holds_all_connections_and_says_nothing_makes_room(full: tuple[Worker, list[Connection]]) -> None:
    worker, connections = full
    for num_closed in range(1, 5):
        worker.wait_for_and_dispatch_events(0)
        assert [one.is_open() for one in connections] == [False] * num_closed + [True] * (4 - num_closed)
        assert worker.nr_conns == 3
        worker.nr_conns = 4  # the next one has come
    worker.wait_for_and_dispatch_events(0)  # all are being answered: nobody is closed
    assert worker.nr_conns == 4


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_where_no_file_can_be_opened_a_silent_connection_is_closed(
    full: tuple[Worker, list[Connection]], number: int
) -> None:
    """The process would end otherwise, and the next one as well."""
    worker, connections = full
    worker.nr_conns = 3

    def accept() -> Any:
        raise OSError(number, "too many open files")

    worker.accept(SimpleNamespace(accept=accept))  # type: ignore[arg-type]
    worker.wait_for_and_dispatch_events(0)
    assert [one.is_open() for one in connections] == [False, True, True, True]
    worker.wait_for_and_dispatch_events(0)
    assert connections[1].is_open()


class Served:
    """A worker without a process: what it hands to threads is noted."""

    def __init__(self) -> None:
        self.worker = Worker.__new__(Worker)
        self.worker.cfg = Config()
        self.worker.patience, self.worker.alive = 60.0, True
        self.worker.worker_connections, self.worker.nr_conns = 1000, 0
        self.worker.pending_conns, self.worker.keepalived_conns = deque(), deque()
        self.worker.poller = selectors.DefaultSelector()
        self.threaded: list[Any] = []
        self.worker.enqueue_req = self.threaded.append
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        client.sendall(data)
        return client

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            time.sleep(0.01)
            self.worker.wait_for_and_dispatch_events(0)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    for conn in (*served.threaded, *served.worker.pending_conns, *served.worker.leaving_conns):
        conn.sock.close()
    served.worker.poller.close()
    served.listener.close()


def test_a_connection_takes_a_thread_when_its_request_is_there(served: Served) -> None:
    """However many come at once: a thousand that say nothing would keep those with a request waiting."""
    silent = [served.connect() for _ in range(20)]
    asking = served.connect(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.05)
    served.worker.accept(served.listener)
    assert len(served.threaded) == 1
    assert served.worker.nr_conns == 21
    silent[3].sendall(b"GET /health HTTP/1.1\r\n")
    served.turns()
    assert len(served.threaded) == 1
    silent[3].sendall(b"Host: x\r\n\r\n")
    served.turns()
    assert [one.client for one in served.threaded] == [asking.getsockname(), silent[3].getsockname()]
    for client in (*silent, asking):
        client.close()


def test_a_request_that_does_not_arrive_in_time_ends_its_connection(served: Served) -> None:
    client = served.connect(b"GET /hea")
    time.sleep(0.05)
    served.worker.accept(served.listener)
    served.worker.pending_conns[0].deadline = time.monotonic() - 1
    client.sendall(b"l")
    served.turns()
    assert (served.worker.nr_conns, len(served.worker.pending_conns)) == (0, 0)
    assert client.recv(10) == b""
    client.close()


@pytest.mark.parametrize("ending", ["closes", "sends more and closes", "stays", "sends without end"])
def test_whoever_was_answered_and_does_not_leave_keeps_no_thread(
    served: Served, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LEAVING", 0.2)
    monkeypatch.setattr(worker, "_IGNORED", 1 << 20)
    client = served.connect(b"POST /setup HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789")
    time.sleep(0.05)
    served.worker.accept(served.listener)
    (conn,) = served.threaded
    done: Future[bool] = Future()
    done.set_result(False)
    conn.is_leaving = True
    served.worker.finish_request(conn, done)
    assert list(served.worker.leaving_conns) == [conn]
    if ending.startswith("sends"):
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.send(bytes(1 << 19))
    if ending.endswith("closes"):
        client.close()
    deadline = time.monotonic() + 5
    while served.worker.leaving_conns and time.monotonic() < deadline:
        if ending == "sends without end":
            with suppress(BlockingIOError, ConnectionError):
                client.send(bytes(1 << 20))
        served.turns(1)
        if ending != "sends without end":
            served.worker.murder_pending()
    assert served.worker.nr_conns == 0
    client.close()


@pytest.mark.parametrize(
    ("request_head", "rest", "read", "is_unread"),
    [
        (b"Content-Length: 10\r\n\r\n12345", b"67890", 10, False),
        (b"Content-Length: 10\r\n\r\n12345", b"", 0, True),
        (b"Content-Length: 10\r\n\r\n1234567890", b"", 0, False),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", b"", 10, False),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", b"", 0, True),
        (b"\r\n", b"", 0, False),
    ],
)
def test_a_body_that_nobody_read_is_noticed(
    pair: Pair, request_head: bytes, rest: bytes, read: int, is_unread: bool
) -> None:
    client, server = pair
    client.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\n" + request_head)
    parser = get_parser(Config(), server, ("127.0.0.1", 1))
    request = next(parser)
    client.sendall(rest)
    request.body.read(read)
    request.body.read(read)  # its end is seen by whoever reads on
    assert _is_unread(request, parser.unreader) == is_unread


def test_a_client_hears_that_its_connection_ends(pair: Pair) -> None:
    client, server = pair
    with BufferedSocket(server, BoundedSemaphore(1)) as answering:
        answering.announce_end()
        answering.sendall(b"HTTP/1.1 503 x\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n")
        answering.sendall(b"\r\nConnection: keep-alive\r\n")
        answering.announce_end()
        answering.leave()
    head, body = b"HTTP/1.1 503 x\r\nConnection: close\r\n", b"\r\nConnection: keep-alive\r\n"
    assert client.recv(200) == head + b"Content-Length: 2\r\n\r\n" + body


def test_as_many_files_as_connections_need_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, hard = [], [1 << 20]
    monkeypatch.setattr(worker.resource, "getrlimit", lambda _: (1024, hard[0]))
    monkeypatch.setattr(worker.resource, "setrlimit", lambda _, found: limits.append(found))
    allow_files(4096)
    hard[0] = 2000
    allow_files(4096)
    allow_files(1000)
    assert limits == [(4096, 1 << 20), (2000, 2000)]
