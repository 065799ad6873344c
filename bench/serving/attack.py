"""What a server bears while a team clicks: one attack after the other against a server of its own, on loopback.

    python bench/serving/attack.py                                    all attacks, 8 annotators, some minutes
    python bench/serving/attack.py --only "stopped clients" bombs     some of them

For each attack: how long /health took at most, whether clicks failed, how long they took beside a quiet time before,
and the server's memory. The attackers are a process of a low priority, see `_NICENESS`. A minute after the last attack
nothing of them must be left. Writes OUTPUT.json. Exit status 1 if a limit was passed, 2 if there is nothing to attack.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from itertools import cycle, product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from backend.label_studio.json_bodies import MAX_VALUES
from backend.label_studio.labeling_config import EXAMPLE
from bench.cli import CommandParser, write_results
from bench.serving.annotators import drawn_photo
from bench.serving.load import TOOL, Load, Target, Workload, jpeg, measure, spawned_process
from bench.serving.loopback import exit_on_signals, http_server, local_session
from skipclick import Click, brush_rle
from skipclick.evaluation.option_types import positive, positive_float

HEALTH_SECONDS = 1.0
SLOWDOWN = 2.0
"""Times the usual 95th percentile that clicks may take under attack."""

SETTINGS = {
    "FEATURE_CACHE_BYTES": "256MB",
    "MEMO_CACHE_BYTES": "64MB",
    "PHOTO_CACHE_BYTES": "128MB",
    "IMAGE_MEMORY_BYTES": "768MB",
    "IMAGE_TIMEOUT": "10",
    "REQUEST_TIMEOUT": "30",
    "FINETUNE_QUIET_SECONDS": "1000",
    "OMP_NUM_THREADS": "1",
    "LOG_LEVEL": "ERROR",
}
MEMORY = (256 + 64 + 128 + 768 + 1024) << 20
"""Bytes that the server may take beyond what it has when it is ready: its caches, photos that are decoded, and bodies
of requests that are parsed, see docs/operations.md."""

_NICENESS = 10
"""Of the attackers: on a machine of few processors they would otherwise be measured, and not the server. At the lowest
priority a busy machine would let them do nothing."""

PROJECT = 1  # the only one that Label Studio has


@dataclass(frozen=True)
class Attacked:
    """The server under attack, what stands in for Label Studio, and the folder where it keeps what it learns."""

    url: str
    studio: str
    folder: Path
    process: int
    """The server's main process, which takes signals."""
    worker: int
    """The one that answers."""

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def post(self, route: str, body: Any, timeout: float = 60.0) -> int:
        """The status of an answer; 0 without one."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(requests.RequestException), local_session() as http:
            answer = http.post(self.url + route, data, headers={"Content-Type": "application/json"}, timeout=timeout)
            return answer.status_code
        return 0


Attack = Callable[[Attacked, threading.Event], Iterator[int]]
"""Yields the status of each request that it made; ends by itself, or soon after the event is set."""


@dataclass
class Outcome:
    """What was seen during an attack."""

    attack: str
    health_seconds: float
    """The longest that /health took."""
    clicks: int
    failed: dict[int, int]
    """Clicks that were not answered with a mask, by HTTP status."""
    p95_ms: float
    longest_ms: float
    usual_p95_ms: float
    resident_bytes: int
    """The most that the server's process had."""
    answers: dict[int, int]
    """What the attacker was told, by HTTP status."""
    server_processors: float = 0.0
    """Processor time of the server's process, of each second."""
    attackers_processors: float = 0.0
    """The same of the attackers."""
    faults: list[str] = field(default_factory=list)


# --- attacks


def bombs(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Photos of extreme shapes and of many bytes per pixel."""
    for name in ("strip.png", "deep.png", "deep.png?2", "float.tif", "wide.png"):
        for _ in range(4):
            if stop.is_set():
                return
            yield server.post("/predict", _click(f"{server.studio}/data/upload/1/{name}", 1))


def nested_json(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Bodies that take long to parse: brackets, and lists without end."""
    for route in cycle(("/predict", "/setup", "/webhook")):
        for body in _nested():
            yield server.post(route, body)
        if stop.is_set():
            return


@cache
def _nested() -> tuple[bytes, ...]:
    return b"[" * (20 << 20), b'{"tasks": [' + b"[]," * (5 << 20) + b"[]]}", b"[" * (3 << 20)


def large_events(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Accepted masks of many bytes, of many pixels in few bytes, and in long chains of regions."""
    for number in range(30):
        if stop.is_set():
            return
        yield server.post("/webhook", _large_events()[number % 3])


@cache
def _large_events() -> tuple[bytes, bytes, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    large = _region("m", np.full((8900, 8900), 255, np.uint8))
    chain = [_region("c", _SPOT) | {"parentID": f"c{number + 1}"} for number in range(6000)]
    events = (
        _event(1, [_region("a", noise)]),
        _event(2, [large | {"id": f"m{number}"} for number in range(20)]),
        _event(3, [region | {"id": f"c{number}"} for number, region in enumerate(chain)]),
    )
    first, second, third = (json.dumps(event).encode() for event in events)
    return first, second, third


def long_bodies(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Sixty events of 18 MB at once, again and again: numbers, a mask, and a text."""
    answers: list[int] = []

    def tell(number: int) -> None:
        while not stop.is_set():
            answers.append(server.post("/webhook", _long_bodies()[number % 3]))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from answers


@cache
def _long_bodies() -> tuple[bytes, ...]:
    few, many = b",".join([b"1"] * (MAX_VALUES - 100)), b",".join([b"1"] * (9 << 20))
    texts = (b'"x": [%s], "y": "%s"' % (few, b"y" * ((18 << 20) - len(few))), b'"rle": [%s]' % many)
    return tuple(
        b'{"action": "ANNOTATION_CREATED", "project": {"id": %d}, %s}' % (PROJECT, text)
        for text in (*texts, b'"x": "%s"' % (b"x" * (18 << 20)))
    )


def strange_files(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Named pipes and folders under the names of the server's own files."""
    learning = ("annotations.lock", "annotations.sqlite-wal", "jobs/changing.lock", "jobs/running.lock")
    names = (*learning, "jobs/1/0001.json", "versions/1/current", "versions/1/v1/model.safetensors")
    with local_session() as http:
        for name, is_pipe in cycle(product(names, (True, False))):
            if stop.is_set():
                return
            path = server.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            os.mkfifo(path) if is_pipe else path.mkdir()
            yield server.post("/webhook", _event(2000, [_region("a", _SPOT)]))
            for route in ("/status", "/metrics", "/training?project=1"):
                yield http.get(server.url + route, timeout=30).status_code
            stop.wait(0.5)
            if path.is_fifo():  # else the server has set it aside, and may have a file of its own there
                path.unlink()
            elif path.is_dir():
                path.rmdir()


def forged_trainings(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Trainings of projects that do not exist."""
    for project in range(100, 3100):
        if stop.is_set():
            return
        yield server.post("/webhook", {"action": "START_TRAINING", "project": {"id": project}})


def stopped_clients(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Connections that say nothing, half of something, or do not read what they asked for."""
    post = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    beginnings = (
        b"",
        b"GET /health HTT",
        post + b"Content-Length: 1000\r\n\r\n{",
        post + b"Content-Length: 1000000\r\n\r\n" + bytes(300 << 10),
        post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 60,
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
    )
    while not stop.is_set():
        with ExitStack() as open_connections:
            for number in range(300):
                client = open_connections.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(server.address)
                client.setblocking(False)
                with suppress(OSError):
                    client.send(beginnings[number % len(beginnings)])
                yield 0
            stop.wait(5)


def hanging_photos(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Clicks on photos whose source does not answer, or drips."""
    answers: list[int] = []

    def click(number: int) -> None:
        name = "hang" if number % 2 else "drip"
        answers.append(server.post("/predict", _click(f"{server.studio}/data/upload/1/{name}{number}.jpg", number)))

    threads = [threading.Thread(target=click, args=(number,)) for number in range(100, 160)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from answers


def damaged_files(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """The database of annotations, a job, a version and a pointer, overwritten while the server uses them."""
    damages = (b"", b"{", os.urandom(8192))
    for number in range(100):
        if stop.wait(0.2):
            return
        damage = damages[number % 3]
        for name in ("annotations.sqlite", "jobs/1/0001.json", "versions/1/current", "versions/1/v1/about.json"):
            path = server.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damage)
        yield server.post("/webhook", _event(number + 10, [_region("a", _SPOT)]))
        with local_session() as http:
            for route in ("/status", "/metrics", "/training?project=1"):
                yield http.get(server.url + route, timeout=30).status_code


def locked_database(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """Events while another process keeps the database of annotations to itself."""
    answers: list[int] = []
    body = _event(1000, [_region("a", _SPOT)])

    def tell() -> None:
        while not stop.wait(0.1):
            answers.append(server.post("/webhook", body))

    with sqlite3.connect(server.folder / "annotations.sqlite", timeout=30, isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        threads = [threading.Thread(target=tell) for _ in range(40)]
        for thread in threads:
            thread.start()
        stop.wait(60)
        for thread in threads:
            thread.join()
    yield from answers


def foreign_cancel(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """A training whose file names the server itself as its process, cancelled again and again."""
    job = {"project": 2, "number": 1, "asked_by": "x", "created_at": "2026-01-01", "state": "running"}
    path = server.folder / "jobs" / "2" / "0001.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with local_session() as http:
        while not stop.wait(0.2):
            path.write_text(json.dumps(job | {"pid": server.worker}))
            yield http.delete(f"{server.url}/training?project=2", timeout=30).status_code


def hang_up(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """SIGHUP, as of a terminal that is closed."""
    while not stop.wait(1):
        os.kill(server.process, signal.SIGHUP)
        yield 0


def foreign_pages(server: Attacked, stop: threading.Event) -> Iterator[int]:
    """What a web page can send from an annotator's browser, and names that would forge lines of the log."""
    body = json.dumps(_click(f"{server.studio}/data/upload/1/0.jpg", 1)).encode()
    strange = (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Origin": "https://evil.example"},
        {"Content-Type": "application/json", "Host": "rebound.example"},
        {"Content-Type": "application/json", "Host": "rebound.example", "X-Request-ID": "a b"},
    )
    with local_session() as http:
        while not stop.is_set():
            for headers in strange:
                yield http.post(f"{server.url}/predict", body, headers=headers, timeout=30).status_code


ATTACKS: Mapping[str, Attack] = {
    "bombs": bombs,
    "nested JSON": nested_json,
    "large events": large_events,
    "long bodies": long_bodies,
    "forged trainings": forged_trainings,
    "stopped clients": stopped_clients,
    "hanging photos": hanging_photos,
    "locked database": locked_database,
    "damaged files": damaged_files,
    "strange files": strange_files,
    "foreign cancel": foreign_cancel,
    "foreign pages": foreign_pages,
    "hang-up": hang_up,
}

_SPOT = np.full((8, 8), 255, np.uint8)


def _click(address: str, task: int, size: tuple[int, int] = (100, 100)) -> dict[str, Any]:
    """A click on a photo of a size (H, W) at an address."""
    shown = {"id": task, "data": {"image": address}, "annotations": [], "drafts": [], "predictions": []}
    return TOOL.predict_body(shown, size, [Click(50, 50)])


def _event(annotation: int, result: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the webhook tells of an accepted annotation."""
    task = {"id": annotation, "data": {"image": f"/data/upload/1/{annotation}.jpg"}}
    saved = {"id": annotation, "task": annotation, "result": [dict(one) for one in result]}
    project = {"id": PROJECT, "label_config": EXAMPLE}
    return {"action": "ANNOTATION_CREATED", "annotation": saved, "task": task, "project": project}


def _region(name: str, mask: NDArray[np.uint8]) -> dict[str, Any]:
    """A brush region of a mask, uint8 (H, W)."""
    height, width = mask.shape
    value = {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": ["thing"]}
    tags = {"id": name, "type": "brushlabels", "from_name": "mask", "to_name": "image"}
    return tags | {"original_width": width, "original_height": height, "value": value}


# --- what is attacked, and what is seen


@contextmanager
def label_studio(files: Mapping[str, bytes]) -> Iterator[str]:
    """Stands in for Label Studio on loopback: its files, photos that never come or drip, one project; its address."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if name.startswith("hang"):
                over.wait(60)
                return
            if path.startswith("/api/"):
                found = b"{}" if path == f"/api/projects/{PROJECT}/" else None
            else:
                found = files.get("0.jpg" if name.startswith("drip") else name)
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            size = 1 if name.startswith("drip") else 1 << 30
            with suppress(OSError):
                for place in range(0, len(found or b""), size):
                    self.wfile.write((found or b"")[place : place + size])
                    if size == 1 and over.wait(0.1):
                        return

        def log_message(self, *_: Any) -> None:
            pass

    with http_server(Handler) as url:
        try:
            yield url
        finally:
            over.set()  # what still hangs ends


def evil_photos() -> dict[str, bytes]:
    """Files by name: extreme shapes, and many bytes per pixel in few bytes of a file."""
    return {
        "strip.png": _png(np.zeros((60_000, 1), np.uint8)),
        "wide.png": _png(np.zeros((2, 65_000), np.uint8)),
        "deep.png": _png(np.zeros((6000, 6000), np.uint16)),
        "float.tif": _image(np.zeros((5000, 5000), np.float32), "TIFF", compression="tiff_deflate"),
    }


def _png(pixels: NDArray[Any]) -> bytes:
    return _image(pixels, "PNG")


def _image(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@dataclass
class Watch:
    """Asks for /health all the time, and looks at the server's memory."""

    server: Attacked
    health_seconds: float = 0.0
    resident_bytes: int = 0

    def run(self, stop: threading.Event) -> None:
        """Until the event is set."""
        with local_session() as http:
            while not stop.wait(0.1):
                begin = time.perf_counter()
                with suppress(requests.RequestException):
                    http.get(f"{self.server.url}/health", timeout=60, headers={"Connection": "close"})
                self.health_seconds = max(self.health_seconds, time.perf_counter() - begin)
                self.resident_bytes = max(self.resident_bytes, resident_bytes(self.server.worker))


def resident_bytes(pid: int) -> int:
    """Memory that a process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(pid: int) -> float:
    """Time on processors that a process has had."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


class Attackers:
    """A process of a low priority that makes one attack after the other, when it is told to."""

    def __init__(self, server: Attacked) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have copies of this process's threads' locks
        self._orders, others_end = context.Pipe()
        self._process = context.Process(target=_attack_when_told, args=(others_end, server), daemon=True)
        self._process.start()
        others_end.close()
        self._orders.recv()  # it is ready

    @property
    def process(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def begin(self, attack: str) -> None:
        """Attack, until `end`."""
        self._orders.send(attack)

    def end(self) -> Counter[int]:
        """What the attack was answered, by HTTP status."""
        self._orders.send("")
        answers: Counter[int] = self._orders.recv()
        return answers

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _attack_when_told(orders: Connection, server: Attacked) -> None:
    os.nice(_NICENESS)
    _large_events()  # now: they take seconds
    _nested()
    _long_bodies()
    orders.send("ready")
    with suppress(EOFError):
        while True:
            attack, stop, answers = orders.recv(), threading.Event(), Counter[int]()
            thread = threading.Thread(target=lambda: answers.update(ATTACKS[attack](server, stop)))  # noqa: B023
            thread.start()
            orders.recv()
            stop.set()
            thread.join()
            orders.send(answers)


def watched(
    server: Attacked, target: Target, workload: Workload, attackers: Attackers | None = None, attack: str = ""
) -> tuple[Load, Watch, Counter[int]]:
    """Let the team click for its time, under an attack or in peace."""
    stop, watch, answers = threading.Event(), Watch(server), Counter[int]()
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    if attackers is not None:
        attackers.begin(attack)
    load = measure(target, workload, count_hits=False)
    if attackers is not None:
        answers = attackers.end()
    stop.set()
    thread.join()
    return load, watch, answers


def judge(outcome: Outcome, most_bytes: int, health_seconds: float, slowdown: float) -> list[str]:
    """Which limits were passed, in words."""
    faults = []
    if outcome.health_seconds > health_seconds:
        faults.append(f"/health took {outcome.health_seconds:.2f} s")
    if outcome.failed:
        faults.append(f"clicks failed: {outcome.failed}")
    if outcome.p95_ms > slowdown * outcome.usual_p95_ms:
        faults.append(f"clicks took {outcome.p95_ms / outcome.usual_p95_ms:.1f} times as long as usual")
    if outcome.resident_bytes > most_bytes:
        faults.append(f"the server took {outcome.resident_bytes >> 20} MB, more than {most_bytes >> 20}")
    return faults


def what_is_left(server: Attacked, most_bytes: int, seconds: float) -> list[str]:
    """What is still to be seen of the attacks when so much time has passed, in words."""
    deadline = time.monotonic() + seconds
    while True:
        with local_session() as http:
            status = http.get(f"{server.url}/status", timeout=60).json()
        learning = status["learning"]
        left = []
        if not status["ready"]:
            left.append(f"it is not ready: {status['trouble']}")
        if learning["trouble"] is not None:
            left.append(f"learning is held up: {learning['trouble']}")
        if learning["events"] is None or learning["events"]["waiting"]:
            left.append(f"events wait: {learning['events']}")
        if any(status["queue"].values()):
            left.append(f"work waits for the device: {status['queue']}")
        if (now := resident_bytes(server.worker)) > most_bytes:
            left.append(f"it keeps {now >> 20} MB, more than {most_bytes >> 20}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1)


def _p95(load: Load) -> float:
    return float(np.percentile(load.latencies(first=False) or [0.0], 95))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK", help=", ".join(ATTACKS)
    )
    parser.add_argument("--annotators", type=positive, default=8, help="who click meanwhile (default: 8)")
    parser.add_argument("--think", type=positive_float, default=1.0, help="mean seconds between clicks (default: 1)")
    parser.add_argument("--seconds", type=positive_float, default=20.0, help="of each attack (default: 20)")
    parser.add_argument(
        "--health",
        type=positive_float,
        default=HEALTH_SECONDS,
        help=f"limit of /health, seconds (default: {HEALTH_SECONDS:g})",
    )
    parser.add_argument(
        "--slowdown",
        type=positive_float,
        default=SLOWDOWN,
        help=f"limit of clicks, times the usual 95th percentile (default: {SLOWDOWN:g})",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/attack"), help="name of the results, without ending")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/statm").exists():
        print("attack: this needs Linux, which tells how much memory a process has", file=sys.stderr)
        return 2
    try:
        outcomes, left = _attack(options)
    except (ValueError, OSError) as error:
        print(f"attack: {error}", file=sys.stderr)
        return 2
    for words in left:
        print(f"a minute later {words}")
    write_results(options.output, {"settings": SETTINGS, "attacks": [asdict(one) for one in outcomes], "left": left})
    return 1 if left or any(one.faults for one in outcomes) else 0


def _attack(options: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    size = 720, 1280
    pictures = {f"{number}.jpg": jpeg(drawn_photo(number, size)) for number in range(10)}
    outcomes = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        studio = stack.enter_context(label_studio(pictures | evil_photos()))
        settings = SETTINGS | {"MODEL_DIR": str(folder), "LABEL_STUDIO_API_KEY": "0" * 40}
        spawned = stack.enter_context(spawned_process(studio, settings))
        server = Attacked(spawned.url, studio, folder, spawned.process, spawned.worker)
        target = Target(server.url, [f"/data/upload/1/{name}" for name in pictures], [size] * len(pictures))

        def workload(number: int) -> Workload:
            return Workload(options.annotators, 1_000_000, options.seconds, options.think, first_seed=100 * number)

        attackers = Attackers(server)
        stack.callback(attackers.close)
        for name in pictures:  # of a source that hangs photos can be had which are known
            server.post("/predict", _click(f"/data/upload/1/{name}", 1, size))
        ready = resident_bytes(server.worker)
        usual, watch, _ = watched(server, target, workload(0))
        print(
            f"in peace: 95 % of later clicks within {_p95(usual):.0f} ms, /health {watch.health_seconds:.2f} s, "
            f"{ready >> 20} MB",
            flush=True,
        )
        for number, name in enumerate(options.only, 1):
            before, begin = _times(server, attackers), time.monotonic()
            load, watch, answers = watched(server, target, workload(number), attackers, name)
            seconds = time.monotonic() - begin
            of_server, of_attackers = (
                (now - then) / seconds for then, now in zip(before, _times(server, attackers), strict=True)
            )
            latencies = load.latencies(first=False) or [0.0]
            outcome = Outcome(
                name,
                watch.health_seconds,
                len(load.sent),
                load.failures,
                _p95(load),
                max(latencies),
                _p95(usual),
                watch.resident_bytes,
                dict(answers),
                of_server,
                of_attackers,
            )
            outcome.faults = judge(outcome, ready + MEMORY, options.health, options.slowdown)
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
        return outcomes, what_is_left(server, ready + MEMORY, 60.0)


def _times(server: Attacked, attackers: Attackers) -> tuple[float, float]:
    """Seconds on processors of the server and of the attackers."""
    return processor_seconds(server.worker), processor_seconds(attackers.process)


def _line(outcome: Outcome) -> str:
    told = ", ".join(f"{number} x {status or 'nothing'}" for status, number in sorted(outcome.answers.items()))
    seen = (
        f"/health {outcome.health_seconds:.2f} s, {outcome.clicks} clicks, 95 % within {outcome.p95_ms:.0f} ms, "
        f"longest {outcome.longest_ms:.0f}, {outcome.resident_bytes >> 20} MB, processors for the server "
        f"{outcome.server_processors:.2f}, for the attackers {outcome.attackers_processors:.2f}, who got "
        f"{told or 'nothing'}"
    )
    return f"{outcome.attack}: {'; '.join(outcome.faults) if outcome.faults else 'held'} ({seen})"


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
