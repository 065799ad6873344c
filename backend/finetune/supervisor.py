"""The process that works on a job: started, limited in time, and ended; one at a time, and it outlives this server.

The process inherits the lock `Jobs.run_lock`, so any server can tell whether it is alive, and the lock's file names it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.finetune.job_store import Job, Jobs, RefusedError, now, write_job
from backend.finetune.processes import kill, kill_group, lower, process_name, seconds_running

_DEATH = 4.0  # seconds within which a killed process is gone
_LAST_WORDS = 300  # characters of a dead job's log that its reason quotes

COMMAND = (sys.executable, "-m", "backend.finetune")
"""The process that works on a job; `--project N --job FILE` follow."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Starts and ends processes. The `start_...` methods take the lock of `Jobs.run_lock`, which the process inherits.

    Call all methods but `reap` while holding `Jobs.changing`.
    """

    def __init__(self, jobs: Jobs, job_seconds: float, command: Sequence[str] = COMMAND) -> None:
        """`job_seconds`: a process that works for longer is killed."""
        self._jobs = jobs
        self._job_seconds = job_seconds
        self._command = tuple(command)
        self._children: list[subprocess.Popen[bytes]] = []

    def start_job(self, job: Job, run_lock: int) -> None:
        """Start a queued job; it fails if its process cannot be started."""
        path = self._jobs.path(job)
        write_job(path, replace(job, state="running", started_at=now()))  # now: from here on its process writes it
        try:
            child = self._start(["--project", str(job.project), "--job", str(path)], path.with_suffix(".log"), run_lock)
        except OSError as error:
            self._fail(job, f"its process could not be started: {error}")
            return
        logger.info("training of project %d began: %s, process %d", job.project, job.asked_by, child.pid)

    def start_catching_up(self, run_lock: int) -> None:
        """Start to apply events and to read annotations that would slow the server down."""
        try:
            child = self._start(["--catch-up"], self._jobs.catching_up_log(), run_lock)
        except OSError as error:
            logger.error("the process that catches up with annotations could not be started: %s", error)
            return
        logger.info("catching up with annotations began, process %d", child.pid)

    def start_adaptation(self, project: int, run_lock: int) -> None:
        """Start to adapt a project's head to its newest masks."""
        try:
            child = self._start(["--project", str(project), "--adapt"], self._jobs.adaptation_log(project), run_lock)
        except OSError as error:
            logger.error("the adaptation of project %d could not be started: %s", project, error)
            return
        logger.info("adaptation of project %d began, process %d", project, child.pid)

    def reap(self) -> None:
        """Forget the processes that have ended; until asked for their status they remain in the system."""
        for child in [child for child in self._children if child.poll() is not None]:
            self._children.remove(child)
            if child.returncode:
                logger.warning("process %d ended with status %d; its log says why", child.pid, child.returncode)

    def fail_abandoned(self) -> None:
        """Mark as failed the jobs that claim to be running although no process is."""
        for job in self._jobs.newest_of_each():
            if job.state == "running":
                self._fail(job, f"its process ended before its work did (killed?): {self._last_words(job)}")

    def end_overdue(self) -> None:
        """Kill the working process if it has taken too long: others wait."""
        age = seconds_running(self._jobs.holder())
        if age is None or age <= self._job_seconds:
            return
        self.end_running()
        for job in self._jobs.newest_of_each():
            if job.state == "running":
                self._fail(job, f"it took longer than FINETUNE_JOB_SECONDS={self._job_seconds:g}")

    def end_running(self) -> None:
        """Kill the working process, whichever server started it. Raises `RefusedError` if it runs elsewhere."""
        own = next((child for child in self._children if child.poll() is None), None)
        with self._jobs.run_lock() as free:
            if free is not None:
                return
            holder = self._jobs.holder()
            if own is not None:  # not reaped yet, so no other process can have its number
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
        """Wait until the killed process is gone: it writes nothing after that."""
        deadline = time.monotonic() + _DEATH
        while time.monotonic() < deadline:
            with self._jobs.run_lock() as free:
                if free is not None:
                    return
            time.sleep(0.01)

    def _start(self, arguments: Sequence[str], log: Path, run_lock: int) -> subprocess.Popen[bytes]:
        """A process that holds the lock and prints to `log`. Raises `OSError`."""
        os.ftruncate(run_lock, 0)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[run_lock],
                start_new_session=True,  # signals to this server's group are not for it
            )
        lower(child.pid)  # here, since it takes seconds until it can do so itself
        os.pwrite(run_lock, (process_name(child.pid) or "").encode(), 0)
        self._children.append(child)
        return child

    def _fail(self, job: Job, reason: str) -> None:
        logger.error("training of project %d failed: %s", job.project, reason)
        failed = replace(job, state="failed", reason=reason, ended_at=now(), seconds_left=None)
        write_job(self._jobs.path(job), failed)

    def _last_words(self, job: Job) -> str:
        log = self._jobs.path(job).with_suffix(".log")
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1][-_LAST_WORDS:] if lines else "it printed nothing"
