"""Servers on this machine, as measurements and tests start them: a free port, HTTP without proxies, an end."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import NoReturn

import requests


def free_port() -> int:
    """A TCP port that nothing listens on, on any of this machine's addresses."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on a free port of loopback, a thread for each connection; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def local_session() -> requests.Session:
    """An HTTP session whose traffic stays on this machine, whatever proxies the environment names."""
    session = requests.Session()
    session.trust_env = False
    return session


def exit_on_signals() -> None:
    """From now on SIGTERM and SIGHUP end this process as an exception does, after the servers it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # nothing disturbs the way out
    sys.exit(128 + number)
