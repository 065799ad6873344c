"""The process that gunicorn starts: it tells the app when the end begins, before connections are refused."""

from __future__ import annotations

import socket
import struct
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker

if TYPE_CHECKING:
    from backend.finetune.training import Training
    from backend.readiness import Readiness

_SILENCE = 10
"""Seconds that a client may be silent in the middle of a request, before its connection is closed."""


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threads, and a readiness that ends with SIGTERM."""

    readiness: Readiness | None = None
    training: Training | None = None

    def load_wsgi(self) -> None:
        """Import the app, in this process alone: gunicorn's main process has no use for torch."""
        super().load_wsgi()
        from backend.wsgi import readiness, training

        self.readiness, self.training = readiness, training

    def handle(self, conn: Any) -> Any:
        """Serve a request. Its client cannot keep the thread by sending half of it: the kernel ends the waiting, as
        gunicorn makes the socket forget every limit of Python's."""
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _SILENCE, 0))
        return super().handle(conn)

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
