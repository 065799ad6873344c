"""How many replicas a team needs: behind the real HAProxy with simulated accelerators, and as a pure simulation.

    python bench/scaling/scale.py measure                    1,000 annotators on 1 to 8 replicas, two minutes each
    python bench/scaling/scale.py failure --replicas 4       one is killed after a third and comes back cold after two
    python bench/scaling/scale.py overhead                   what HAProxy adds to a click
    python bench/scaling/scale.py simulate                   events in time only: 100 to 100,000 annotators
    python bench/scaling/scale.py simulate --times vit-b-cpu --later 500 --first 2000

--times says how long a replica's device is busy: a name of `TIMES`, or a row of a result of bench/serving/latency.py as
FILE:MODEL:RESOLUTION:DEVICE:DTYPE, such as runs/latency.json:vit-b:448:cuda:bfloat16. Each writes OUTPUT.json, .md and,
but for `overhead`, .png. Needs Debian's haproxy, except for `simulate`. Exit status 2 for options that cannot be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import requests

from bench.scaling.balancer import dns, haproxy
from bench.scaling.fleet_simulation import Pace, Plan, Served, Times, simulate
from bench.scaling.stub_replica import ENCODED
from bench.serving.annotators import Request
from bench.serving.load import predict_body
from bench.serving.loopback import exit_on_signals, free_port, local_session
from skipclick import Click
from skipclick.atomic_io import replaced_atomically
from skipclick.evaluation.versions import software_versions

TIMES = {
    "gpu": Times("GPU, assumed", 0.030, 0.005, "assumed, not measured: no GPU was at hand"),
    "tiny-cpu": Times("skipclick-tiny, two cores", 0.0275, 0.0145, "docs/results/latency.md: 320 pixels, float32"),
    "vit-b-cpu": Times("ViT-B, two cores", 0.380, 0.165, "docs/results/latency.md: 448 pixels, bfloat16"),
}
START_TIMEOUT = 60.0
WARM_UP = 0.1  # share of a run that is not counted
BODY_BYTES = 20_000  # of a click: those of tasks with a few masks
MAX_ANNOTATORS = 1_000_000


@dataclass(frozen=True)
class Row:
    """One run in figures; milliseconds."""

    annotators: int
    replicas: int
    clicks_per_second: float
    later: dict[str, float]
    """Percentiles of clicks on photos that the replica knew."""
    first: dict[str, float]
    """Of those for which it had to encode the photo."""
    failed: int


@dataclass(frozen=True)
class Need:
    """How many replicas are enough for a team, and what happens when one dies where there is one more."""

    enough: Row
    after_a_death: Row
    """With one replica more, from the moment on at which one of them dies; it is back later, knowing nothing."""


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds of seconds, by name; empty without values."""
    return {f"p{p}": 1000 * float(np.percentile(values, p)) for p in (50, 95, 99)} if values else {}


def row_of(
    annotators: int, replicas: int, served: Sequence[Served], since: float, until: float, failed: int = 0
) -> Row:
    """What was sent from `since` on, in seconds of the run, which ended at `until`."""
    counted = [one for one in served if one.begin >= since]
    return Row(
        annotators,
        replicas,
        len(counted) / (until - since),
        percentiles([one.seconds for one in counted if not one.first]),
        percentiles([one.seconds for one in counted if one.first]),
        failed,
    )


def times_of(text: str) -> Times:
    """The times that `--times` names. Raises `ValueError`."""
    if text in TIMES:
        return TIMES[text]
    file, *wanted = text.rsplit(":", 4)
    if len(wanted) != 4:
        raise ValueError(f"--times {text} is none of {', '.join(TIMES)}, nor FILE:MODEL:RESOLUTION:DEVICE:DTYPE")
    totals = {
        row["state"]: row["total"]["median"] / 1000
        for row in json.loads(Path(file).read_text())["stages"]
        if [str(row["setting"][name]) for name in ("model", "resolution", "device", "dtype")] == wanted
    }
    if totals.keys() != {"warm", "cold"}:
        raise ValueError(f"{file} has no stages of {', '.join(wanted)}; measure them with bench/serving/latency.py")
    return Times(" ".join(wanted), totals["cold"] - totals["warm"], totals["warm"], f"measured, {Path(file).name}")


# ---- HTTP and HAProxy are real, accelerators are not


class Stub:
    """A stub replica in a process of its own."""

    def __init__(self, host: str, port: int, times: Times) -> None:
        self._url = f"http://{host}:{port}"
        program = Path(__file__).with_name("stub_replica.py")
        numbers = ["--port", str(port), "--encode", str(times.encode), "--click", str(times.click)]
        self._command = [sys.executable, str(program), "--host", host, *numbers]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to start it, with no photo known."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def await_ready(self) -> None:
        """Wait until it answers. Raises `TimeoutError`."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            try:
                if local_session().get(f"{self._url}/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise TimeoutError(f"the stub replica {self._url} does not answer")

    def kill(self) -> None:
        """As when its machine is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def stub_fleet(times: Times, replicas: int) -> Iterator[tuple[str, list[Stub]]]:
    """Stub replicas behind HAProxy; its address, and they."""
    port, hosts = free_port(), [f"127.0.1.{number}" for number in range(1, replicas + 1)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stubs = [Stub(host, port, times) for host in hosts]
        for stub in stubs:
            stack.callback(stub.kill)
            stub.start()
        for stub in stubs:
            stub.await_ready()
        names = stack.enter_context(dns({"replica": hosts, "trainer": hosts[:1]}))
        balancer = stack.enter_context(haproxy(names, port, folder / "haproxy.log"))
        balancer.await_replicas(replicas)
        yield balancer.url, stubs


def body_of(task: int, clicks: int) -> bytes:
    """A click as Label Studio sends it, with the masks that the task has already."""
    body = predict_body(Request(task, (Click(1, 1),) * clicks), f"/data/upload/1/{task}.jpg", (1080, 1920))
    body["tasks"][0]["drafts"] = [{"result": [{"value": {"format": "rle", "rle": [255] * (BODY_BYTES // 4)}}]}]
    return orjson.dumps(body)


async def play(
    url: str, annotators: int, seconds: float, pace: Pace, events: Sequence[tuple[float, Callable[[], None]]] = ()
) -> tuple[list[Served], list[float]]:
    """A team at work through HAProxy: the answered clicks, and when the failed ones were sent.

    events: what else happens, by the time in seconds; it must not take long.
    """
    tasks, served, failed = count(1), list[Served](), list[float]()
    # Label Studio opens a connection for each request
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=100)
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        first = [next(tasks) for _ in range(annotators)]
        for task in first:
            async with http.post(f"{url}/warm", data=body_of(task, 1)) as answer:
                await answer.read()
        start = loop.time()

        async def annotate(seed: int, task: int) -> None:
            rng = random.Random(seed)
            clicks, leaves_at = 0, start + rng.uniform(0, pace.photo)
            while True:
                pause = rng.expovariate(1 / pace.think)
                if loop.time() + pause - start > seconds:
                    return
                await asyncio.sleep(pause)
                begin = loop.time()
                if begin >= leaves_at:
                    task, clicks, leaves_at = next(tasks), 0, begin + pace.photo
                clicks = clicks % pace.clicks_per_object + 1
                try:
                    async with http.post(f"{url}/predict", data=body_of(task, clicks)) as answer:
                        await answer.read()
                        answer.raise_for_status()
                        is_first = answer.headers[ENCODED] == "1"
                        served.append(Served(begin - start, loop.time() - begin, is_first))
                except (aiohttp.ClientError, TimeoutError):
                    failed.append(begin - start)

        async def happen(moment: float, event: Callable[[], None]) -> None:
            await asyncio.sleep(moment)
            event()

        await asyncio.gather(
            *(annotate(seed, task) for seed, task in enumerate(first)), *(happen(*event) for event in events)
        )
    return served, failed


def measure(times: Times, annotators: int, replicas: int, seconds: float, pace: Pace) -> Row:
    """A run in which nothing happens."""
    with stub_fleet(times, replicas) as (url, _):
        served, failed = asyncio.run(play(url, annotators, seconds, pace))
    return row_of(annotators, replicas, served, WARM_UP * seconds, seconds, len(failed))


def measure_failure(
    times: Times, annotators: int, replicas: int, seconds: float, pace: Pace
) -> tuple[list[Served], list[float]]:
    """A run in which one replica is killed after a third of the time and is back, knowing nothing, after two thirds."""
    with stub_fleet(times, replicas) as (url, stubs):
        events = [(seconds / 3, stubs[0].kill), (2 * seconds / 3, stubs[0].start)]
        return asyncio.run(play(url, annotators, seconds, pace, events))


def measure_overhead(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a request, straight to a replica that needs no time and through HAProxy, by turns."""
    found: dict[str, list[float]] = {"straight": [], "through HAProxy": []}
    with stub_fleet(Times("nothing", 0.0, 0.0, ""), 1) as (url, stubs):
        body = body_of(1, 1)
        sessions = {name: (local_session(), where) for name, where in zip(found, (stubs[0]._url, url), strict=True)}
        for number in range(rounds + 20):
            for name, (session, where) in sessions.items():
                begin = time.perf_counter()
                session.post(f"{where}/predict", data=body, timeout=10).raise_for_status()
                if number >= 20:  # the first ones open connections
                    found[name].append(time.perf_counter() - begin)
    return {name: percentiles(values) for name, values in found.items()}


# ---- nothing is real


def simulated(times: Times, annotators: int, replicas: int, seconds: float, pace: Pace, one_dies: bool) -> Row:
    """A simulated run. Where one dies, after a third of the time, it is back after two thirds, knowing nothing, and the
    run is counted from its death on."""
    plan = Plan(annotators, replicas, seconds, pace)
    if not one_dies:
        return row_of(annotators, replicas, simulate(times, plan), WARM_UP * seconds, seconds)
    plan = replace(plan, dies_at=seconds / 3, returns_at=2 * seconds / 3)
    return row_of(annotators, replicas, simulate(times, plan), seconds / 3, seconds)


def need(times: Times, annotators: int, seconds: float, pace: Pace, later_ms: float, first_ms: float) -> Need:
    """The fewest replicas at which 95 % of the clicks are answered in time, by bisection.

    Raises `ValueError` where no number is enough.
    """
    if 1000 * times.click > later_ms or 1000 * (times.encode + times.click) > first_ms:
        raise ValueError(f"{times.name} alone takes longer than --later {later_ms:g} or --first {first_ms:g} allow")

    @cache
    def alive(replicas: int) -> Row:
        return simulated(times, annotators, replicas, seconds, pace, one_dies=False)

    def is_enough(replicas: int) -> bool:
        row = alive(replicas)
        return row.later.get("p95", 0.0) <= later_ms and row.first.get("p95", 0.0) <= first_ms

    busy = annotators * (
        times.click / pace.think + times.encode / pace.photo
    )  # devices that would be busy without rest
    low = high = max(1, math.floor(busy))
    while not is_enough(high):
        low, high = high + 1, high + max(1, high // 8)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return Need(alive(high), simulated(times, annotators, high + 1, seconds, pace, one_dies=True))


# ---- results


def figures(row: Row) -> str:
    """The cells of a row after its first ones."""
    cells = [f"{part[p]:.0f}" if p in part else "" for part in (row.later, row.first) for p in ("p50", "p95", "p99")]
    return " | ".join([f"{row.clicks_per_second:.0f}", *cells, str(row.failed)])


HEAD = "clicks/s | later clicks, ms: p50 | p95 | p99 | first on a photo: p50 | p95 | p99 | failed"


def measured_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [f"| annotators | replicas | {HEAD} |", "|" + "---:|" * 10]
    return "\n".join([*lines, *(f"| {row.annotators:,} | {row.replicas} | {figures(row)} |" for row in rows)])


def need_table(needs: Sequence[Need]) -> str:
    """Markdown."""
    lines = [
        "| annotators | clicks/s | replicas | later clicks, ms: p50 | p95 | first on a photo: p50 | p95 | "
        "with one to spare | later clicks after a death: p50 | p95 | first: p50 | p95 |",
        "|" + "---:|" * 12,
    ]
    for one in needs:
        enough, death = (
            " | ".join(f"{part[p]:.0f}" if p in part else "" for part in (row.later, row.first) for p in ("p50", "p95"))
            for row in (one.enough, one.after_a_death)
        )
        head = f"{one.enough.annotators:,} | {one.enough.clicks_per_second:,.0f} | **{one.enough.replicas}**"
        lines.append(f"| {head} | {enough} | **{one.after_a_death.replicas}** | {death} |")
    return "\n".join(lines)


def failure_table(served: Sequence[Served], failed: Sequence[float], seconds: float, options: Any) -> str:
    """Markdown: before, after the death, after the return."""
    names = ("all alive", "one killed", "back, cold")
    lines = [f"| | {HEAD} |", "|---|" + "---:|" * 8]
    for place, name in enumerate(names):
        since, until = place * seconds / 3, (place + 1) * seconds / 3
        part = [one for one in served if since <= one.begin < until]
        lost = sum(since <= moment < until for moment in failed)
        lines.append(
            f"| {name} | {figures(row_of(options.annotators, options.replicas[0], part, since, until, lost))} |"
        )
    return "\n".join(lines)


def draw_measured(rows: Sequence[Row], path: Path, title: str) -> None:
    """Latency against the number of replicas, as PNG."""
    with _figure(path, title) as axes:
        from bench.plots import COLOURS

        for colour, (name, part) in zip(
            COLOURS, (("later clicks", "later"), ("first on a photo", "first")), strict=False
        ):
            for percent, line in (("p50", "-"), ("p95", "--"), ("p99", ":")):
                points = [(row.replicas, getattr(row, part).get(percent)) for row in rows]
                points = [(x, y) for x, y in points if y is not None]
                axes.plot(*zip(*points, strict=True), line, color=colour, marker="o", label=f"{name}, {percent}")
        axes.set(xlabel="replicas", ylabel="latency, ms", yscale="log", xticks=[row.replicas for row in rows])
        _plain_numbers(axes.yaxis)


def draw_failure(served: Sequence[Served], failed: Sequence[float], seconds: float, path: Path, title: str) -> None:
    """Each click over time, as PNG."""
    with _figure(path, title) as axes:
        from bench.plots import COLOURS

        for first, colour, name in ((False, COLOURS[0], "later clicks"), (True, COLOURS[1], "photo encoded for it")):
            points = [(one.begin, 1000 * one.seconds) for one in served if one.first == first]
            if points:
                axes.plot(*zip(*points, strict=True), ".", color=colour, markersize=1.5, label=name)
        if failed:
            axes.plot(failed, [1.0] * len(failed), "x", color="black", label="failed")
        for moment, what in ((seconds / 3, "killed"), (2 * seconds / 3, "back, cold")):
            axes.axvline(moment, color="black", linewidth=0.8)
            axes.annotate(
                what, (moment, 1), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points"
            )
        axes.set(xlabel="time, s", ylabel="latency, ms", yscale="log")
        _plain_numbers(axes.yaxis)


def draw_needs(needs: Sequence[Need], path: Path, title: str) -> None:
    """Replicas against annotators, as PNG."""
    with _figure(path, title) as axes:
        from bench.plots import COLOURS

        people = [one.enough.annotators for one in needs]
        axes.plot(people, [one.enough.replicas for one in needs], "o-", color=COLOURS[0], label="enough replicas")
        axes.set(xlabel="annotators", ylabel="replicas", xscale="log", yscale="log")
        _plain_numbers(axes.xaxis)
        _plain_numbers(axes.yaxis)


@contextmanager
def _figure(path: Path, title: str) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from bench.plots import PAGE_WIDTH, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        figure.legend(fontsize=7, loc="outside right upper", handlelength=3)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_atomically(path) as temporary:
            figure.savefig(temporary, format="png")


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 20 and 1,000 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def write(output: Path, text: str, facts: dict[str, Any]) -> None:
    """OUTPUT.md and OUTPUT.json."""
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": sys.argv, "versions": software_versions()} | facts
    for ending, content in ((".md", text + "\n"), (".json", json.dumps(facts, indent=1))):
        with replaced_atomically(output.with_suffix(ending)) as temporary:
            temporary.write_text(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(arguments)
    try:
        text = _run(options)
    except (ValueError, OSError) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _run(options: argparse.Namespace) -> str:
    """Do what was asked; the Markdown."""
    output: Path = options.output or Path("runs") / f"scale-{options.what}"
    if options.what == "overhead":
        added = measure_overhead(options.rounds)
        text = "| | p50, ms | p95 | p99 |\n|---|---:|---:|---:|\n" + "\n".join(
            f"| {name} | " + " | ".join(f"{value:.2f}" for value in part.values()) + " |"
            for name, part in added.items()
        )
        write(output, text, {"overhead": added})
        return text
    times, pace, seconds = times_of(options.times), Pace(), options.seconds
    if not all(1 <= one <= MAX_ANNOTATORS for one in options.annotators) or not 1 <= seconds <= 3600:
        raise ValueError(f"there are 1 to {MAX_ANNOTATORS:,} annotators and 1 to 3600 seconds")
    facts: dict[str, Any] = {"times": asdict(times), "pace": asdict(pace), "seconds": seconds}
    title = f"{times.name}: encode {1000 * times.encode:g} ms, click {1000 * times.click:g} ms"
    if options.what == "simulate":
        needs = [need(times, people, seconds, pace, options.later, options.first) for people in options.annotators]
        draw_needs(needs, output.with_suffix(".png"), title)
        text, facts = need_table(needs), facts | {"needs": [asdict(one) for one in needs]}
    elif options.what == "measure":
        rows = [
            measure(times, people, replicas, seconds, pace)
            for people in options.annotators
            for replicas in options.replicas
        ]
        draw_measured(rows, output.with_suffix(".png"), f"{options.annotators[0]:,} annotators; {title}")
        text, facts = measured_table(rows), facts | {"rows": [asdict(row) for row in rows]}
    else:
        (people,), (replicas,) = options.annotators, options.replicas
        served, failed = measure_failure(times, people, replicas, seconds, pace)
        draw_failure(
            served, failed, seconds, output.with_suffix(".png"), f"{people:,} annotators, {replicas} replicas; {title}"
        )
        options.annotators = people
        text = failure_table(served, failed, seconds, options)
        facts |= {
            "annotators": people,
            "replicas": replicas,
            "failed": failed,
            "served": [asdict(one) for one in served],
        }
    text = f"{title} ({times.source}).\n\n{text}"
    write(output, text, facts)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, people, replicas, seconds in (
        ("measure", [1000], [1, 2, 3, 4, 6, 8], 120.0),
        ("failure", [1000], [4], 180.0),
        ("simulate", [100, 1000, 10_000, 100_000], None, 45.0),
    ):
        command = commands.add_parser(name)
        command.add_argument("--annotators", type=int, nargs="+", default=people)
        command.add_argument("--seconds", type=float, default=seconds, help=f"of a run (default: {seconds:g})")
        command.add_argument(
            "--times", default="gpu", help=f"{', '.join(TIMES)}, or FILE:MODEL:RESOLUTION:DEVICE:DTYPE"
        )
        if replicas is not None:
            command.add_argument("--replicas", type=int, nargs="+", default=replicas)
        else:
            command.add_argument("--later", type=float, default=100.0, help="ms for 95 %% of clicks (default: 100)")
            command.add_argument("--first", type=float, default=500.0, help="ms for 95 %% of first ones (default: 500)")
        command.add_argument("--output", type=Path, help="names of the results, without ending")
    command = commands.add_parser("overhead")
    command.add_argument("--rounds", type=int, default=2000)
    command.add_argument("--output", type=Path, help="names of the results, without ending")
    return parser


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
