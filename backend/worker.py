"""gunicorn's worker process: no client can block its threads, and it reports the shutdown before it refuses
connections."""

from __future__ import annotations

import errno
import os
import re
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from io import BytesIO
from threading import BoundedSemaphore
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.http import get_parser
from gunicorn.http.body import LengthReader
from gunicorn.workers.gthread import _DEFER, TConn, ThreadWorker

from backend.places import places
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.finetune.scheduler import Training
    from backend.readiness import Readiness

_PROMPT = 0.05
"""Seconds in total that a request or an answer may wait for its client on any thread."""

_SILENCE = 10.0
"""Seconds that a client may be silent in the middle of a request before its connection is closed."""

_SENDING = 10.0
"""Seconds that a client has to read the whole answer before its connection is closed."""

_LEAVING = 2.0
"""Seconds that a client has to close its side of a connection."""

_IGNORED = 128 << 20
"""Bytes that a client may still send in that time, such as the rest of a body that was refused."""

_IGNORED_AT_ONCE = 1 << 20
_WITHOUT_COPY = socket.MSG_TRUNC if sys.platform == "linux" else 0
"""Has Linux throw away what was sent instead of handing it over."""

_ACCEPTED = 64
"""Connections that are accepted before others have their turn."""

_HELD = 256 << 10
"""Bytes of a request that are collected without a thread; a longer one gets a thread before it is complete."""

_TURN = 0.001
"""Seconds that a thread computes in Python while others wait to. With Python's own 5 ms an answer to /health, which
takes a few turns, waits for seconds behind a dozen threads that receive long bodies."""

_OPEN_FILES = 4096
"""Files and connections that the process may have open, if the system lets it: some systems start with fewer than
gunicorn takes connections."""

_KEPT = b"\r\nConnection: keep-alive\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*(?=\r\n|$)", re.IGNORECASE)
_UNMEASURED = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)


class DeadlineSocket:
    """A connection from which a request is read; all of it must arrive before the monotonic time `deadline`.

    Otherwise a client that sends a byte now and then would occupy the reading thread for as long as it likes. A client
    that pauses for longer than a moment needs one of the `places` for slow clients, until `release`.
    """

    def __init__(self, connection: socket.socket, deadline: float, places: BoundedSemaphore) -> None:
        self._connection = connection
        self._deadline = deadline
        self._places = places
        self._has_place = False
        self._prompt = _PROMPT  # seconds that it may still wait without a place

    def recv(self, size: int) -> bytes:
        """As in `socket`. Raises `ConnectionResetError` for a client that is too slow."""
        try:
            while True:
                begin = time.monotonic()
                left = self._deadline - begin
                if left <= 0:
                    raise ConnectionResetError(errno.ECONNRESET, "the request did not arrive in time")
                self._connection.settimeout(max(min(left, _SILENCE if self._has_place else self._prompt), 0.001))
                try:
                    return self._connection.recv(size)
                except TimeoutError:
                    if self._has_place or not self._places.acquire(blocking=False):
                        raise ConnectionResetError(errno.ECONNRESET, "the request did not arrive in time") from None
                    self._has_place = True
                finally:
                    self._prompt = max(0.0, self._prompt - (time.monotonic() - begin))
        finally:
            self._connection.settimeout(None)

    def release(self) -> None:
        """Give back the place once the request is answered."""
        if self._has_place:
            self._has_place = False
            self._places.release()


class BufferedSocket(socket.socket):
    """A connection that collects an answer until it is complete, and then sends it in one piece.

    gunicorn sends headers and body separately. If the process is killed between the two, the client has already
    received status 200, and a load balancer that passed it on cannot retry on another server.
    """

    def __init__(self, connection: socket.socket, places: BoundedSemaphore) -> None:
        super().__init__(fileno=os.dup(connection.fileno()))
        self._waiting: list[bytes] = []
        self._places = places

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Keep the data for `leave`."""
        self._waiting.append(bytes(data))

    def leave(self) -> None:
        """Send the collected data. What the kernel has accepted arrives even if the process dies.

        Raises `ConnectionResetError` for a client that does not read: it must not occupy the thread. A slow one needs
        one of the places for slow clients.
        """
        unsent = self._send(memoryview(b"".join(self._waiting)), _PROMPT)
        if not unsent:
            return
        if self._places.acquire(blocking=False):
            try:
                unsent = self._send(unsent, _SENDING)
            finally:
                self._places.release()
        if unsent:
            raise ConnectionResetError(errno.ECONNRESET, "the answer was not read in time")

    def announce_end(self) -> None:
        """Tell the client that the connection ends with this answer."""
        if self._waiting:
            self._waiting[0] = self._waiting[0].replace(_KEPT, b"\r\nConnection: close\r\n", 1)

    def _send(self, data: memoryview, seconds: float) -> memoryview:
        """Send for up to `seconds`; returns the unsent data. Reading byte by byte does not extend the time."""
        deadline = time.monotonic() + seconds
        while data and (left := deadline - time.monotonic()) > 0:
            self.settimeout(left)
            try:
                data = data[super().send(data) :]
            except TimeoutError:
                break
        return data


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with threads that no client can block, and `/ready` turned off by SIGTERM."""

    readiness: Readiness | None = None
    training: Training | None = None
    is_out_of_files = False

    @cached_property
    def leaving_conns(self) -> deque[Any]:
        """Connections that were answered and whose clients have yet to close them, the longest first."""
        return deque()

    def init_process(self) -> None:
        """Begin, with as many files as connections need, and threads that take turns quickly."""
        allow_files(_OPEN_FILES)
        sys.setswitchinterval(_TURN)
        super().init_process()

    def load_wsgi(self) -> None:
        """Import the app, in this process alone: gunicorn's main process has no use for torch."""
        super().load_wsgi()
        from backend.wsgi import readiness, training

        self.readiness, self.training = readiness, training
        settings = Settings.from_environment(os.environ)
        self.patience = settings.request_timeout
        self.slow_clients = BoundedSemaphore(places(settings.threads).clients)

    def init_signals(self) -> None:
        """As gunicorn's, but a terminal that is closed ends nothing: SIGHUP reaches each process of its group."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def handle(self, conn: Any) -> Any:
        """Serve a request, which has to arrive within REQUEST_TIMEOUT. Until it is complete, or very long, it waits in
        gunicorn's poller without a thread."""
        if self.cfg.is_ssl:  # no setting of ours turns it on; gunicorn wraps the socket later
            return super().handle(conn)
        deadline = self._deadline(conn)
        if not self._has_request(conn) and self.alive:
            return _DEFER if time.monotonic() < deadline else False
        conn.deadline = None
        conn.data_ready = True
        conn.parser.unreader.sock = incoming = DeadlineSocket(conn.sock, deadline, self.slow_clients)
        try:
            # A client that pipelines requests would take other clients' turns; it has to connect again.
            keepalive = super().handle(conn) and not conn.parser.unreader.buf.getvalue()
            if not keepalive:
                conn.is_leaving = _say_goodbye(conn.sock)
            return keepalive
        finally:
            incoming.release()

    def accept(self, listener: socket.socket) -> None:
        """Accept the connections that wait; where no more files can be opened, they wait until one is closed. A
        connection takes a thread only when its request is there: a thousand that come at once would otherwise keep all
        threads busy with nothing."""
        for _ in range(_ACCEPTED):
            try:
                connection, address = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self.is_out_of_files = True
                elif error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED):
                    raise
                return
            self.nr_conns += 1
            conn = TConn(self.cfg, connection, address, listener.getsockname())
            if self.cfg.is_ssl or self._has_request(conn):
                self.enqueue_req(conn)
            else:
                self._await_data(conn)
            if self.nr_conns >= self.worker_connections:
                return

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """More of a request has come."""
        if self.cfg.is_ssl or self._has_request(conn):
            super().on_pending_socket_readable(conn, client)
            return
        self.pending_conns.remove(conn)
        self.poller.unregister(client)
        if time.monotonic() < self._deadline(conn):
            self._await_data(conn)
        else:
            self._close(conn)

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """The next request on a connection begins, or its client has closed it."""
        if self.cfg.is_ssl or self._has_request(conn):
            super().on_client_socket_readable(conn, client)
            return
        self.keepalived_conns.remove(conn)
        self.poller.unregister(client)
        self._await_data(conn)

    def on_leaving_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """A client that was answered still sends, or closes its connection."""
        if not _ignore(conn):
            self.leaving_conns.remove(conn)
            self.poller.unregister(client)
            self._close(conn)

    def _await_data(self, conn: Any) -> None:
        """Let a connection wait in the poller for the rest of a request."""
        conn.timeout = time.monotonic() + self.cfg.keepalive
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _has_request(self, conn: Any) -> bool:
        """Take what has arrived; whether a thread should take over."""
        if conn.parser is None:
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
        self._deadline(conn)
        return _receive(conn.sock, conn.parser.unreader.buf)

    def _deadline(self, conn: Any) -> float:
        """When the request must have arrived: REQUEST_TIMEOUT after its first bytes were expected."""
        if getattr(conn, "deadline", None) is None or not conn.parser.unreader.buf.getbuffer().nbytes:
            conn.deadline = time.monotonic() + self.patience
        deadline: float = conn.deadline
        return deadline

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Do what there is to do. Whoever holds all connections and says nothing must not keep others out: then those
        that have been silent for longest are closed."""
        super().wait_for_and_dispatch_events(timeout)
        while self.nr_conns >= self.worker_connections or self.is_out_of_files:
            if not self._close_longest_silent():
                if self.is_out_of_files:
                    time.sleep(_PROMPT)  # all are being answered; the next connection stays where it is meanwhile
                break
            self.is_out_of_files = False

    def _close_longest_silent(self) -> bool:
        """Close a connection without a whole request, or else one that waits for its next; whether there was any."""
        silent = self.leaving_conns or self.pending_conns or self.keepalived_conns
        if not silent:
            return False
        self._drop(silent.popleft())
        return True

    def murder_pending(self) -> None:
        """Close the connections whose time is over, also of those who were answered and do not leave."""
        super().murder_pending()
        while self.leaving_conns and self.leaving_conns[0].timeout <= time.monotonic():
            self._drop(self.leaving_conns.popleft())

    def _drop(self, conn: Any) -> None:
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self._close(conn)

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Close a connection that is not kept alive, once its client has closed it or a moment has passed: otherwise
        the kernel resets the connection, and the end of the answer is lost. gunicorn would wait in the thread that
        accepts connections: each client that does not close would block all others for two seconds."""
        if fs.cancelled() or fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
        elif getattr(conn, "is_leaving", False) and _ignore(conn):
            conn.timeout = time.monotonic() + _LEAVING
            self.leaving_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_leaving_socket_readable, conn))
        else:
            self._close(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Send the answer to a request in one piece."""
        if self.cfg.is_ssl:
            return super().handle_request(req, conn)
        connection = conn.sock
        try:
            with BufferedSocket(connection, self.slow_clients) as conn.sock:
                keepalive = super().handle_request(req, conn)
                if keepalive and _is_unread(req, conn.parser.unreader):
                    conn.sock.announce_end()  # rather than have a thread receive what nobody wants
                    keepalive = False
                conn.sock.leave()
        finally:
            conn.sock = connection
        return keepalive

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: `/ready` reports 503 from now on; running requests finish within SHUTDOWN_TIMEOUT."""
        if self.readiness is not None:
            self.readiness.stop()
        super().handle_exit(sig, frame)

    def run(self) -> None:
        """Serve until told to stop, then stop the background work."""
        if self.training is not None:
            self.training.start()
        super().run()
        if self.training is not None:
            self.training.close()
        if self.readiness is not None:
            self.readiness.close()


def allow_files(count: int) -> None:
    """Let this process open so many files, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _is_unread(request: Any, unreader: Any) -> bool:
    """Whether more of a request's body is still to come than has arrived."""
    reader = request.body.reader
    if isinstance(reader, LengthReader):
        return bool(reader.length > unreader.buf.getbuffer().nbytes)
    return getattr(reader, "parser", None) is not None  # chunks, of which the last was not read


def _say_goodbye(connection: socket.socket) -> bool:
    """Signal the end of an answer to its client; whether there is still a connection."""
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def _ignore(conn: Any) -> bool:
    """Throw away what has arrived from a client that is leaving; whether more may come."""
    try:
        conn.sock.setblocking(False)
        num_bytes = len(conn.sock.recv(_IGNORED_AT_ONCE, _WITHOUT_COPY))
    except BlockingIOError:
        return True
    except OSError:
        return False
    conn.ignored = getattr(conn, "ignored", 0) + num_bytes
    return num_bytes > 0 and bool(conn.ignored < _IGNORED)


def _receive(connection: socket.socket, received: BytesIO) -> bool:
    """Add the bytes that have arrived to a request, without waiting; returns whether a thread should take over."""
    connection.setblocking(False)
    received.seek(0, os.SEEK_END)
    while received.tell() < _HELD:
        try:
            data = connection.recv(_HELD)
        except BlockingIOError:
            break
        except OSError:  # the thread that reads on will see it
            return True
        if not data:
            return True
        received.write(data)
    return _is_whole(received.getvalue())


def _is_whole(received: bytes) -> bool:
    """Whether a request is complete, as far as its headers tell, or too long to wait for more."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or len(received) >= _HELD:
        return len(received) >= _HELD
    length = _LENGTH.search(head)
    return length is None or _UNMEASURED.search(head) is not None or len(body) >= int(length[1])
