"""When a project is trained, and that one job runs at a time, in a process of its own that outlives this server.

The server's part of fine-tuning: it notes what annotators did, works it off in a thread, starts jobs and looks after
them. All of it is on disk, so several workers and restarted servers go on where another left off.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from backend.finetune.job_store import Job, Jobs, RefusedError, now, read_job, write_job
from backend.finetune.locks import BusyError
from backend.finetune.processes import kill, kill_group, lower, process_name, seconds_running
from backend.finetune.store import AnnotationStore, BacklogError
from backend.finetune.sync import receive

_EVERY = 1.0  # seconds between two looks at the jobs
_DEATH = 4.0  # seconds in which a killed process is gone, at the latest
_ASKED_WITHIN = 20.0  # seconds in which no more than `MOST_QUEUED` trainings can be asked for
_REPEATED = 600.0  # seconds after which the log tells again of a trouble that lasts
_CATCHING_UP_EVERY = 60.0  # seconds between two processes that catch up with annotations
_LAST_WORDS = 300  # characters of a dead job's log that its reason quotes
_SHOWN = 10  # jobs that a project's report lists
_AGAIN = 10.0  # seconds after which a project is looked at again that has enough for a training and could not have one
_SETTLED = 2.0  # seconds after which Label Studio's REST interface surely shows what its webhook told of

MOST_QUEUED = 20
"""Trainings that wait: whoever reaches the port can ask for one of any project."""

COMMAND = (sys.executable, "-m", "backend.finetune")
"""The process that works on a job; `--project N --job FILE` follow."""

logger = logging.getLogger(__name__)


class _QueueFullError(RefusedError):
    """Too many trainings wait."""


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
        job_seconds: float = 7200.0,
        immediate: bool = False,
        is_known: Callable[[int], bool] = lambda project: True,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`by_itself`: also start without being asked, `after_objects` new objects and `quiet_seconds` after the last
        change. `job_seconds`: a process that works for longer is ended. `immediate`: adapt the head after each accepted
        mask, see `adaptation.py`. `is_known`: whether Label Studio has a project, as far as it says."""
        self._store = store
        self.jobs = jobs
        self._by_itself = by_itself
        self._after_objects = after_objects
        self._quiet_seconds = quiet_seconds
        self._job_seconds = job_seconds
        self._immediate = immediate
        self._is_known = is_known
        self._command = tuple(command)
        self._children: list[subprocess.Popen[bytes]] = []
        self._due: dict[int, float] = {}  # when to look whether a project has enough that is new, monotonic time
        self._to_adapt: dict[int, float] = {}  # when to look whether there is anything to adapt to, monotonic time
        self._adapted_to: dict[int, int] = {}  # by project: the highest id of an object that it was adapted to
        self._asked_at: deque[float] = deque(maxlen=MOST_QUEUED)  # when trainings were asked for, monotonic time
        self._catching_up_at = 0.0  # when a process may catch up with annotations, monotonic time
        self._trouble: str | None = None
        self._told_at = 0.0  # when the log told of the trouble, monotonic time
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
                self._due[project] = time.monotonic() + self._quiet_seconds
                if self._immediate:
                    self._to_adapt[project] = time.monotonic() + _SETTLED
            self._wake.set()
        return project

    def ask(self, project: int) -> Job:
        """A job for a project that somebody asks for: a new one, or the one that waits or runs already. Raises
        `ValueError` for a project that Label Studio does not know, and where too many wait, `BacklogError` where
        trainings are asked for faster than people do."""
        newest = self.jobs.newest(project)
        if newest is not None and newest.active:
            return newest
        self._check_queue()
        self._check_pace()
        self._check_known(project)
        return self._enqueue(project, "Start Training")

    def _enqueue(self, project: int, asked_by: str) -> Job:
        job = self.jobs.enqueue(project, asked_by, self._last_object(project))
        self._wake.set()
        return job

    def _check_queue(self) -> None:
        """Raises `_QueueFullError`."""
        num_waiting = sum(job.state == "queued" for job in self.jobs.newest_of_each())
        if num_waiting >= MOST_QUEUED:
            raise _QueueFullError(f"{num_waiting} trainings wait already; ask again when some of them are done")

    def _check_known(self, project: int) -> None:
        """Raises `RefusedError` for a project that Label Studio does not know."""
        if not self._is_known(project):
            raise RefusedError(f"Label Studio has no project {project}, or does not show it to this server's key")

    def _check_pace(self) -> None:
        """Raises `BacklogError` where trainings are asked for faster than people do: each asks Label Studio."""
        with self._lock:
            if len(self._asked_at) == MOST_QUEUED and time.monotonic() - self._asked_at[0] < _ASKED_WITHIN:
                raise BacklogError(
                    f"{MOST_QUEUED} trainings were asked for within {_ASKED_WITHIN:.0f} seconds; try again"
                )
            self._asked_at.append(time.monotonic())

    def cancel(self, project: int) -> Job:
        """End the project's job, waiting or running; as it was in the end, which it may have reached by itself. Raises
        `ValueError` if there is none."""
        with self.jobs.changing():
            job = self.jobs.newest(project)
            if job is None or not job.active:
                raise RefusedError(f"project {project} has no training to cancel")
            if job.state == "running":
                self._end_running()
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
            "annotators": dict(counts.annotators),
            "skipped": dict(counts.skipped),
            "new_objects": new,
            "is_read_again": project in self._store.to_collect(),
            "starts_by_itself_after": self._after_objects if self._by_itself else None,
            "jobs": [asdict(job) for job in jobs[:_SHOWN]],
        }

    def state(self) -> dict[str, Any]:
        """How learning fares, as JSON: events not applied yet or set aside, projects that are read from Label Studio
        again after the database was damaged, and what holds it up, None for nothing."""
        try:
            return {"events": self._store.backlog(), "read_again": self._store.to_collect(), "trouble": self._trouble}
        except (OSError, sqlite3.Error) as error:
            return {"events": None, "read_again": [], "trouble": f"annotations cannot be read: {error}"}

    def step(self) -> None:
        """One round of the work in the background."""
        with suppress(BusyError):  # a heavy event is being applied
            self._store.settle(patience=_EVERY)
        if self._by_itself:
            self._ask_where_due()
        self._clear_away_children()
        with self.jobs.changing():
            with self.jobs.device() as device:
                if device is not None:
                    self._look_after_jobs(device)
                    return
            self._end_overdue()

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
            except Exception as error:  # a full disk, say; the next round may do better, and annotators must not notice
                self._tell(error)
            else:
                self._trouble = None
            self._wake.wait(_EVERY)

    def _tell(self, error: Exception) -> None:
        """Log a trouble when it begins, and now and then while it lasts."""
        trouble = f"{type(error).__name__}: {error}"
        if trouble != self._trouble or time.monotonic() - self._told_at >= _REPEATED:
            self._trouble, self._told_at = trouble, time.monotonic()
            logger.error("learning is held up; clicks are answered all the same", exc_info=error)

    def _ask_where_due(self) -> None:
        """Ask for a training of each project that has enough for one and is left in peace for long enough."""
        with self._lock:
            due = [project for project, moment in self._due.items() if moment <= time.monotonic()]
        for project in due:
            with self._lock:
                self._due.pop(project, None)  # an event that comes meanwhile makes it due once more
            wait: float | None = _AGAIN  # where the store, or Label Studio, cannot be read
            try:
                wait = self._ask_if_due(project)
            finally:
                if wait is not None:
                    with self._lock:
                        self._due.setdefault(project, time.monotonic() + wait)

    def _ask_if_due(self, project: int) -> float | None:
        """Ask for a training of a project if it has enough for one. In how many seconds to look again; None for when
        its next event comes. Nobody is told to try again, so this server does."""
        quiet = time.time() - self._store.counts(project).changed_at  # below 0: the clock was ahead, and says nothing
        if 0 <= quiet < self._quiet_seconds:
            return self._quiet_seconds - quiet
        job = self.jobs.newest(project)
        if job is not None and job.active:
            return self._quiet_seconds
        new = self._store.new_since(project, job.last_object if job is not None else 0)
        if new < self._after_objects:
            return None
        try:
            self._check_queue()
        except _QueueFullError:
            return _AGAIN
        try:
            self._check_known(project)
        except RefusedError as error:
            logger.warning("no training for %d new objects: %s", new, error)
            return None
        self._enqueue(project, f"{new} new objects")
        return None

    def _look_after_jobs(self, device: int) -> None:
        """No job runs: note those that ended without a word, start the next one."""
        active = [job for job in self.jobs.newest_of_each() if job.active]
        for job in active:
            if job.state == "running":
                self._fail(job, f"its process ended before its work did (killed?): {self._last_words(job)}")
        waiting = [job for job in active if job.state == "queued"]
        waiting.sort(key=self._has_nothing_new)  # the others keep their order
        if waiting:
            self._spawn(waiting[0], device)
        elif self._store.is_behind() and time.monotonic() >= self._catching_up_at:
            self._catch_up(device)
        else:
            self._adapt_where_due(device)

    def _has_nothing_new(self, job: Job) -> bool:
        return not self._store.new_since(job.project, self.jobs.last_object_learnt(job.project))

    def _catch_up(self, device: int) -> None:
        """Begin to apply events and read annotations that would burden this process."""
        self._catching_up_at = time.monotonic() + _CATCHING_UP_EVERY
        try:
            child = self._start(["--catch-up"], self.jobs.catching_up_log(), device)
        except OSError as error:
            logger.error("the process that catches up with annotations could not be started: %s", error)
            return
        logger.info("catching up with annotations began, process %d", child.pid)

    def _adapt_where_due(self, device: int) -> None:
        """Adapt the head of one project with new masks; the others wait for the device."""
        with self._lock:
            project = next((project for project, moment in self._to_adapt.items() if moment <= time.monotonic()), None)
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

    def _end_overdue(self) -> None:
        """End the process that works if it has done so for too long: others wait."""
        age = seconds_running(self.jobs.holder())
        if age is None or age <= self._job_seconds:
            return
        self._end_running()
        for job in self.jobs.newest_of_each():
            if job.state == "running":
                self._fail(job, f"it took longer than FINETUNE_JOB_SECONDS={self._job_seconds:g}")

    def _end_running(self) -> None:
        """End the process that works, whichever server has started it. Raises `RefusedError` where that one is
        elsewhere."""
        own = next((child for child in self._children if child.poll() is None), None)
        with self.jobs.device() as free:
            if free is not None:
                return
            holder = self.jobs.holder()
            if own is not None:  # nobody has its number before it is asked how it ended
                kill_group(own.pid)
            elif holder:
                try:
                    kill(holder)
                except ValueError as error:
                    raise RefusedError(str(error)) from None
            else:
                raise RefusedError("the training is just being started; try again in a few seconds")
        self._await_end()

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
        lower(child.pid)  # here, since it takes seconds until it can do so itself
        os.pwrite(device, (process_name(child.pid) or "").encode(), 0)
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
