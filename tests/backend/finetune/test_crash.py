"""Protects what a team did and is served by: kill -9 of the server, its worker or the running job at random moments,
while annotators work and heads are promoted. `make crash` kills 50 times."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from backend.finetune.job_store import Job, Jobs
from backend.finetune.store import AnnotationStore
from backend.finetune.versions import Versions
from bench.serving.annotators import Request
from bench.serving.load import predict_body
from bench.serving.loopback import free_port
from skipclick import Click, load_checkpoint
from tests.support import annotation_bodies as bodies
from tests.support.annotation_bodies import annotation, drawn, region
from tests.support.fake_label_studio import PERSONAL, fake_label_studio
from tests.support.server_process import environment
from tests.support.tuned_models import tuned_model

KILLS = int(os.environ.get("CRASH_KILLS", "4"))
ROOT = Path(__file__).parents[3]
STAGES = ("", "collecting", "encoding", "measuring", "learning", "writing")
NUM_OBJECTS = 10
TRAINED, WEBHOOKS_ONLY = 1, 2
"""Label Studio knows annotations of the first project, so a job could bring back what was lost; of the second one there
is nothing but what the server was told."""


class Annotators:
    """Somebody who draws, redraws and deletes masks in a project all the time, and remembers what was accepted."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rng = random.Random(1)
        self._clock = 0
        self.between = threading.Lock()
        """Held from a deed until the server has answered."""
        self.said: defaultdict[int, list[tuple[bool, str | None]]] = defaultdict(list)
        """By annotation, in order: whether the server answered 201, and the mask's digest; None for deleted."""

    def work(self, stop: threading.Event) -> None:
        """Until told to stop."""
        while not stop.wait(self._rng.uniform(0.02, 0.4)):
            with self.between:
                self._change_something()

    def _change_something(self) -> None:
        left = [number for number, said in self.said.items() if said[-1][1] is not None]
        if left and self._rng.random() < 0.15:
            number = self._rng.choice(left)
            self._say(number, None, bodies.deleted(number, project_id=WEBHOOKS_ONLY))
        else:
            number = self._rng.choice(left) if left and self._rng.random() < 0.4 else len(self.said) + 1
            top, left_edge = self._rng.randrange(20), self._rng.randrange(30)
            mask = drawn(top, left_edge, top + self._rng.randint(1, 10), left_edge + self._rng.randint(1, 10))
            self._clock += 1
            updated_at = f"2026-11-20T12:00:00.{self._clock:06}Z"
            changed = annotation(number, number, [region("r", mask)], updated_at=updated_at)
            self._say(number, digest(mask), bodies.saved(changed, WEBHOOKS_ONLY))

    def _say(self, number: int, state: str | None, body: dict[str, Any]) -> None:
        try:
            accepted = requests.post(f"{self._url}/webhook", json=body, timeout=60).status_code == 201
        except requests.RequestException:
            accepted = False
        self.said[number].append((accepted, state))

    @property
    def num_accepted(self) -> int:
        return sum(accepted for said in self.said.values() for accepted, _ in said)

    def allowed(self, number: int) -> set[str | None]:
        """States that the store may have: what was accepted last, or whatever was tried since."""
        said = self.said[number]
        last = max((place for place, (accepted, _) in enumerate(said) if accepted), default=None)
        return {None, *(state for _, state in said)} if last is None else {state for _, state in said[last:]}


def digest(mask: np.ndarray[Any, Any]) -> str:
    return sha256(np.packbits(mask).tobytes()).hexdigest()


class Clicks:
    """An annotator who clicks all the time, and looks who answers."""

    def __init__(self, url: str, versions: Versions) -> None:
        self._url = url
        self._versions = versions
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.between = threading.Lock()
        """Held from a click until its answer is looked at."""

    def work(self, stop: threading.Event) -> None:
        """Until told to stop."""
        while not stop.wait(0.4):
            with self.between:
                self.click()

    def click(self) -> str | None:
        """Who answered; None if nobody did."""
        body = predict_body(Request(1, (Click(50, 50),)), "/data/upload/1/1.png", (96, 128))
        try:
            answer = requests.post(f"{self._url}/predict", json=body, timeout=300)
            answer.raise_for_status()
        except requests.RequestException as error:
            if getattr(error.response, "status_code", 503) != 503:  # no model yet, or the connection broke
                self.wrong.append(f"{error}: {error.response.text}" if error.response is not None else str(error))
            return None
        [result] = answer.json()["results"]
        name: str = result["model_version"]
        self.answered[name] += 1
        _, plus, version = name.partition(f"+p{TRAINED}.v")
        try:
            if plus:
                self._versions.version(TRAINED, int(version)).head()
        except ValueError as error:  # it is not complete
            self.wrong.append(str(error))
        if not result["result"]:
            self.wrong.append(f"{name} answered no mask")
        return name


class Server:
    """The server as `make serve` starts it: gunicorn's main process and its worker."""

    def __init__(self, folder: Path, port: int, settings: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend"],
                cwd=ROOT,
                env=environment(folder, PORT=str(port), **settings),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    @property
    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/ready", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def kill_worker(self) -> None:
        """gunicorn starts another one."""
        for child in _children(self._process.pid):
            os.kill(child, signal.SIGKILL)

    def kill(self) -> None:
        """All of it; a running job is not."""
        children = _children(self._process.pid)
        for process in (self._process.pid, *children):
            os.kill(process, signal.SIGKILL)
        self._process.wait()
        assert until(lambda: not any(Path(f"/proc/{child}/stat").exists() for child in children))


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextmanager
def at_work(*deeds: Callable[[threading.Event], None]) -> Iterator[None]:
    """Threads that do these until the block ends."""
    stop = threading.Event()
    threads = [threading.Thread(target=deed, args=[stop]) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(reached: Callable[[], bool], patience: float = 600.0) -> bool:
    """Whether something became so in time."""
    deadline = time.monotonic() + patience
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_whole(folder: Path) -> None:
    """What lies on the disk makes sense, whoever was killed when."""
    versions, store = Versions(folder), AnnotationStore(folder)
    with closing(sqlite3.connect(folder / "annotations.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for project in store.projects():
        for one in store.objects(project):
            mask = one.read_mask()
            assert mask.shape == one.size
            assert sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest() == one.digest
    for project in versions.projects():
        current, numbers = versions.current(project), versions.numbers(project)
        assert current is None or current in numbers
        for number in numbers:
            version = versions.version(project, number)
            assert version.head()  # fits its digest
            assert "worth_promoting" in version.report
            assert version.picture.read_bytes().startswith(b"\x89PNG")


def seed(versions: Versions) -> None:
    """Two heads to choose from before the first training is done."""
    base = load_checkpoint("bundled")
    with tempfile.NamedTemporaryFile(suffix=".png") as picture:
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        picture.flush()
        for number in range(2):
            report = {"worth_promoting": False}
            versions.write(
                TRAINED, tuned_model(number, base), base, about={}, report=report, picture=Path(picture.name)
            )


class Trial:
    """A server, a job, annotators at work, and somebody who kills."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder, self._port, self._settings = folder, free_port(), settings
        self._rng = random.Random(KILLS)
        self.jobs, self.versions, self.store = Jobs(folder), Versions(folder), AnnotationStore(folder)
        self.server = Server(folder, self._port, settings)
        self.annotators = Annotators(self.server.url)
        self.clicks = Clicks(self.server.url, self.versions)
        self.killed: Counter[str] = Counter()

    @property
    def job(self) -> Job:
        newest = self.jobs.newest(TRAINED)
        assert newest is not None
        return newest

    def start_training(self) -> None:
        body = {"action": "START_TRAINING", "project": bodies.project(TRAINED)}
        assert requests.post(f"{self.server.url}/webhook", json=body, timeout=60).status_code == 201

    def kill(self) -> None:
        """Somebody, at a random moment of a random stage of the job."""
        if not self.jobs.of(TRAINED) or not self.job.active:
            self.start_training()
        number = self.job.number
        stage = self._rng.choice(STAGES[STAGES.index(self.job.stage) :])
        until(lambda: self.job.stage == stage or not self.job.active, patience=120)
        time.sleep(self._rng.uniform(0, 1) ** 3)  # mostly early: a stage begins where another one was written down
        victim = self._rng.choice(("job", "worker", "server", "server and job"))
        where = self.job.stage or self.job.state
        if "server" in victim:
            self.server.kill()
        if victim == "worker":
            self.server.kill_worker()
        if "job" in victim:
            self._kill_job()
        self.killed[f"{victim} ({where})"] += 1
        assert_whole(self._folder)
        if self.server.is_dead:
            self.server = Server(self._folder, self._port, self._settings)
        assert until(lambda: self.server.is_ready), self.server.log.read_text()
        assert self.job.number == number

    def assert_nothing_is_lost(self) -> None:
        """The next server has worked off what its forerunner accepted, and knows what became of the job."""
        assert until(lambda: self.job.state != "running" or not self._is_device_free())
        with self.annotators.between:
            assert until(lambda: self.store.counts(WEBHOOKS_ONLY).waiting == 0)
            stored = {one.annotation: digest(one.read_mask()) for one in self.store.objects(WEBHOOKS_ONLY)}
            for number in self.annotators.said:
                assert stored.get(number) in self.annotators.allowed(number), number
            assert stored.keys() <= self.annotators.said.keys()

    def serve_another(self) -> None:
        """Promote any version, or none, so that there is something to fall back from; old ones go."""
        with self.clicks.between:
            choice = self._rng.choice([None, *self.versions.numbers(TRAINED)])
            self.versions.promote(TRAINED, choice)
            self.versions.prune(TRAINED, keep=3)
            served = {self.clicks.click()}
            possible = {choice, self.versions.current(TRAINED)}  # the job may have promoted its own
            assert served <= {f"skipclick-lite+p{TRAINED}.v{one}" if one else "skipclick-lite" for one in possible}

    def end(self) -> None:
        self._kill_job()
        self.server.kill()

    def _kill_job(self) -> None:
        holder = "" if self._is_device_free() else self.jobs.holder()
        if holder:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(int(holder.split()[0]), signal.SIGKILL)

    def _is_device_free(self) -> bool:
        with self.jobs.run_lock() as device:
            return device is not None


@pytest.mark.slow
@pytest.mark.timeout(1800 + 600 * KILLS)
def test_whoever_is_killed_nothing_accepted_is_lost(tmp_path: Path) -> None:
    with fake_label_studio() as studio:
        studio.label_config = bodies.CONFIG
        for number in range(1, NUM_OBJECTS + 1):
            task, studio.files[f"/data/upload/1/{number}.png"] = bodies.photographed_task(number)
            studio.tasks.append(task)
        settings = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": PERSONAL, "LOG_LEVEL": "WARNING"}
        settings |= {"FINETUNE": "manual", "FINETUNE_SECONDS": "5", "FINETUNE_THREADS": "1"}
        seed(Versions(tmp_path))
        trial = Trial(tmp_path, settings)
        try:
            assert until(lambda: trial.server.is_ready), trial.server.log.read_text()
            with at_work(trial.annotators.work, trial.clicks.work):
                for number in range(KILLS):
                    trial.serve_another()
                    trial.kill()
                    trial.assert_nothing_is_lost()
                    print(number + 1, json.dumps(trial.killed), trial.annotators.num_accepted, flush=True)
                trial.serve_another()
                trial.start_training()  # or wait for the one that is left
                assert until(lambda: not trial.job.active, patience=900)
            assert trial.job.state == "done", trial.job.reason
            assert len(trial.store.objects(TRAINED)) == NUM_OBJECTS
            trial.assert_nothing_is_lost()
            assert_whole(tmp_path)
        finally:
            trial.end()
    print(trial.job.reason, json.dumps(trial.clicks.answered))
    assert trial.clicks.wrong == []
    assert trial.annotators.num_accepted > 5 * KILLS
