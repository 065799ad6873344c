"""How a running server does under a team: N annotators click over HTTP, as Label Studio does.

    python bench/serving/load.py --spawn                              start a server for the measurement, 8 annotators
    python bench/serving/load.py --spawn --annotators 32 --think 3    each thinks for 3 s on average between two clicks
    python bench/serving/load.py --url http://localhost:9090          against a server that runs already

Without --think an annotator clicks as soon as the last answer is there (closed loop). The server must be this
machine's; clicks and time are bounded. With --spawn the photos are fetched from a small server here that stands in for
Label Studio's, otherwise they travel in each request. Writes OUTPUT.json and OUTPUT.png. Exit status 1 if a request
failed, 2 if there is no server to measure.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import matplotlib as mpl
import numpy as np
import requests
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from backend.label_studio.editor import SmartTool
from backend.label_studio.labeling_config import EXAMPLE
from bench.cli import CommandParser, image_size, write_results
from bench.plots import COLOURS, STYLE
from bench.serving.annotators import Request, photos, session
from bench.serving.loopback import exit_on_signals, free_port, http_server
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.option_types import positive, positive_float
from skipclick.evaluation.timing import percentiles

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_ANNOTATORS, MAX_CLICKS, MAX_SECONDS = 256, 1_000_000, 3600.0
START_TIMEOUT = 180.0  # seconds for a spawned server to load its model

TOOL = SmartTool.of(EXAMPLE)


@dataclass(frozen=True)
class Target:
    """The server under load, and the photos of its tasks."""

    url: str
    image_urls: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    """(H, W) of each photo in pixels."""
    login: tuple[str, str] | None = None


@dataclass(frozen=True)
class Workload:
    """How many annotators click how fast, and when they stop: after so many clicks or seconds."""

    annotators: int
    clicks: int
    seconds: float
    think: float
    """Mean seconds between an answer and the next click."""
    first_seed: int = 0
    """Of the first annotator's clicks. A server answers clicks that it has seen before from its memory."""


@dataclass(frozen=True)
class Sent:
    """One request and its answer."""

    begin: float
    """Seconds since the start."""
    milliseconds: float
    status: int
    """HTTP status; 0 if there was no answer."""
    first: bool
    """Whether it is the first of its annotator on this photo."""
    num_clicks: int


@dataclass(frozen=True)
class Load:
    """What was measured."""

    annotators: int
    think: float
    seconds: float
    sent: list[Sent]
    cache_hit_rate: float | None
    """Of the features' fastest tier during the measurement; None if nothing was asked of it."""
    peak_bytes: int | None = None
    """The most memory that a spawned server has had, its start included; None if that is not known."""

    def latencies(self, first: bool) -> list[float]:
        """Milliseconds of the answered requests that are, or are not, an annotator's first on a photo."""
        return [sent.milliseconds for sent in self.sent if sent.status == 200 and sent.first == first]

    def second_clicks(self) -> list[float]:
        """Of the answered requests, milliseconds of an object's second click: where zoom-in may need its first crop."""
        return [one.milliseconds for one in self.sent if one.status == 200 and one.num_clicks == 2 and not one.first]

    @property
    def failures(self) -> dict[int, int]:
        """Requests that were not answered with a mask, by HTTP status."""
        return dict(Counter(sent.status for sent in self.sent if sent.status != 200))

    def summary(self) -> dict[str, Any]:
        """Throughput, latency percentiles in milliseconds, failures and hit rate."""
        return {
            "clicks_per_second": sum(sent.status == 200 for sent in self.sent) / self.seconds,
            "first_click_ms": percentiles(self.latencies(first=True)),
            "later_click_ms": percentiles(self.latencies(first=False)),
            "second_click_ms": percentiles(self.second_clicks()),
            "failures": self.failures,
            "cache_hit_rate": self.cache_hit_rate,
            "peak_bytes": self.peak_bytes,
        }

    def lines(self) -> Iterator[str]:
        """The summary in words."""
        summary = self.summary()
        pace = f"thinking {self.think:g} s" if self.think else "in a closed loop"
        rate = summary["clicks_per_second"]
        yield f"{self.annotators} annotators {pace}: {rate:.1f} clicks/s in {self.seconds:.0f} s"
        titles = {
            "first click on a photo": "first_click_ms",
            "later clicks": "later_click_ms",
            "of these, an object's second": "second_click_ms",
        }
        for title, name in titles.items():
            values = ", ".join(f"{percent} {value:.0f}" for percent, value in summary[name].items())
            yield f"{title}, ms: {values or 'none'}"
        hits = self.cache_hit_rate
        yield f"features found in the cache: {'unknown' if hits is None else f'{100 * hits:.1f} %'}"
        if self.peak_bytes is not None:
            yield f"memory of the server, at most: {self.peak_bytes >> 20} MB"
        failures = ", ".join(f"{number} x status {status}" for status, number in self.failures.items())
        yield f"failed requests: {failures or 'none'}"


def predict_body(request: Request, image_url: str, size: tuple[int, int]) -> dict[str, Any]:
    """The /predict body that Label Studio sends for a click on a photo of `size` (H, W)."""
    task = {"id": request.image, "data": {"image": image_url}, "annotations": [], "drafts": [], "predictions": []}
    return TOOL.predict_body(task, size, request.clicks)


def measure(target: Target, workload: Workload, count_hits: bool = True) -> Load:
    """Let the annotators of a workload click on a server until it is done. count_hits: also ask it what it found in its
    cache, which a busy one may refuse to say."""
    sent: list[Sent] = []
    numbers = count(1)
    lock = threading.Lock()
    before = feature_lookups(target.url, target.login) if count_hits else (0.0, 0.0)
    begin = time.perf_counter()

    def work(seed: int, bar: tqdm[Any]) -> None:
        rng = random.Random(-1 - seed)
        seen: set[int] = set()
        with requests.Session() as http:
            http.auth, http.trust_env = target.login, False
            for request in session(workload.first_seed + seed, target.sizes):
                time.sleep(rng.expovariate(1 / workload.think) if workload.think else 0)
                start = time.perf_counter()
                if start - begin > workload.seconds or next(numbers) > workload.clicks:
                    return
                body = predict_body(request, target.image_urls[request.image], target.sizes[request.image])
                status = _status(http, target.url, body)
                now = time.perf_counter()
                with lock:
                    first = request.image not in seen
                    sent.append(Sent(start - begin, 1000 * (now - start), status, first, len(request.clicks)))
                    bar.update()
                seen.add(request.image)

    with tqdm(total=workload.clicks, unit="click", disable=None) as bar:
        workers = [threading.Thread(target=work, args=(seed, bar), daemon=True) for seed in range(workload.annotators)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    elapsed = time.perf_counter() - begin
    after = feature_lookups(target.url, target.login) if count_hits else (0.0, 0.0)
    hits, misses = (now - then for now, then in zip(after, before, strict=True))
    rate = hits / (hits + misses) if hits + misses else None
    return Load(workload.annotators, workload.think, elapsed, sorted(sent, key=lambda one: one.begin), rate)


def _status(http: requests.Session, url: str, body: Mapping[str, Any]) -> int:
    try:
        answer = http.post(f"{url}/predict", json=body, timeout=100)  # as long as Label Studio waits
        return answer.status_code if answer.status_code != 200 or "results" in answer.json() else 0
    except requests.RequestException:
        return 0


def feature_lookups(url: str, login: tuple[str, str] | None) -> tuple[float, float]:
    """Hits and misses of the features' fastest tier so far, from /metrics. Raises `ValueError` without an answer."""
    try:
        answer = requests.get(f"{url}/metrics", auth=login, timeout=10)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise ValueError(f"no metrics from {url}/metrics ({type(error).__name__}); is the server running?") from None
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("cache") == "features"
    }
    return found.get("skipclick_cache_hits_total", 0.0), found.get("skipclick_cache_misses_total", 0.0)


def jpeg(photo: NDArray[np.uint8]) -> bytes:
    """A photo as a camera would store it."""
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def image_server(files: Mapping[str, bytes]) -> Iterator[str]:
    """A server on loopback that holds files by path, whatever the query, in place of Label Studio's; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path.partition("?")[0])
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: Any) -> None:
            pass

    with http_server(Handler) as url:
        yield url


@dataclass(frozen=True)
class Spawned:
    """A server that was started for a measurement."""

    url: str
    process: int

    @property
    def worker(self) -> int:
        """The process that answers, on Linux."""
        return int(Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()[0])

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that the process which answers has had; None if the system does not tell (Linux does)."""
        try:
            status = Path(f"/proc/{self.worker}/status").read_text()
        except OSError:
            return None
        return int(status.partition("VmHWM:")[2].split()[0]) << 10


@contextmanager
def spawned_server(label_studio_url: str, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a `spawned_process`."""
    with spawned_process(label_studio_url, settings) as spawned:
        yield spawned.url


@contextmanager
def spawned_process(label_studio_url: str, settings: Mapping[str, str] | None = None) -> Iterator[Spawned]:
    """A backend of its own on loopback, with the settings of this process's environment and these.

    What it learns, it forgets, unless `settings` names a MODEL_DIR. Raises `ValueError` if it does not become ready.
    """
    port = free_port()
    environment = {"LABEL_STUDIO_URL": label_studio_url, "HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "WARNING"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "backend"]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"MODEL_DIR": folder} | dict(settings or {})
        server = subprocess.Popen(command, cwd=root, env=os.environ | environment, stdout=subprocess.DEVNULL)
        try:
            _wait_until_ready(server, url)
            yield Spawned(url, server.pid)
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ValueError(f"the server ended with status {server.returncode} before it was ready")
        try:
            if requests.get(f"{url}/ready", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise ValueError(f"the server was not ready within {START_TIMEOUT:g} seconds")


def draw(load: Load, path: Path) -> None:
    """Latencies over time and their distribution, as PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        over_time, distribution = figure.subplots(1, 2)
        for title, first, colour in (("later clicks", False, COLOURS[0]), ("first on a photo", True, COLOURS[1])):
            points = [(one.begin, one.milliseconds) for one in load.sent if one.first == first and one.status == 200]
            if points:
                over_time.plot(*zip(*points, strict=True), ".", color=colour, label=title)
                distribution.ecdf(load.latencies(first), color=colour, label=f"{title} ({len(points)})")
        if failed := [(one.begin, one.milliseconds) for one in load.sent if one.status != 200]:
            over_time.plot(*zip(*failed, strict=True), "x", color="black", label="failed")
        over_time.set(xlabel="time, s", ylabel="latency, ms", yscale="log")
        distribution.set(xlabel="latency, ms", ylabel="share of clicks", xscale="log")
        for axes in (over_time, distribution):
            if axes.has_data():
                axes.legend()
        figure.suptitle(f"{load.annotators} annotators, {load.summary()['clicks_per_second']:.1f} clicks/s")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = CommandParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--spawn", action="store_true", help="start a server for the measurement")
    where.add_argument("--url", help="address of a server on this machine")
    parser.add_argument("--annotators", type=positive, default=8, help="(default: 8)")
    parser.add_argument("--clicks", type=positive, default=1000, help="stop after so many requests (default: 1000)")
    parser.add_argument("--seconds", type=positive_float, default=120.0, help="stop after this time (default: 120)")
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds between an answer and the next click")
    parser.add_argument("--images", type=Path, help="folder with photos (default: drawn ones)")
    parser.add_argument("--photos", type=positive, default=20, help="how many (default: 20)")
    parser.add_argument("--size", type=image_size, default="1920x1080", help="of the photos (default: 1920x1080)")
    parser.add_argument("--output", type=Path, default=Path("runs/load"), help="names of the results, without ending")
    options = parser.parse_args(arguments)
    try:
        _check(options)
        pictures = photos(options.images, options.photos, options.size)
        load = _measure(options, [jpeg(picture) for picture in pictures])
    except (ValueError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    print("\n".join(load.lines()))
    facts = {"size": options.size, "photos": options.photos, "summary": load.summary(), **asdict(load)}
    write_results(options.output, facts)
    draw(load, options.output.with_suffix(".png"))
    return 1 if load.failures else 0


def _check(options: argparse.Namespace) -> None:
    if options.url and urlsplit(options.url).hostname not in LOOPBACK:
        raise ValueError(f"--url {options.url} is not on this machine: give {', '.join(LOOPBACK)}")
    if options.annotators > MAX_ANNOTATORS or options.clicks > MAX_CLICKS:
        raise ValueError(f"at most {MAX_ANNOTATORS} --annotators and {MAX_CLICKS} --clicks")
    if options.seconds > MAX_SECONDS or not 0 <= options.think <= MAX_SECONDS:
        raise ValueError(f"--seconds and --think are at most {MAX_SECONDS:g}, and --think is not negative")


def _measure(options: argparse.Namespace, files: Sequence[bytes]) -> Load:
    user, password = os.environ.get("BASIC_AUTH_USER"), os.environ.get("BASIC_AUTH_PASS")
    with ExitStack() as stack:
        if options.spawn:
            paths = [f"/data/upload/1/{place}.jpg" for place in range(len(files))]
            studio = stack.enter_context(image_server(dict(zip(paths, files, strict=True))))
            spawned = stack.enter_context(spawned_process(studio))
            url = spawned.url
        else:
            paths = [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in files]
            url = options.url.rstrip("/")
        login = (user, password) if user and password else None
        target = Target(url, paths, [options.size] * len(files), login)
        load = measure(target, Workload(options.annotators, options.clicks, options.seconds, options.think))
        return replace(load, peak_bytes=spawned.peak_bytes) if options.spawn else load


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
