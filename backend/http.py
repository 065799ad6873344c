"""Whether the client of a request is still there: nobody should wait behind work that nobody waits for."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping
from typing import Any


def has_left(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """A function that tells whether the client of a WSGI request has closed its connection.

    Label Studio closes it when its own time limit ends. Only gunicorn hands out the socket; elsewhere, and where the
    connection cannot be read, the client counts as present.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return lambda: False

    def left() -> bool:
        try:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            return bool(poll.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True
        except (OSError, ValueError):
            return False

    return left
