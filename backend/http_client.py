"""Requests to other hosts: their user agent, the certificates that they trust, and a deadline for the whole answer.

The timeout of requests applies to each read: a host that sends a byte now and then, in the status line, the headers or
between chunks, never triggers it and would block the caller.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from skipclick import __version__

USER_AGENT = f"skipclick-backend/{__version__}"
"""Some hosts refuse the user agents of libraries, and administrators want to know who calls."""

_PIECE = 1 << 16

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name certificates of authorities; the first one that is set counts. requests itself reads only the
first two."""


class DeadlineAdapter(HTTPAdapter):
    """An adapter for sessions that reads nothing after the monotonic time `deadline`.

    Later reads raise the errors that urllib3 and requests raise for timeouts.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        super().__init__()

    @classmethod
    def within(cls, seconds: float) -> DeadlineAdapter:
        """An adapter whose requests all end within `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """As in requests; a `timeout` that ends after the deadline is shortened."""
        left = max(0.001, self._deadline - time.monotonic())
        given = options.get("timeout")
        options["timeout"] = min(given, left) if isinstance(given, (int, float)) else left
        return super().send(request, *args, **options)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        """As in requests, for every kind of connection: plain, with TLS, through a proxy."""
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = partial(_connection, pool.ConnectionCls, self._deadline)
        return pool


def _connection(make: Any, deadline: float, **options: Any) -> Any:
    connection = make(**options)
    connection.response_class = partial(_DeadlineResponse, deadline=deadline)
    return connection


class _DeadlineResponse(HTTPResponse):
    """Reads everything (status line, headers, body) through a `_DeadlineReader`."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock, deadline))


class _DeadlineReader(io.RawIOBase):
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


def new_session(adapter: DeadlineAdapter) -> requests.Session:
    """A session for requests to other hosts, which end at the adapter's deadline. All outgoing requests of this server
    use one, so that a slow host cannot block it."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    session.headers["User-Agent"] = USER_AGENT
    openssl = (os.environ.get(name) for name in CA_VARIABLES[2:])
    session.verify = next((path for path in openssl if path and Path(path).exists()), True)
    return session


def content_of(answer: requests.Response, max_bytes: int) -> bytes:
    """The content of a streamed answer. Raises `OSError`, as requests does, also where it is longer than `max_bytes`,
    once so much of it has arrived or come out of its compression."""
    content = bytearray()
    for piece in answer.iter_content(_PIECE):
        content += piece
        if len(content) > max_bytes:
            raise requests.exceptions.ContentDecodingError(f"the answer is longer than {max_bytes >> 20} MB")
    return bytes(content)


def trusted_certificates(environment: Mapping[str, str]) -> tuple[str, Path] | None:
    """The variable that names the trusted certificates, and the file or folder; None for certifi's."""
    return next(((name, Path(environment[name])) for name in CA_VARIABLES if environment.get(name)), None)


def connection_advice(error: Exception) -> str:
    """What to do about an error of `requests`, if its type tells; otherwise empty."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "check the proxy that HTTP_PROXY or HTTPS_PROXY names, or list this host in NO_PROXY"
    if isinstance(error, requests.exceptions.SSLError):
        return (
            "the host's certificate is not trusted here; if it was signed by your own authority, set "
            "REQUESTS_CA_BUNDLE to the file with that authority's certificate"
        )
    if isinstance(error, OSError) and "CA certificate bundle" in str(error):
        return f"the file that {' or '.join(CA_VARIABLES[:2])} names does not exist"
    return ""
