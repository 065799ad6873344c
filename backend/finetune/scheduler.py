"""When a project is trained: the server's part of fine-tuning.

It records what annotators did, applies that in a thread, queues trainings and has one job at a time started
(`supervisor.py`). All state is on disk, so several workers and restarted servers continue where another left off.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from threading import Event, Lock, Thread
from typing import Any

from backend.finetune.job_store import Job, Jobs, RefusedError, now, read_job, write_job
from backend.finetune.locks import BusyError
from backend.finetune.store import AnnotationStore, BacklogError
from backend.finetune.supervisor import COMMAND, Supervisor
from backend.finetune.sync import receive

_EVERY = 1.0  # seconds between two rounds
_ASKED_WITHIN = 20.0  # seconds within which at most `MAX_QUEUED` trainings can be requested
_REPEATED = 600.0  # seconds after which a lasting problem is logged again
_CATCHING_UP_EVERY = 60.0  # seconds between two processes that catch up with annotations
_SHOWN = 10  # jobs that a project's report lists
_AGAIN = 10.0  # seconds until the next look at a project that has enough for a training but could not get one
_SETTLED = 2.0  # seconds after which Label Studio's REST interface surely shows what its webhook reported

MAX_QUEUED = 20
"""Trainings that may wait: anybody who can reach the port can request one for any project."""

logger = logging.getLogger(__name__)


class _QueueFullError(RefusedError):
    """Too many trainings are waiting."""


class Training:
    """The store of annotations and the jobs that learn from it. Thread-safe."""

    def __init__(
        self,
        store: AnnotationStore,
        jobs: Jobs,
        *,
        automatic: bool,
        after_objects: int,
        quiet_seconds: float,
        job_seconds: float = 7200.0,
        immediate: bool = False,
        is_known: Callable[[int], bool] = lambda project: True,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`automatic`: also start a training without a request, after `after_objects` new objects and `quiet_seconds`
        without changes. `job_seconds`: a process that works for longer is killed. `immediate`: adapt the head after
        each accepted mask, see `adaptation.py`. `is_known`: whether Label Studio has a project, as far as it
        answers."""
        self._store = store
        self.jobs = jobs
        self._automatic = automatic
        self._after_objects = after_objects
        self._quiet_seconds = quiet_seconds
        self._immediate = immediate
        self._is_known = is_known
        self._supervisor = Supervisor(jobs, job_seconds, command)
        self._due: dict[int, float] = {}  # when to look whether a project has enough that is new, monotonic time
        self._to_adapt: dict[int, float] = {}  # when to look whether there is anything to adapt to, monotonic time
        self._adapted_to: dict[int, int] = {}  # by project: the highest id of an object that it was adapted to
        self._asked_at: deque[float] = deque(maxlen=MAX_QUEUED)  # when trainings were asked for, monotonic time
        self._catching_up_at = 0.0  # when a process may catch up with annotations, monotonic time
        self._trouble: str | None = None
        self._told_at = 0.0  # when the log told of the trouble, monotonic time
        self._lock = Lock()
        self._wake, self._closing = Event(), Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the work in the background."""
        try:
            self._due = dict.fromkeys(self._store.projects(), 0.0)  # events that came while no server was running
            if self._immediate:
                self._adapted_to = {project: self._last_object(project) for project in self._store.projects()}
        except (OSError, sqlite3.Error):  # learning never stops serving
            logger.exception("what was learnt from cannot be read")
        self._thread = Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the work in the background; a running job continues."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_EVERY)  # its work may take longer, and may be interrupted anywhere

    def note(self, body: Any, raw: bytes) -> int | None:
        """Record a /webhook body if it is about annotations; returns the project. Once it returns, nothing is lost."""
        project = receive(self._store, body, raw)
        if project is not None:
            with self._lock:
                self._due[project] = time.monotonic() + self._quiet_seconds
                if self._immediate:
                    self._to_adapt[project] = time.monotonic() + _SETTLED
            self._wake.set()
        return project

    def ask(self, project: int) -> Job:
        """A job for a project on request: a new one, or the one that is already waiting or running. Raises `ValueError`
        for a project that Label Studio does not know, and if too many are waiting; `BacklogError` if trainings are
        requested faster than people do."""
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
        if num_waiting >= MAX_QUEUED:
            raise _QueueFullError(f"{num_waiting} trainings are waiting already; try again when some of them are done")

    def _check_known(self, project: int) -> None:
        """Raises `RefusedError` for a project that Label Studio does not know."""
        if not self._is_known(project):
            raise RefusedError(f"Label Studio has no project {project}, or does not show it to this server's key")

    def _check_pace(self) -> None:
        """Raises `BacklogError` if trainings are requested faster than people do: each makes a request to Label
        Studio."""
        with self._lock:
            if len(self._asked_at) == MAX_QUEUED and time.monotonic() - self._asked_at[0] < _ASKED_WITHIN:
                raise BacklogError(
                    f"{MAX_QUEUED} trainings were requested within {_ASKED_WITHIN:.0f} seconds; try again"
                )
            self._asked_at.append(time.monotonic())

    def cancel(self, project: int) -> Job:
        """Cancel the project's job, waiting or running; returns it in its final state, which it may have reached by
        itself. Raises `ValueError` if there is none."""
        with self.jobs.changing():
            job = self.jobs.newest(project)
            if job is None or not job.active:
                raise RefusedError(f"project {project} has no training to cancel")
            if job.state == "running":
                self._supervisor.end_job(job)
                job = read_job(self.jobs.path(job))
            if job.active:
                job = replace(job, state="cancelled", reason="cancelled on request", ended_at=now(), seconds_left=None)
                write_job(self.jobs.path(job), job)
        self._wake.set()
        return job

    def report(self, project: int) -> dict[str, Any]:
        """A project's state, as JSON: its objects, what was skipped and why, its jobs, newest first."""
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
            "starts_by_itself_after": self._after_objects if self._automatic else None,
            "jobs": [asdict(job) for job in jobs[:_SHOWN]],
        }

    def state(self) -> dict[str, Any]:
        """The state of learning, as JSON: events not applied yet or set aside, projects to be read from Label Studio
        again after the database was damaged, and the problem that blocks it, None if there is none."""
        try:
            return {"events": self._store.backlog(), "read_again": self._store.to_collect(), "trouble": self._trouble}
        except (OSError, sqlite3.Error) as error:
            return {"events": None, "read_again": [], "trouble": f"annotations cannot be read: {error}"}

    def step(self) -> None:
        """One round of the work in the background."""
        with suppress(BusyError):  # a heavy event is being applied
            self._store.apply_pending(patience=_EVERY)
        if self._automatic:
            self._ask_where_due()
        self._supervisor.reap()
        with self.jobs.changing():
            with self.jobs.run_lock() as run_lock:
                if run_lock is not None:
                    self._start_next(run_lock)
                    return
            self._supervisor.end_overdue()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self.step()
            except (
                Exception
            ) as error:  # such as a full disk; the next round may succeed, and annotators must not notice
                self._tell(error)
            else:
                self._trouble = None
            self._wake.wait(_EVERY)

    def _tell(self, error: Exception) -> None:
        """Log a problem when it starts, and now and then while it lasts."""
        trouble = f"{type(error).__name__}: {error}"
        if trouble != self._trouble or time.monotonic() - self._told_at >= _REPEATED:
            self._trouble, self._told_at = trouble, time.monotonic()
            logger.error("learning is blocked; clicks are answered anyway", exc_info=error)

    def _ask_where_due(self) -> None:
        """Request a training of each project that has enough new objects and no recent changes."""
        with self._lock:
            due = [project for project, moment in self._due.items() if moment <= time.monotonic()]
        for project in due:
            with self._lock:
                self._due.pop(project, None)  # an event that arrives meanwhile makes it due again
            wait: float | None = _AGAIN  # used if the store, or Label Studio, cannot be read
            try:
                wait = self._ask_if_due(project)
            finally:
                if wait is not None:
                    with self._lock:
                        self._due.setdefault(project, time.monotonic() + wait)

    def _ask_if_due(self, project: int) -> float | None:
        """Request a training of a project if it has enough for one. Returns in how many seconds to look again, None for
        when its next event arrives. Nobody else would try again, so this server does."""
        quiet = time.time() - self._store.counts(project).changed_at  # below 0: the clock was ahead, which says nothing
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

    def _start_next(self, run_lock: int) -> None:
        """No job is running: start what comes next."""
        self._supervisor.fail_abandoned()
        waiting = [job for job in self.jobs.newest_of_each() if job.state == "queued"]
        waiting.sort(key=self._has_nothing_new)  # a stable sort: the others keep their order
        if waiting:
            self._supervisor.start_job(waiting[0], run_lock)
        elif self._store.is_behind() and time.monotonic() >= self._catching_up_at:
            self._catching_up_at = time.monotonic() + _CATCHING_UP_EVERY
            self._supervisor.start_catching_up(run_lock)
        else:
            self._adapt_where_due(run_lock)

    def _has_nothing_new(self, job: Job) -> bool:
        return not self._store.new_since(job.project, self.jobs.last_object_learnt(job.project))

    def _adapt_where_due(self, run_lock: int) -> None:
        """Adapt the head of one project with new masks; other projects wait for the next round."""
        with self._lock:
            project = next((project for project, moment in self._to_adapt.items() if moment <= time.monotonic()), None)
            if project is None:
                return
            del self._to_adapt[project]
        if self._store.new_since(project, self._adapted_to.get(project, 0)):
            self._adapted_to[project] = self._last_object(project)
            self._supervisor.start_adaptation(project, run_lock)

    def _last_object(self, project: int) -> int:
        return max((one.id for one in self._store.objects(project)), default=0)
