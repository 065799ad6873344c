"""Servers on this machine, as measurements and tests start them: a free port, and HTTP that goes through no proxy."""

from __future__ import annotations

import socket

import requests


def free_port() -> int:
    """A TCP port that nothing listens on, on any of this machine's addresses."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


def local_session() -> requests.Session:
    """An HTTP session whose traffic stays on this machine, whatever proxies the environment names."""
    session = requests.Session()
    session.trust_env = False
    return session
