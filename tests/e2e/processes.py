"""Servers for the length of a test: started on a free port, awaited, watched and ended."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from bench.serving.loopback import free_port, local_session

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "e2e-output"
PYTHON = os.environ.get("BACKEND_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""The interpreter that has the backend's requirements, which this one has not."""


@contextmanager
def server(
    command: Sequence[str], environment: Mapping[str, str], log: Path, health: str, patience: float
) -> Iterator[None]:
    """Run `command` until the block ends; enter the block once the URL `health` answers 200.

    Standard output and error go to the file `log`. Raises RuntimeError if the command ends early or if
    `health` is not answered within `patience` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_health(process, health, log, patience)
            yield
        finally:
            _end(process)


def backend_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, as far as it is not about other servers, with these settings."""
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return own | {"HOST": "127.0.0.1", "BASIC_AUTH_USER": "", "BASIC_AUTH_PASS": ""} | settings


@contextmanager
def backend(log: Path, settings: Mapping[str, str]) -> Iterator[str]:
    """The backend as `make serve` starts it, ready; its address."""
    port = free_port()
    url = f"http://localhost:{port}"
    environment = backend_environment(settings) | {"PORT": str(port)}
    with server([PYTHON, "-m", "backend"], environment, log, f"{url}/ready", patience=180):
        yield url


def _await_health(process: "subprocess.Popen[bytes]", health: str, log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    with local_session() as session:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}; its last words:\n{_tail(log)}")
            try:
                if session.get(health, timeout=2).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.5)
    raise RuntimeError(f"{health} did not answer 200 within {patience:.0f} s; the log ends with:\n{_tail(log)}")


def _tail(log: Path, num_lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children, which share the session that was started for it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


@dataclass
class Pulse:
    """What a server answered while it was asked for its health again and again."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def taking_pulse(health: str, timeout: float, interval: float = 0.1) -> Iterator[Pulse]:
    """Ask the URL `health` every `interval` seconds during the block; anything but 200 in time fails."""
    pulse, done = Pulse(), threading.Event()

    def ask() -> None:
        with local_session() as session:
            while not done.wait(interval):
                start = time.monotonic()
                try:
                    session.get(health, timeout=timeout).raise_for_status()
                except requests.RequestException as error:
                    pulse.failures.append(repr(error))
                pulse.seconds.append(time.monotonic() - start)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield pulse
    finally:
        done.set()
        thread.join(timeout + 1)
