"""Servers on this machine, as measurements and tests start them: a free port, HTTP without proxies, an end."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

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


def exit_on_signals() -> None:
    """From now on SIGTERM and SIGHUP end this process as an exception does, after the servers it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # nothing disturbs the way out
    sys.exit(128 + number)
