"""Stub replicas behind the real HAProxy, and annotators who click on them: all is real but the accelerators."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import aiohttp
import orjson
import requests

from bench.scaling.balancer import dns, haproxy
from bench.scaling.fleet_simulation import Pace, Served, Times
from bench.scaling.report import WARM_UP, FleetFigures, fleet_figures
from bench.scaling.stub_replica import ENCODED
from bench.serving.annotators import Request
from bench.serving.load import predict_body
from bench.serving.loopback import free_port, local_session
from skipclick import Click
from skipclick.evaluation.timing import percentiles

START_TIMEOUT = 300.0  # seconds
BODY_BYTES = 20_000  # of a click: those of tasks with a few masks


class Stub:
    """A stub replica in a process of its own."""

    def __init__(self, host: str, port: int, times: Times) -> None:
        self.url = f"http://{host}:{port}"
        program = Path(__file__).with_name("stub_replica.py")
        numbers = ["--port", str(port), "--encode", str(times.encode), "--click", str(times.click)]
        self._command = [sys.executable, str(program), "--host", host, *numbers]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with empty caches, without waiting for it."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def await_ready(self) -> None:
        """Wait until it answers. Raises `TimeoutError`."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            try:
                if local_session().get(f"{self.url}/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise TimeoutError(f"the stub replica {self.url} does not answer")

    def kill(self) -> None:
        """End it as a failing machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def stub_fleet(times: Times, replicas: int) -> Iterator[tuple[str, list[Stub]]]:
    """Stub replicas behind HAProxy: its address and the replicas."""
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


def click_body(task: int, clicks: int) -> bytes:
    """A click as Label Studio sends it, together with the masks that the task already has."""
    body = predict_body(Request(task, (Click(1, 1),) * clicks), f"/data/upload/1/{task}.jpg", (1080, 1920))
    body["tasks"][0]["drafts"] = [{"result": [{"value": {"format": "rle", "rle": [255] * (BODY_BYTES // 4)}}]}]
    return orjson.dumps(body)


async def play(
    url: str, annotators: int, seconds: float, pace: Pace, events: Sequence[tuple[float, Callable[[], None]]] = ()
) -> tuple[list[Served], list[float]]:
    """Annotators at work through HAProxy: the answered clicks, and when the failed ones were sent.

    events: what else happens, and after how many seconds; it must not take long.
    """
    tasks, served, failed = count(1), list[Served](), list[float]()
    # Label Studio opens a connection for each request
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=100)
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        first = [next(tasks) for _ in range(annotators)]
        for task in first:
            async with http.post(f"{url}/warm", data=click_body(task, 1)) as answer:
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
                    async with http.post(f"{url}/predict", data=click_body(task, clicks)) as answer:
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


def measure(times: Times, annotators: int, replicas: int, seconds: float, pace: Pace) -> FleetFigures:
    """A run without incidents."""
    with stub_fleet(times, replicas) as (url, _):
        served, failed = asyncio.run(play(url, annotators, seconds, pace))
    return fleet_figures(annotators, replicas, served, WARM_UP * seconds, seconds, len(failed))


def measure_failure(
    times: Times, annotators: int, replicas: int, seconds: float, pace: Pace
) -> tuple[list[Served], list[float]]:
    """A run in which one replica is killed after a third of the time and returns after two thirds, its caches empty."""
    with stub_fleet(times, replicas) as (url, stubs):
        events = [(seconds / 3, stubs[0].kill), (2 * seconds / 3, stubs[0].start)]
        return asyncio.run(play(url, annotators, seconds, pace, events))


def measure_overhead(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a request to a replica that takes no time: directly and through HAProxy, in turns."""
    found: dict[str, list[float]] = {"direct": [], "through HAProxy": []}
    with stub_fleet(Times("nothing", 0.0, 0.0, ""), 1) as (url, stubs):
        body = click_body(1, 1)
        sessions = {name: (local_session(), where) for name, where in zip(found, (stubs[0].url, url), strict=True)}
        for number in range(rounds + 20):
            for name, (session, where) in sessions.items():
                begin = time.perf_counter()
                session.post(f"{where}/predict", data=body, timeout=10).raise_for_status()
                if number >= 20:  # the first ones open connections
                    found[name].append(1000 * (time.perf_counter() - begin))
    return {name: percentiles(values) for name, values in found.items()}
