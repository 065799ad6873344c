"""When a project is trained, and that one job runs at a time, in a process of its own that outlives this server.

The server's part of fine-tuning: it notes what annotators did, works it off in a thread, starts jobs and looks after
them. All of it is on disk, so several workers and restarted servers go on where another left off.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from backend.finetune.job_store import Job, Jobs, now, read_job, write_job
from backend.finetune.store import AnnotationStore
from backend.finetune.sync import receive

_EVERY = 1.0  # seconds between two looks at the jobs
_DEATH = 10.0  # seconds in which a killed process is gone, at the latest
_LAST_WORDS = 300  # characters of a dead job's log that its reason quotes
_SHOWN = 10  # jobs that a project's report lists
_SETTLED = 2.0  # seconds after which Label Studio's REST interface surely shows what its webhook told of

MOST_QUEUED = 20
"""Trainings that wait: whoever reaches the port can ask for one of any project."""

COMMAND = (sys.executable, "-m", "backend.finetune")
"""The process that works on a job; `--project N --job FILE` follow."""

logger = logging.getLogger(__name__)


class Training:
    """The store of annotations and the jobs that learn from it. Any thread may call it."""

    def __init__(
        self,
        store: AnnotationStore,
        jobs: Jobs,
        *,
        by_itself: bool,
        after_objects: int,
        quiet_seconds: float,
        immediate: bool = False,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`by_itself`: also start without being asked, `after_objects` new objects and `quiet_seconds` after the last
        change. `immediate`: adapt the head after each accepted mask, see `adaptation.py`."""
        self._store = store
        self.jobs = jobs
        self._by_itself = by_itself
        self._after_objects = after_objects
        self._quiet_seconds = quiet_seconds
        self._immediate = immediate
        self._command = tuple(command)
        self._children: list[subprocess.Popen[bytes]] = []
        self._due: dict[int, float] = {}  # when to look whether a project has enough that is new, Unix time
        self._to_adapt: dict[int, float] = {}  # when to look whether there is anything to adapt to, Unix time
        self._adapted_to: dict[int, int] = {}  # by project: the highest id of an object that it was adapted to
        self._lock = Lock()
        self._wake, self._closing = Event(), Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin the work in the background."""
        try:
            self._due = dict.fromkeys(self._store.projects(), 0.0)  # what came while no server looked
            if self._immediate:
                self._adapted_to = {project: self._last_object(project) for project in self._store.projects()}
        except (OSError, sqlite3.Error):  # learning never stops serving
            logger.exception("what was learnt from cannot be read")
        self._thread = Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the work in the background; a running job goes on."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_EVERY)  # what it is at may take longer, and can be cut off anywhere

    def note(self, body: Any, raw: bytes) -> int | None:
        """Keep what a /webhook body says about annotations; the project concerned. When it returns nothing is lost."""
        project = receive(self._store, body, raw)
        if project is not None:
            with self._lock:
                self._due[project] = time.time() + self._quiet_seconds
                if self._immediate:
                    self._to_adapt[project] = time.time() + _SETTLED
            self._wake.set()
        return project

    def ask(self, project: int, asked_by: str = "Start Training") -> Job:
        """A job for a project: a new one, or the one that waits or runs already."""
        newest = self.jobs.newest(project)
        if newest is None or not newest.active:
            num_waiting = sum(job.state == "queued" for job in self.jobs.newest_of_each())
            if num_waiting >= MOST_QUEUED:
                raise ValueError(f"{num_waiting} trainings wait already; ask again when some of them are done")
        job = self.jobs.enqueue(project, asked_by, self._last_object(project))
        self._wake.set()
        return job

    def cancel(self, project: int) -> Job:
        """End the project's job, waiting or running; as it was in the end, which it may have reached by itself. Raises
        `ValueError` if there is none."""
        with self.jobs.changing():
            job = self.jobs.newest(project)
            if job is None or not job.active:
                raise ValueError(f"project {project} has no training to cancel")
            if job.state == "running":
                with self.jobs.device() as free:
                    if free is None:  # then the lock's holder is this job: no other could have started
                        _kill(self.jobs.holder() or job.pid)
                self._await_end()
                job = read_job(self.jobs.path(job))
            if job.active:
                job = replace(job, state="cancelled", reason="cancelled on request", ended_at=now(), seconds_left=None)
                write_job(self.jobs.path(job), job)
        self._wake.set()
        return job

    def report(self, project: int) -> dict[str, Any]:
        """What is known of a project, as JSON: its objects, what was skipped and why, its jobs, newest first."""
        jobs = self.jobs.of(project)
        counts = self._store.counts(project)
        new = self._store.new_since(project, jobs[0].last_object if jobs else 0)
        return {
            "project": project,
            "objects": counts.objects,
            "images": counts.images,
            "skipped": dict(counts.skipped),
            "new_objects": new,
            "starts_by_itself_after": self._after_objects if self._by_itself else None,
            "jobs": [asdict(job) for job in jobs[:_SHOWN]],
        }

    def step(self) -> None:
        """One round of the work in the background."""
        self._store.settle()
        if self._by_itself:
            self._ask_where_due()
        self._clear_away_children()
        with self.jobs.changing(), self.jobs.device() as device:
            if device is not None:
                self._look_after_jobs(device)

    def _clear_away_children(self) -> None:
        """Ended processes remain until they are asked how they ended."""
        for child in [child for child in self._children if child.poll() is not None]:
            self._children.remove(child)
            if child.returncode:
                logger.warning("process %d ended with status %d; its log says why", child.pid, child.returncode)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self.step()
            except Exception:  # a full disk, say; the next round may do better, and annotators must not notice
                logger.exception("the training's supervision failed")
            self._wake.wait(_EVERY)

    def _ask_where_due(self) -> None:
        with self._lock:
            due = [project for project, moment in self._due.items() if moment <= time.time()]
            for project in due:
                del self._due[project]
        for project in due:
            changed_at = self._store.counts(project).changed_at
            ahead = changed_at > time.time()  # the clock was: that moment says nothing
            moment = 0.0 if ahead else changed_at + self._quiet_seconds
            job = self.jobs.newest(project)
            if job is not None and job.active:
                moment = time.time() + self._quiet_seconds
            if moment > time.time():
                with self._lock:
                    self._due.setdefault(project, moment)
                continue
            new = self._store.new_since(project, job.last_object if job is not None else 0)
            if new >= self._after_objects:
                self.ask(project, f"{new} new objects")

    def _look_after_jobs(self, device: int) -> None:
        """No job runs: note those that ended without a word, start the next one."""
        active = [job for job in self.jobs.newest_of_each() if job.active]
        for job in active:
            if job.state == "running":
                self._fail(job, f"its process ended before its work did (killed?): {self._last_words(job)}")
        waiting = [job for job in active if job.state == "queued"]
        waiting.sort(key=lambda job: not self._store.new_since(job.project, 0))  # asked for, but nothing is known: last
        if waiting:
            self._spawn(waiting[0], device)
        else:
            self._adapt_where_due(device)

    def _adapt_where_due(self, device: int) -> None:
        """Adapt the head of one project with new masks; the others wait for the device."""
        with self._lock:
            project = next((project for project, moment in self._to_adapt.items() if moment <= time.time()), None)
            if project is None:
                return
            del self._to_adapt[project]
        if not self._store.new_since(project, self._adapted_to.get(project, 0)):
            return
        self._adapted_to[project] = self._last_object(project)
        try:
            child = self._start(["--project", str(project), "--adapt"], self.jobs.adaptation_log(project), device)
        except OSError as error:
            logger.error("the adaptation of project %d could not be started: %s", project, error)
            return
        logger.info("adaptation of project %d began, process %d", project, child.pid)

    def _await_end(self) -> None:
        """Until the killed process is gone: what it was about to say is said by then."""
        deadline = time.monotonic() + _DEATH
        while time.monotonic() < deadline:
            with self.jobs.device() as free:
                if free is not None:
                    return
            time.sleep(0.01)

    def _spawn(self, job: Job, device: int) -> None:
        path = self.jobs.path(job)
        write_job(path, replace(job, state="running", started_at=now()))  # now: from here on its process writes it
        try:
            child = self._start(["--project", str(job.project), "--job", str(path)], path.with_suffix(".log"), device)
        except OSError as error:
            self._fail(job, f"its process could not be started: {error}")
            return
        logger.info("training of project %d began: %s, process %d", job.project, job.asked_by, child.pid)

    def _start(self, arguments: Sequence[str], log: Path, device: int) -> subprocess.Popen[bytes]:
        """A process with the right to `device`, which prints to `log`. Raises `OSError`."""
        os.ftruncate(device, 0)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[device],
                start_new_session=True,  # signals to this server's group are not for it
            )
        os.pwrite(device, str(child.pid).encode(), 0)
        self._children.append(child)
        return child

    def _fail(self, job: Job, reason: str) -> None:
        logger.error("training of project %d failed: %s", job.project, reason)
        failed = replace(job, state="failed", reason=reason, ended_at=now(), seconds_left=None)
        write_job(self.jobs.path(job), failed)

    def _last_words(self, job: Job) -> str:
        log = self.jobs.path(job).with_suffix(".log")
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1][-_LAST_WORDS:] if lines else "it printed nothing"

    def _last_object(self, project: int) -> int:
        return max((one.id for one in self._store.objects(project)), default=0)


def _kill(pid: int | None) -> None:
    """End a job's process and its children at once: it leaves nothing half done, whenever it dies."""
    if pid is None:
        raise ValueError("the training is just being started; try again in a few seconds")
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
