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
from typing import cast

from backend.finetune.job_store import Job, Jobs, RefusedError, now, write_job
from backend.finetune.processes import (
    ELSEWHERE,
    arguments_of,
    has_open,
    kill,
    kill_group,
    lower,
    process_name,
    seconds_running,
)
from backend.small_files import new_file, read_end

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
        self._started_at = 0.0  # when the last of them was started, monotonic time

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
        if self._own() is not None:
            age: float | None = time.monotonic() - self._started_at
        else:
            age = seconds_running(self._holder())
        if age is None or age <= self._job_seconds:
            return
        self._end()
        for job in self._jobs.newest_of_each():
            if job.state == "running":
                self._fail(job, f"it took longer than FINETUNE_JOB_SECONDS={self._job_seconds:g}")

    def end_job(self, job: Job) -> None:
        """Kill the process that works on a job, whichever server started it; none that works on anything else, whatever
        the job's file says. Raises `RefusedError` if it runs elsewhere."""
        arguments = self._arguments()
        ending = self._jobs.path(job).parts[-3:]  # two servers may call the folder by different names
        if not arguments or any(Path(one).parts[-3:] == ending for one in arguments):
            self._end()

    def _end(self) -> None:
        """Kill the working process. A name in a file is not enough: the process must hold the lock."""
        with self._jobs.run_lock() as free:
            if free is not None:
                return
            own, holder = self._own(), self._holder()
            if own is not None:  # not reaped yet, so no other process can have its number
                kill_group(own.pid)
            elif not holder:
                raise RefusedError("the training is just being started; try again in a few seconds")
            elif not has_open(holder, self._jobs.lock_file):
                raise RefusedError(ELSEWHERE)
            else:
                try:
                    kill(holder)
                except ValueError as error:
                    raise RefusedError(str(error)) from None
        self._await_end()

    def _own(self) -> subprocess.Popen[bytes] | None:
        """The working process, if this server started it."""
        return next((child for child in self._children if child.poll() is None), None)

    def _arguments(self) -> list[str]:
        """The command line of the working process; empty if there is none here."""
        own = self._own()
        if own is not None:
            return [str(one) for one in cast(Sequence[object], own.args)]
        holder = self._holder()
        return arguments_of(holder) if has_open(holder, self._jobs.lock_file) else []

    def _holder(self) -> str:
        """The name of the process that took the lock last; empty if that is unknown."""
        try:
            return self._jobs.holder()
        except (OSError, ValueError):
            return ""

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
        with new_file(log) as output:
            child = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[run_lock],
                start_new_session=True,  # signals to this server's group are not for it
            )
        lower(child.pid)  # here, since it takes seconds until it can do so itself
        self._children.append(child)
        self._started_at = time.monotonic()
        os.pwrite(run_lock, (process_name(child.pid) or "").encode(), 0)
        return child

    def _fail(self, job: Job, reason: str) -> None:
        logger.error("training of project %d failed: %s", job.project, reason)
        failed = replace(job, state="failed", reason=reason, ended_at=now(), seconds_left=None)
        write_job(self._jobs.path(job), failed)

    def _last_words(self, job: Job) -> str:
        try:
            tail = read_end(self._jobs.path(job).with_suffix(".log"), 4 * _LAST_WORDS)
        except OSError:  # it has not begun to print, or something else lies there
            tail = b""
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1][-_LAST_WORDS:] if lines else "it printed nothing"
