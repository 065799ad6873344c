"""Answers of other hosts that are complete by a moment, or given up.

A limit as requests has it counts from byte to byte: a host that sends one now and then, in the status line, the headers
or between chunks, outlasts it and keeps whoever waits for it.
"""

from __future__ import annotations

import io
import socket
import time
from functools import partial
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter


class PunctualAdapter(HTTPAdapter):
    """A session's way to its hosts on which nothing is read after the monotonic time `deadline`.

    Later reads raise what urllib3 and requests make of a timeout.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        super().__init__()

    @classmethod
    def within(cls, seconds: float) -> PunctualAdapter:
        """An adapter whose requests end within so many seconds from now, all together."""
        return cls(time.monotonic() + seconds)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """As of requests; a limit in `timeout` that lies behind the deadline is brought forward."""
        left = max(0.001, self._deadline - time.monotonic())
        given = options.get("timeout")
        options["timeout"] = min(given, left) if isinstance(given, (int, float)) else left
        return super().send(request, *args, **options)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        """As of requests, for every kind of connection: plain, with TLS, through a proxy."""
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = partial(_connection, pool.ConnectionCls, self._deadline)
        return pool


def _connection(make: Any, deadline: float, **options: Any) -> Any:
    connection = make(**options)
    connection.response_class = partial(_PunctualResponse, deadline=deadline)
    return connection


class _PunctualResponse(HTTPResponse):
    """Reads its socket, for status line, headers, body and all between, through a `_PunctualReader`."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_PunctualReader(self.fp.detach(), sock, deadline))


class _PunctualReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not arrive in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
