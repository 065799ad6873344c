"""HAProxy with deploy/haproxy.cfg on this machine, for measurements and tests: addresses of 127/8 stand for machines.

The configuration is used as it stands; what differs from a cluster comes from its environment, the DNS included.
"""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.serving.loopback import free_port, local_session

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
KEEP_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "536870912"}
"""HAProxy's environment in deploy/compose.scale.yaml; deploy/haproxy.cfg says why."""

_A, _IN = 1, 1  # of the DNS: an IPv4 address, of the internet
_START_TIMEOUT = 300.0  # seconds for HAProxy to listen, or to notice a change


@dataclass
class Names:
    """A DNS server of IPv4 addresses by name; `addresses` may change at any time."""

    addresses: dict[str, list[str]]
    port: int = 0

    def answer(self, query: bytes) -> bytes:
        """The reply to a query with one question (RFC 1035)."""
        end, labels = 12, []
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode())
            end += 1 + length
        (kind,) = struct.unpack_from("!H", query, end + 1)
        found = self.addresses.get(".".join(labels), []) if kind == _A else []
        header = query[:2] + struct.pack("!5H", 0x8580, 1, len(found), 0, 0)  # an answer, authoritative, no error
        records = [struct.pack("!3HIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address) for address in found]
        return header + query[12 : end + 5] + b"".join(records)


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    url: str
    """What Label Studio would be given."""
    stats: str
    """Its own figures: /metrics and /stats."""

    def await_replicas(self, count: int) -> None:
        """Wait until clicks are sent to so many replicas. Raises `TimeoutError`."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            lines = local_session().get(f"{self.stats}/stats;csv", timeout=10).text.splitlines()
            states = [line.split(",")[17] for line in lines if line.startswith("replicas,replica")]
            if sum(state.startswith("UP") for state in states) == count:
                return
            time.sleep(0.05)
        raise TimeoutError(f"HAProxy does not see {count} replicas: {sorted(states)}")


@contextmanager
def dns(addresses: dict[str, list[str]]) -> Iterator[Names]:
    """A DNS server on loopback."""
    names = Names(addresses)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, channel = self.request
            channel.sendto(names.answer(query), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        names.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield names
        finally:
            server.shutdown()


def haproxy_program() -> str:
    """The path of HAProxy: what HAPROXY names, or Debian's. Raises `ValueError` with what to install."""
    given = os.environ.get("HAPROXY") or "haproxy"
    found = shutil.which(given, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ValueError(f"no program {given}: install the Debian package haproxy, or name it in HAPROXY=PATH")
    return found


@contextmanager
def haproxy(names: Names, port: int, log: Path) -> Iterator[Balancer]:
    """HAProxy before the replicas and the trainer that `names` knows, all of which listen on `port`."""
    own, stats = free_port(), free_port()
    environment = KEEP_BUFFERS | {
        "BIND": f"127.0.0.1:{own}",
        "STATS": f"127.0.0.1:{stats}",
        "DNS": f"127.0.0.1:{names.port}",
        "REPLICAS": f"replica:{port}",
        "TRAINER": f"trainer:{port}",
    }
    command = [haproxy_program(), "-db", "-f", str(CONFIG)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _await_port(stats, process, log)
            yield Balancer(f"http://127.0.0.1:{own}", f"http://127.0.0.1:{stats}")
        finally:
            process.kill()
            process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(f"HAProxy ended with status {process.returncode}: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"HAProxy does not listen: {log.read_text()}")
