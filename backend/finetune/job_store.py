"""Trainings on disk: what each is about, its state, and how it ended. Written by one process, read by any.

    MODEL_DIR/jobs/running.lock        held by the process of the running job, which it names; released when it dies
    MODEL_DIR/jobs/catching_up.log     output of the last process that caught up with annotations
    MODEL_DIR/jobs/PROJECT/0001.json   a `Job`, replaced atomically
    MODEL_DIR/jobs/PROJECT/0001.log    output of its process
    MODEL_DIR/jobs/PROJECT/0001.png    its report as a picture, if it got that far
    MODEL_DIR/jobs/PROJECT/adaptation.log    output of the last immediate adaptation

The process that works on a job uses `working_on`; queue, start and cancelling are `scheduler.py`'s.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from backend.finetune.locks import locked
from backend.small_files import open_file, read_small
from skipclick.atomic_io import atomic_write

State = Literal["queued", "running", "done", "failed", "cancelled"]
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "State": (str,),
    "bool": (bool,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
    "dict[str, float] | None": (dict, type(None)),
}
"""Types that a field of a `Job` may have, by its annotation."""

logger = logging.getLogger(__name__)

ACTIVE = ("queued", "running")

_PATIENCE = 5.0  # seconds that a request waits for others that add or end jobs


@dataclass(frozen=True)
class Job:
    """One training of one project."""

    project: int
    number: int
    asked_by: str
    """What started it, in words."""
    created_at: str
    state: State = "queued"
    reason: str = ""
    """In words: why it failed, or why its version was or was not promoted."""
    version: str | None = None
    """Name of the version that it made."""
    promoted: bool = False
    last_object: int = 0
    """The highest id of a `StoredObject` that existed then: later ones count as new."""
    stage: str = ""
    share: float = 0.0
    """Share of the stage that is done, in [0, 1]."""
    step: int = 0
    loss: float | None = None
    noc: dict[str, float] | None = None
    """The last measurement on held-out objects, such as {"NoC@85": 4.2}."""
    proposals: dict[str, float] | None = None
    """Results of proposals on held-out images: "objects", "proposals", "precision" and "recall" at an IoU of 75 %."""
    seconds_left: float | None = None
    pid: int | None = None
    started_at: str | None = None
    ended_at: str | None = None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE


class RefusedError(ValueError):
    """Somebody asked for something that cannot be done; the message says why."""


class Jobs:
    """The folder of all jobs."""

    def __init__(self, model_dir: Path) -> None:
        self._folder = model_dir / "jobs"

    @property
    def lock_file(self) -> Path:
        """The file of `run_lock`."""
        return self._folder / "running.lock"

    def path(self, job: Job) -> Path:
        """Its file."""
        return self._folder / str(job.project) / f"{job.number:04}.json"

    def picture(self, project: int, number: int) -> Path:
        """The picture of a job's report, an absolute path. Raises `RefusedError` if there is none."""
        if number not in self.pictured(project):
            raise RefusedError(f"training {number} of project {project} has left no picture")
        return self._folder.absolute() / str(project) / f"{number:04}.png"

    def adaptation_log(self, project: int) -> Path:
        """Output of the last adaptation of a project."""
        return self._folder / str(project) / "adaptation.log"

    def catching_up_log(self) -> Path:
        """Output of the last process that caught up with annotations."""
        return self._folder / "catching_up.log"

    def pictured(self, project: int) -> list[int]:
        """Numbers of the jobs that left a picture, the latest first."""
        return [int(path.stem) for path in self._paths(project) if path.with_suffix(".png").is_file()]

    def last_noc(self, project: int) -> dict[str, float]:
        """The measurements of the last job that has any; empty if there is none."""
        return next((noc for job in self.of(project) if (noc := job.noc)), {})

    def of(self, project: int) -> list[Job]:
        """A project's jobs, newest first."""
        return list(self._readable(project))

    def newest(self, project: int) -> Job | None:
        """The latest job. Only this one can be active."""
        return next(self._readable(project), None)

    def last_object_learnt(self, project: int) -> int:
        """`last_object` of the latest job that has ended; 0 if there is none."""
        return next((job.last_object for job in self.of(project) if not job.active), 0)

    def newest_of_each(self) -> list[Job]:
        """The newest job of each project, in the order in which they were requested."""
        projects = (int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdecimal())
        found = (self.newest(project) for project in projects)
        return sorted((job for job in found if job is not None), key=lambda job: (job.created_at, job.project))

    def enqueue(self, project: int, asked_by: str, last_object: int) -> Job:
        """A new job at the end of the queue, or the one that is already waiting or running."""
        with self.changing():
            newest = self.newest(project)
            if newest is not None and newest.active:
                return newest
            number = max((int(path.stem) for path in self._paths(project)), default=0) + 1
            job = Job(project, number, asked_by, now(), last_object=last_object)
            write_job(self.path(job), job)
        return job

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While this holds, no other process adds, starts or ends a job; the job's own process may still report. Raises
        `BusyError`."""
        with locked(self._folder / "changing.lock", _PATIENCE):
            yield

    @contextmanager
    def run_lock(self) -> Iterator[int | None]:
        """The right to run a job, as the file descriptor of a lock; None while a job is running. A child that inherits
        the descriptor holds the lock until it ends, however it ends and whatever happens to this process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = open_file(self.lock_file, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock
        finally:
            os.close(lock)

    def holder(self) -> str:
        """The `process_name` of the process that got `run_lock` last; empty if that is unknown. Raises `OSError`, and
        `ValueError` if something else lies there."""
        return read_small(self.lock_file).decode(errors="replace")

    def _readable(self, project: int) -> Iterator[Job]:
        """A project's jobs, newest first. Damaged files are skipped: they must not hide the others."""
        for path in self._paths(project):
            try:
                yield read_job(path)
            except (OSError, ValueError) as error:
                logger.warning("%s is skipped: %s", path, error)

    def _paths(self, project: int) -> list[Path]:
        paths = (self._folder / str(project)).glob("*.json")
        return sorted((path for path in paths if path.stem.isdecimal()), key=lambda path: int(path.stem), reverse=True)


@contextmanager
def working_on(path: Path) -> Iterator[Callable[..., None]]:
    """For the process that works on a job: marks it as running, then as done, or failed with the reason.

    Yields a function that records changes of a `Job`'s fields, such as `report(stage="learning", step=3)`.
    """

    def report(**changes: Any) -> None:
        write_job(path, replace(read_job(path), **changes))

    report(state="running", pid=os.getpid(), started_at=now())
    try:
        yield report
    except BaseException as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        report(state="failed", reason=said[:1000], ended_at=now(), seconds_left=None)
        raise
    report(state="done", ended_at=now(), seconds_left=None)


def read_job(path: Path) -> Job:
    """A job's file as it is now. Raises `OSError` or `ValueError`."""
    try:
        job = Job(**orjson.loads(read_small(path)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"not the file of a training ({error})") from None
    wrong = [
        field.name
        for field in fields(Job)
        if not isinstance(getattr(job, field.name), _KINDS.get(str(field.type), object))
    ]
    if wrong or job.state not in get_args(State):
        raise ValueError(f"not the file of a training (see {', '.join(wrong) or 'state'})")
    return job


def write_job(path: Path, job: Job) -> None:
    """Replace a job's file."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(orjson.dumps(asdict(job), option=orjson.OPT_INDENT_2))  # NaN becomes null


def now() -> str:
    """The time as written to files: UTC, ISO format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
