"""A fleet on this machine: real replicas on addresses of 127/8 behind HAProxy, and the trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from bench.scaling.balancer import Balancer, Names, dns, haproxy
from bench.serving.annotators import Request, drawn_photo
from bench.serving.load import image_server, jpeg, predict_body
from bench.serving.loopback import free_port, local_session
from skipclick import Click

ROOT = Path(__file__).resolve().parents[2]
SIZE = 240, 320  # of the photos, (H, W)
PATIENCE = 900.0  # seconds for a replica to load its model on a busy machine


@dataclass(frozen=True)
class Answer:
    """What came back for a request through HAProxy."""

    status: int
    replica: str
    """As HAProxy calls it; empty where none answered."""
    body: Any


@dataclass
class Replica:
    """One real backend at an address of its own; it can be ended and started again."""

    host: str
    port: int
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        own = {"HOST": self.host, "PORT": str(self.port), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "backend"],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.log.parent)} | own | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # gunicorn's main process and its worker, which end together
            )

    def await_ready(self) -> None:
        """Wait until it may be sent clicks."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"a replica ended: {self.log.read_text()[-2000:]}"
            try:
                if local_session().get(f"{self.url}/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        raise TimeoutError(f"{self.url} is not ready: {self.log.read_text()[-2000:]}")

    def stop(self) -> int:
        """SIGTERM to its main process, as `docker stop` sends it, and its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(300)

    def kill(self) -> None:
        """kill -9 to all of it at once, as when the machine is gone."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Whatever it is at."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = local_session().get(f"{self.url}/metrics", timeout=30).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def encodes(self) -> int:
        """Photos that it looked at since it was started."""
        return int(self.metric("skipclick_encodes_total", kind="photo"))


@dataclass
class Fleet:
    """Replicas, the trainer, and the one address before them."""

    balancer: Balancer
    names: Names
    replicas: list[Replica]
    trainer: Replica
    photos: int
    _tasks: int = field(default=0)

    @property
    def url(self) -> str:
        return self.balancer.url

    def tasks(self, count: int) -> range:
        """Ids of tasks that no other test has."""
        self._tasks += count
        assert self._tasks <= self.photos
        return range(self._tasks - count + 1, self._tasks + 1)

    def encodes(self) -> int:
        """Photos that the replicas that live looked at."""
        return sum(replica.encodes() for replica in self.replicas)


def clicks_of(task: int, count: int) -> tuple[Click, ...]:
    """The first clicks on the object of a task; the same for everybody."""
    height, width = SIZE
    places = [((task * 37 + 61 * n) % width, (task * 23 + 47 * n) % height) for n in range(count)]
    return tuple(Click(x, y, positive=n % 3 != 2) for n, (x, y) in enumerate(places))


def body_of(task: int, count: int, annotations: Sequence[Any] = ()) -> dict[str, Any]:
    """What Label Studio sends for click number `count` on a task, which may carry masks already."""
    body = predict_body(Request(task, clicks_of(task, count)), f"/data/upload/1/{task}.jpg", SIZE)
    body["tasks"][0]["annotations"] = list(annotations)
    return body


def post(url: str, body: Any, session: requests.Session | None = None) -> Answer:
    """Send a request to /predict; like Label Studio, over a connection of its own unless a session is given."""
    try:
        got = (session or local_session()).post(f"{url}/predict", json=body, timeout=100)
    except requests.RequestException as error:
        return Answer(0, "", repr(error))
    is_json = got.headers.get("Content-Type", "").startswith("application/json")
    return Answer(got.status_code, got.headers.get("X-Served-By", ""), got.json() if is_json else got.text)


def click(url: str, task: int, count: int, session: requests.Session | None = None) -> Answer:
    """Click number `count` on a task."""
    return post(url, body_of(task, count), session)


def mask(answer: Answer) -> Any:
    """The mask of an answer, as RLE; None where it is empty."""
    regions = answer.body["results"][0]["result"]
    return regions[0]["value"]["rle"] if regions else None


def version(answer: Answer) -> str:
    """Who answered: the name of the weights."""
    name: str = answer.body["results"][0]["model_version"]
    return name


def served_by(answers: Mapping[int, Sequence[Answer]]) -> dict[int, set[str]]:
    """The replicas that answered each task."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for task, given in answers.items():
        found[task] |= {answer.replica for answer in given}
    return dict(found)


@contextmanager
def fleet(folder: Path, count: int, photos: int) -> Iterator[Fleet]:
    """`count` replicas behind HAProxy, a trainer beside them, and a Label Studio with `photos` different addresses."""
    port, photo = free_port(), jpeg(drawn_photo(0, SIZE))
    hosts = [f"127.0.1.{number}" for number in range(1, count + 1)]
    with ExitStack() as stack:
        # of the same pixels, but each a file of its own
        files = {f"/data/upload/1/{task}.jpg": photo + str(task).encode() for task in range(1, photos + 1)}
        settings = {
            "LABEL_STUDIO_URL": stack.enter_context(image_server(files)),
            "RESOLUTION": "128",
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "RUNTIME": os.environ["RUNTIME"],  # see conftest.py
            "MODEL_DIR": str(folder / "models"),
            "SHUTDOWN_TIMEOUT": "30",
        }
        made = [Replica(host, port, settings | {"FINETUNE": "follow"}, folder / f"{host}.log") for host in hosts]
        trainer = Replica("127.0.2.1", port, settings | {"FINETUNE": "manual"}, folder / "trainer.log")
        for replica in [*made, trainer]:
            stack.callback(replica.end)
            replica.start()
        names = stack.enter_context(dns({"replica": hosts, "trainer": [trainer.host]}))
        for replica in [*made, trainer]:
            replica.await_ready()
        balancer = stack.enter_context(haproxy(names, port, folder / "haproxy.log"))
        running = Fleet(balancer, names, made, trainer, photos)
        balancer.await_replicas(count)
        yield running
