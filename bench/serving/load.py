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
import json
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
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from bench.serving.annotators import Request, photos, session
from bench.serving.loopback import exit_on_signals, free_port
from skipclick.atomic_io import replaced_atomically
from skipclick.evaluation.versions import software_versions

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_ANNOTATORS, MAX_CLICKS, MAX_SECONDS = 256, 1_000_000, 3600.0
START_TIMEOUT = 180.0  # seconds for a spawned server to load its model
PERCENTILES = (50, 90, 95, 99)

LABEL_CONFIG = """\
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>
</View>"""


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

    def latencies(self, first: bool) -> list[float]:
        """Milliseconds of the answered requests that are, or are not, an annotator's first on a photo."""
        return [sent.milliseconds for sent in self.sent if sent.status == 200 and sent.first == first]

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
            "failures": self.failures,
            "cache_hit_rate": self.cache_hit_rate,
        }

    def lines(self) -> Iterator[str]:
        """The summary in words."""
        summary = self.summary()
        pace = f"thinking {self.think:g} s" if self.think else "in a closed loop"
        rate = summary["clicks_per_second"]
        yield f"{self.annotators} annotators {pace}: {rate:.1f} clicks/s in {self.seconds:.0f} s"
        for title, name in (("first click on a photo", "first_click_ms"), ("later clicks", "later_click_ms")):
            values = ", ".join(f"{percent} {value:.0f}" for percent, value in summary[name].items())
            yield f"{title}, ms: {values or 'none'}"
        hits = self.cache_hit_rate
        yield f"features found in the cache: {'unknown' if hits is None else f'{100 * hits:.1f} %'}"
        failures = ", ".join(f"{number} x status {status}" for status, number in self.failures.items())
        yield f"failed requests: {failures or 'none'}"


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By name, such as "p95"; empty without values."""
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES} if values else {}


def predict_body(request: Request, image_url: str, size: tuple[int, int]) -> dict[str, Any]:
    """The /predict body that Label Studio sends for a click on a photo of `size` (H, W)."""
    height, width = size
    items = [
        {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": 100 * (click.x + 0.5) / width,
                "y": 100 * (click.y + 0.5) / height,
                "width": 0.2,
                "labels": ["Object"],
                "keypointlabels": ["Object"],
            },
            "is_positive": click.positive,
            "id": f"{place}-{click.x}-{click.y}",
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }
        for place, click in enumerate(request.clicks)
    ]
    task = {"id": request.image, "data": {"image": image_url}, "annotations": [], "drafts": [], "predictions": []}
    return {
        "tasks": [task],
        "project": "1.1",
        "label_config": LABEL_CONFIG,
        "params": {"login": None, "password": None, "context": {"result": items}},
    }


def measure(
    url: str,
    image_urls: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    annotators: int,
    clicks: int,
    seconds: float,
    think: float,
    login: tuple[str, str] | None = None,
    first_seed: int = 0,
) -> Load:
    """Play a session of `annotators` until `clicks` requests or `seconds` are over.

    image_urls, sizes: of the photos; sizes are (H, W). think: mean seconds between answer and next click.
    first_seed: of the first annotator's clicks. A server that was asked the same before answers from its memory.
    """
    sent: list[Sent] = []
    numbers = count(1)
    lock = threading.Lock()
    before = feature_lookups(url, login)
    begin = time.perf_counter()

    def work(seed: int, bar: tqdm[Any]) -> None:
        rng = random.Random(-1 - seed)
        seen: set[int] = set()
        with requests.Session() as http:
            http.auth, http.trust_env = login, False
            for request in session(first_seed + seed, sizes):
                time.sleep(rng.expovariate(1 / think) if think else 0)
                start = time.perf_counter()
                if start - begin > seconds or next(numbers) > clicks:
                    return
                body = predict_body(request, image_urls[request.image], sizes[request.image])
                status = _status(http, url, body)
                now = time.perf_counter()
                with lock:
                    first = request.image not in seen
                    sent.append(Sent(start - begin, 1000 * (now - start), status, first, len(request.clicks)))
                    bar.update()
                seen.add(request.image)

    with tqdm(total=clicks, unit="click", disable=None) as bar:
        workers = [threading.Thread(target=work, args=(seed, bar), daemon=True) for seed in range(annotators)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    elapsed = time.perf_counter() - begin
    hits, misses = (now - then for now, then in zip(feature_lookups(url, login), before, strict=True))
    rate = hits / (hits + misses) if hits + misses else None
    return Load(annotators, think, elapsed, sorted(sent, key=lambda one: one.begin), rate)


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def spawned_server(label_studio_url: str, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """A backend of its own on loopback, with the settings of this process's environment and these; its address.

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
            yield url
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    over_time, distribution = figure.subplots(1, 2)
    for title, first, colour in (("later clicks", False, "#0072B2"), ("first on a photo", True, "#D55E00")):
        chosen = [sent for sent in load.sent if sent.first == first and sent.status == 200]
        values = sorted(sent.milliseconds for sent in chosen)
        if not values:
            continue
        over_time.scatter(
            [sent.begin for sent in chosen], [sent.milliseconds for sent in chosen], s=6, c=colour, label=title
        )
        share = np.arange(1, len(values) + 1) / len(values)
        distribution.step(values, share, where="post", color=colour, label=f"{title} ({len(values)})")
    failed = [sent for sent in load.sent if sent.status != 200]
    if failed:
        over_time.scatter(
            [sent.begin for sent in failed],
            [sent.milliseconds for sent in failed],
            marker="x",
            c="black",
            label="failed",
        )
    over_time.set(xlabel="time, s", ylabel="latency, ms", yscale="log")
    distribution.set(xlabel="latency, ms", ylabel="share of clicks", xscale="log", ylim=(0, 1))
    for axes in (over_time, distribution):
        axes.grid(color="#DDDDDD", linewidth=0.5)
        axes.set_axisbelow(True)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    rate = load.summary()["clicks_per_second"]
    figure.suptitle(f"{load.annotators} annotators, {rate:.1f} clicks/s", fontsize=10)
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--spawn", action="store_true", help="start a server for the measurement")
    where.add_argument("--url", help="address of a server on this machine")
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--clicks", type=int, default=1000, help="stop after so many requests (default: 1000)")
    parser.add_argument("--seconds", type=float, default=120.0, help="stop after this time (default: 120)")
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds between answer and next click")
    parser.add_argument("--images", type=Path, help="folder with photos (default: drawn ones)")
    parser.add_argument("--photos", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--size", default="1920x1080", help="width x height that photos are brought to")
    parser.add_argument("--output", type=Path, default=Path("runs/load"), help="names of the results, without ending")
    options = parser.parse_args(arguments)
    try:
        _check(options)
        width, height = (int(side) for side in options.size.split("x"))
        pictures = photos(options.images, options.photos, (height, width))
        load = _measure(options, [jpeg(picture) for picture in pictures], (height, width))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(load.lines()))
    facts = {"command": sys.argv, "versions": software_versions(), "size": options.size, "photos": options.photos}
    with replaced_atomically(options.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**facts, "summary": load.summary(), **asdict(load)}, indent=1))
    draw(load, options.output.with_suffix(".png"))
    return 1 if load.failures else 0


def _check(options: argparse.Namespace) -> None:
    if options.url and urlsplit(options.url).hostname not in LOOPBACK:
        raise ValueError(f"--url {options.url} is not this machine; load is put on {', '.join(LOOPBACK)} only")
    if not (1 <= options.annotators <= MAX_ANNOTATORS and 1 <= options.clicks <= MAX_CLICKS and options.photos >= 1):
        raise ValueError(f"there are 1 to {MAX_ANNOTATORS} annotators, 1 to {MAX_CLICKS} clicks, at least 1 photo")
    if not (0 < options.seconds <= MAX_SECONDS and 0 <= options.think <= MAX_SECONDS):
        raise ValueError(f"--seconds and --think are at most {MAX_SECONDS:g}, and --seconds is more than 0")
    sides = options.size.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= int(side) <= 20_000 for side in sides):
        raise ValueError(f"--size {options.size} is not a size such as 1920x1080")


def _measure(options: argparse.Namespace, files: Sequence[bytes], size: tuple[int, int]) -> Load:
    user, password = os.environ.get("BASIC_AUTH_USER"), os.environ.get("BASIC_AUTH_PASS")
    with ExitStack() as stack:
        if options.spawn:
            paths = [f"/data/upload/1/{place}.jpg" for place in range(len(files))]
            studio = stack.enter_context(image_server(dict(zip(paths, files, strict=True))))
            url = stack.enter_context(spawned_server(studio))
        else:
            paths = [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in files]
            url = options.url.rstrip("/")
        return measure(
            url,
            paths,
            [size] * len(files),
            annotators=options.annotators,
            clicks=options.clicks,
            seconds=options.seconds,
            think=options.think,
            login=(user, password) if user and password else None,
        )


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
