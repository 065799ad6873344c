"""The process that gunicorn starts: it tells the app when the end begins, before connections are refused."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.http import get_parser
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from backend.settings import Settings

if TYPE_CHECKING:
    from backend.finetune.scheduler import Training
    from backend.readiness import Readiness

_SILENCE = 10.0
"""Seconds that a client may be silent in the middle of a request, before its connection is closed."""

_SENDING = 10.0
"""Seconds that a client has to take an answer, the whole of it, before its connection is closed."""


@dataclass(frozen=True)
class Arriving:
    """A connection as a request is read from it: the whole of it must be there at the monotonic time `deadline`.

    Otherwise a byte now and then would keep the thread that reads it for as long as the client likes.
    """

    connection: socket.socket
    deadline: float

    def recv(self, size: int) -> bytes:
        """As of the socket. Raises `ConnectionResetError` for a client that was waited for long enough."""
        left = self.deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.connection.settimeout(min(left, _SILENCE))
            return self.connection.recv(size)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the request did not arrive in time") from None
        finally:
            self.connection.settimeout(None)


class Whole(socket.socket):
    """A connection on which an answer waits until it is complete, and then leaves in one piece.

    gunicorn sends header lines and body apart. Where the process is killed between the two, the client has been told
    200, and a balancer that has passed this on cannot ask another server any more.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(fileno=os.dup(connection.fileno()))
        self._waiting: list[bytes] = []

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Keep it for `leave`."""
        self._waiting.append(bytes(data))

    def leave(self) -> None:
        """Send what was kept. What the kernel has been given arrives, whatever becomes of the process.

        Raises `ConnectionResetError` for a client that does not read: it must not keep the thread.
        """
        self.settimeout(_SENDING)  # of the whole answer: a reader of single bytes gets no more time
        try:
            super().sendall(b"".join(self._waiting))
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the answer was not read in time") from None


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threads, which no client keeps waiting, and a readiness that ends with SIGTERM."""

    readiness: Readiness | None = None
    training: Training | None = None

    def load_wsgi(self) -> None:
        """Import the app, in this process alone: gunicorn's main process has no use for torch."""
        super().load_wsgi()
        from backend.wsgi import readiness, training

        self.readiness, self.training = readiness, training
        self.patience = Settings.from_environment(os.environ).request_timeout

    def handle(self, conn: Any) -> Any:
        """Serve a request, which has to arrive within REQUEST_TIMEOUT. A connection on which nothing was said yet
        waits with gunicorn's poller and keeps no thread."""
        if not conn.initialized and not conn.data_ready and not conn.wait_for_data(0):
            return _DEFER
        if not self.cfg.is_ssl:  # under TLS, which none of our settings turns on, gunicorn wraps the socket later
            if conn.parser is None:
                conn.parser = get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader.sock = Arriving(conn.sock, time.monotonic() + self.patience)
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request, in one piece."""
        if self.cfg.is_ssl:
            return super().handle_request(req, conn)
        connection = conn.sock
        try:
            with Whole(connection) as conn.sock:
                keepalive = super().handle_request(req, conn)
                conn.sock.leave()
        finally:
            conn.sock = connection
        return keepalive

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: `/ready` says no from here on; what runs is finished within SHUTDOWN_TIMEOUT."""
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
