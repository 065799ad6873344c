"""Protects when trainings start, that one runs at a time, and what becomes of them when they, or this server, die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import ANY

import pytest

from backend.finetune.job_store import Job, Jobs, RefusedError, now, read_job, working_on, write_job
from backend.finetune.locks import locked
from backend.finetune.processes import process_name
from backend.finetune.scheduler import Training
from backend.finetune.store import AnnotationStore, BacklogError
from tests.support.annotation_bodies import annotation, drawn, region, saved

MakeTraining = Callable[..., Training]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture
def make_training(tmp_path: Path) -> Iterator[MakeTraining]:
    """Trainings whose jobs do a deed of job_process.py. Each stands for a server of its own over the same folder."""

    made: list[Training] = []

    def make(deed: str = "wait", **changes: Any) -> Training:
        rules = {"automatic": True, "after_objects": 3, "quiet_seconds": 0.001} | changes
        script = str(Path(__file__).parents[2] / "support" / "job_process.py")
        made.append(
            Training(AnnotationStore(tmp_path), Jobs(tmp_path), command=(sys.executable, script, deed), **rules)
        )
        return made[-1]

    yield make
    for child in (child for training in made for child in training._supervisor._children):
        child.kill()
        child.wait()


def until(training: Training, reached: Callable[[], bool]) -> None:
    """Rounds of the background work until something is so."""
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        training.step()
        time.sleep(0.01)


def newest(jobs: Jobs, project: int = 1) -> Job:
    job = jobs.newest(project)
    assert job is not None
    return job


def note(training: Training, *numbers: int, project: int = 1) -> None:
    """An accepted mask for each number, as the webhook tells of it."""
    for number in numbers:
        body = saved(annotation(number, number, [region("r", drawn(2, 2, 9, 9))]), project)
        assert training.note(body, json.dumps(body).encode()) == project


def test_a_job_is_started_when_asked_for_and_ends(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training("finish")
    assert training.ask(1).state == "queued"
    until(training, lambda: newest(jobs).state == "done")
    assert training.ask(1).number == 2


def test_asked_twice_it_is_one_job(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training()
    assert training.ask(1) == training.ask(1)
    until(training, lambda: newest(jobs).state == "running")
    assert training.ask(1).number == 1


def test_one_runs_at_a_time_in_the_order_asked_for(make_training: MakeTraining, jobs: Jobs) -> None:
    training, other_worker = make_training(), make_training()
    for project in (2, 1):
        training.ask(project)
        time.sleep(0.005)
    until(training, lambda: newest(jobs, 2).step == 7)
    other_worker.step()
    assert newest(jobs, 1).state == "queued"
    training.cancel(2)
    until(other_worker, lambda: newest(jobs, 1).step == 7)
    assert newest(jobs, 2).state == "cancelled"


def test_a_killed_job_is_marked_as_failed(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training()
    training.ask(1)
    until(training, lambda: newest(jobs).step == 7)
    pid = newest(jobs).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(training, lambda: newest(jobs).state == "failed")
    assert "its process ended before its work did" in newest(jobs).reason


def test_a_job_that_cannot_work_says_its_last_words(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training("die")
    training.ask(1)
    until(training, lambda: newest(jobs).state == "failed")
    assert "out of luck" in newest(jobs).reason
    nothing = Training(
        AnnotationStore(jobs.path(newest(jobs)).parents[2]),
        jobs,
        automatic=False,
        after_objects=1,
        quiet_seconds=1,
        command=("/nowhere/python",),
    )
    nothing.ask(1)
    until(nothing, lambda: newest(jobs).state == "failed")
    assert "could not be started" in newest(jobs).reason


def test_a_job_outlives_the_server_and_the_next_one_looks_after_it(make_training: MakeTraining, jobs: Jobs) -> None:
    first = make_training()
    first.start()
    first.ask(1)
    deadline = time.monotonic() + 60
    while newest(jobs).step != 7:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.close()
    second = make_training()
    second.step()
    running = newest(jobs)
    assert running.state == "running"
    assert running.pid is not None
    assert os.getpgid(running.pid) == running.pid  # what ends the server's group does not reach it
    assert second.cancel(1).state == "cancelled"
    until(first, lambda: not first._supervisor._children)  # only the process that started it can clear it away
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)
    with pytest.raises(ValueError, match="project 1 has no training to cancel"):
        second.cancel(1)


def test_a_server_that_died_while_it_started_a_job_leaves_none_that_runs_for_ever(
    make_training: MakeTraining, jobs: Jobs
) -> None:
    job = jobs.enqueue(1, "a test", 0)
    write_job(jobs.path(job), Job(1, 1, "a test", now(), state="running"))
    make_training().step()
    assert newest(jobs).state == "failed"


def test_a_waiting_job_is_cancelled(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training()
    training.ask(1)
    assert training.cancel(1).state == "cancelled"
    training.step()
    assert newest(jobs).state == "cancelled"


def test_a_job_that_has_just_ended_by_itself_is_not_called_cancelled(make_training: MakeTraining, jobs: Jobs) -> None:
    """Its version may be in service already."""
    training = make_training()
    job = jobs.enqueue(1, "a test", 0)
    write_job(jobs.path(job), Job(1, 1, "a test", now(), state="running"))
    read = training.jobs.newest

    def ends_meanwhile(project: int) -> Job | None:
        found = read(project)
        write_job(jobs.path(job), Job(1, 1, "a test", now(), state="done", promoted=True))
        return found

    training.jobs.newest = ends_meanwhile  # type: ignore[method-assign]
    assert training.cancel(1).state == newest(jobs).state == "done"


def test_enough_new_objects_start_a_training(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training("finish")
    note(training, 1, 2)
    time.sleep(0.01)
    training.step()
    assert jobs.newest(1) is None
    note(training, 3)
    note(training, 4, project=2)
    until(training, lambda: jobs.newest(1) is not None and newest(jobs).state == "done")
    assert newest(jobs).asked_by == "3 new objects"
    assert jobs.newest(2) is None
    note(training, 5, 6)  # the first three count no more
    time.sleep(0.01)
    training.step()
    assert newest(jobs).number == 1
    note(training, 7)
    until(training, lambda: newest(jobs).number == 2)


def test_nobody_who_asks_takes_the_turn_of_what_the_server_asks_for_itself(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are for whoever reaches the port. A project with enough objects keeps its turn while others are
    refused, and where it has to wait it is looked at again by itself."""
    monkeypatch.setattr("backend.finetune.scheduler._AGAIN", 0.0)
    training = make_training()
    for forged in range(100, 120):
        training.ask(forged)
    with pytest.raises(ValueError, match="20 trainings are waiting already"):
        training.ask(120)
    note(training, 1, 2, 3)
    time.sleep(0.01)
    training.step()
    assert jobs.newest(1) is None
    training.cancel(119)
    training.step()
    assert newest(jobs).asked_by == "3 new objects"


def test_what_cannot_be_read_for_a_moment_stays_due(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.finetune.scheduler._AGAIN", 0.0)
    training = make_training()
    note(training, 1, 2, 3)
    note(training, 4, 5, 6, project=2)
    time.sleep(0.01)
    counts = training._store.counts

    def fails(project: int) -> Any:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(training._store, "counts", fails)
    with pytest.raises(sqlite3.OperationalError):
        training.step()
    monkeypatch.setattr(training._store, "counts", counts)
    training.step()
    assert {job.project for job in jobs.newest_of_each()} == {1, 2}


def test_a_project_that_label_studio_does_not_know_gets_no_training_by_itself(
    make_training: MakeTraining, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    training = make_training(is_known=lambda project: project == 1)
    note(training, 1, 2, 3, project=9)
    note(training, 4, 5, 6)
    time.sleep(0.01)
    training.step()
    assert [job.project for job in jobs.newest_of_each()] == [1]
    assert "Label Studio has no project 9" in caplog.text
    assert not training._due


def test_a_clock_that_is_set_back_delays_nothing(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a day ahead when the last mask was accepted, and is right while others wait for their training."""
    monkeypatch.setattr("backend.finetune.scheduler._SETTLED", 0.0)
    training = make_training(immediate=True)
    with monkeypatch.context() as ahead:
        tomorrow = time.time() + 86400
        ahead.setattr(time, "time", lambda: tomorrow)
        note(training, 1, 2, 3)
        training._store.apply_pending()
    time.sleep(0.01)
    training.step()
    assert newest(jobs).asked_by == "3 new objects"
    training.cancel(1)
    training.step()
    assert not training._to_adapt


def test_not_while_annotators_are_at_it(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training(quiet_seconds=1000.0)
    note(training, 1, 2, 3)
    training.step()
    assert jobs.newest(1) is None


def test_what_came_while_no_server_looked_counts(make_training: MakeTraining, jobs: Jobs) -> None:
    note(make_training(), 1, 2, 3)
    time.sleep(0.01)
    next_server = make_training()
    next_server.start()
    deadline = time.monotonic() + 60
    while jobs.newest(1) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    next_server.close()


def test_by_hand_only(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training(automatic=False)
    note(training, 1, 2, 3, 4)
    time.sleep(0.01)
    training.step()
    assert jobs.newest(1) is None
    assert training.report(1)["starts_by_itself_after"] is None


def test_the_report(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training()
    note(training, 1, 2)
    empty = saved(annotation(3, 3, [region("r", drawn(0, 0, 0, 0))]))
    training.note(empty, json.dumps(empty).encode())
    training.step()
    training.ask(1)
    report = training.report(1)
    assert (report["objects"], report["images"], report["new_objects"]) == (2, 2, 0)
    assert report["skipped"] == {"the mask is empty": 1}
    assert report["jobs"][0]["state"] == "queued"
    assert [asdict(job) for job in training.jobs.newest_of_each()] == report["jobs"]
    assert training.report(77)["jobs"] == []


def test_a_process_says_how_its_work_goes(jobs: Jobs) -> None:
    path = jobs.path(jobs.enqueue(1, "a test", 5))
    with working_on(path) as report:
        assert (read_job(path).state, read_job(path).pid) == ("running", os.getpid())
        report(stage="learning", step=3, loss=float("nan"), noc={"NoC@85": 4.5}, seconds_left=9.0)
        assert read_job(path).noc == {"NoC@85": 4.5}
        assert read_job(path).loss is None
    assert (read_job(path).state, read_job(path).seconds_left) == ("done", None)
    with pytest.raises(ValueError, match="too few"), working_on(path):
        raise ValueError("too few objects")
    assert (read_job(path).state, read_job(path).reason) == ("failed", "too few objects")
    assert read_job(path).last_object == 5


def test_an_accepted_mask_is_adapted_to(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, by a process of its own that leaves no job; a project that is due for training comes first."""
    monkeypatch.setattr("backend.finetune.scheduler._SETTLED", 0.0)
    training = make_training("finish", automatic=False, immediate=True)
    log = jobs.adaptation_log(1)
    training.ask(2)
    note(training, 1)
    training.step()
    assert newest(jobs, 2).state == "running"
    assert not log.exists()
    until(training, lambda: log.exists() and log.read_text() == "adapts 1\n")
    assert newest(jobs, 2).state == "done"
    assert jobs.newest(1) is None
    log.unlink()
    note(training, 1)  # the same mask again
    until(training, lambda: not training._supervisor._children and not training._to_adapt)
    assert not log.exists()
    note(training, 2)
    until(training, log.exists)


def test_it_waits_until_label_studio_knows_what_it_told(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training("finish", automatic=False, immediate=True)
    note(training, 1)
    training.step()
    assert not jobs.adaptation_log(1).exists()


def test_masks_of_before_the_start_are_not_adapted_to(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.finetune.scheduler._SETTLED", 0.0)
    before = make_training(immediate=False)
    note(before, 1)
    before.step()
    training = make_training(automatic=False, immediate=True)
    training.start()
    note(training, 1)  # told again
    until(training, lambda: not training._to_adapt)
    assert not jobs.adaptation_log(1).exists()
    training.close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"project": 1, "number": 2, "asked_by": "x", "created_at": null}']
)
def test_a_damaged_jobs_file_hides_no_other(jobs: Jobs, make_training: MakeTraining, content: bytes) -> None:
    training = make_training()
    first = training.ask(1)
    jobs.path(first).with_name("0002.json").write_bytes(content)
    assert newest(jobs).number == 1
    assert training.report(1)["jobs"][0]["number"] == 1
    assert [job.project for job in jobs.newest_of_each()] == [1]
    write_job(jobs.path(first), Job(1, 1, "x", now(), state="done"))
    assert training.ask(1).number == 3


def test_no_more_trainings_wait_than_can_be_worked_off(make_training: MakeTraining) -> None:
    training = make_training()
    for project in range(1, 21):
        training.ask(project)
    with pytest.raises(ValueError, match="20 trainings are waiting already"):
        training.ask(21)
    assert training.ask(7).number == 1  # of a project that waits already


def test_cancelling_ends_no_process_that_a_file_names(make_training: MakeTraining, jobs: Jobs) -> None:
    """The job's file, or the lock, may name a number that belongs to somebody else by now."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as bystander:
        job = jobs.enqueue(1, "a test", 0)
        write_job(jobs.path(job), Job(1, 1, "a test", now(), state="running", pid=bystander.pid))
        training = make_training()
        with jobs.run_lock() as device:  # somebody works
            assert device is not None
            for content in (b"", str(bystander.pid).encode(), f"{bystander.pid} 1 pid:[1] boot".encode(), b"\xff\0"):
                os.ftruncate(device, 0)
                os.pwrite(device, content, 0)
                with pytest.raises(ValueError, match=r"started; try again|not one of this machine"):
                    training.cancel(1)
        assert training.cancel(1).state == "cancelled"  # nobody works any more
        time.sleep(0.05)
        assert bystander.poll() is None
        bystander.kill()


SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


def test_cancelling_ends_no_process_that_does_not_hold_the_lock(make_training: MakeTraining, jobs: Jobs) -> None:
    """Nor one that its name describes completely, and that leads a group as trainings do."""
    job = jobs.enqueue(1, "a test", 0)
    with subprocess.Popen([*SLEEP, str(jobs.path(job))], start_new_session=True) as bystander:
        write_job(jobs.path(job), Job(1, 1, "a test", now(), state="running", pid=bystander.pid))
        with jobs.run_lock() as device:
            assert device is not None
            os.pwrite(device, (process_name(bystander.pid) or "").encode(), 0)
            with suppress(RefusedError):
                make_training().cancel(1)
        time.sleep(0.05)
        is_alive = bystander.poll() is None
        bystander.kill()
    assert is_alive


def test_cancelling_ends_no_process_of_the_servers_own_group(make_training: MakeTraining, jobs: Jobs) -> None:
    job = jobs.enqueue(1, "a test", 0)
    with jobs.run_lock() as device:
        assert device is not None
        with subprocess.Popen([*SLEEP, str(jobs.path(job))], pass_fds=[device]) as bystander:
            for pid in (bystander.pid, os.getpid(), os.getppid()):
                write_job(jobs.path(job), Job(1, 1, "a test", now(), state="running"))
                os.ftruncate(device, 0)
                os.pwrite(device, (process_name(pid) or "").encode(), 0)
                with suppress(RefusedError):
                    make_training().cancel(1)
            time.sleep(0.05)
            is_alive = bystander.poll() is None
            bystander.kill()
        assert is_alive


@pytest.mark.parametrize("is_restarted", [False, True])
def test_cancelling_ends_no_training_of_another_project(
    make_training: MakeTraining, jobs: Jobs, is_restarted: bool
) -> None:
    """Though its own file claims that it is running."""
    training = make_training()
    training.ask(1)
    until(training, lambda: newest(jobs).step == 7)
    forged = jobs.enqueue(2, "a test", 0)
    write_job(jobs.path(forged), Job(2, 1, "a test", now(), state="running", pid=newest(jobs).pid))
    server = make_training() if is_restarted else training
    assert server.cancel(2).state == "cancelled"
    time.sleep(0.05)
    (working,) = training._supervisor._children
    assert working.poll() is None
    assert server.cancel(1).state == "cancelled"
    until(training, lambda: working.poll() is not None)


@pytest.mark.parametrize("content", [b"", b"1 1 pid:[1] boot", b"\xff" * 3])
def test_a_process_that_works_for_too_long_is_ended_whatever_became_of_its_name(
    make_training: MakeTraining, jobs: Jobs, content: bytes
) -> None:
    training = make_training(job_seconds=0.3)
    training.ask(1)
    training.step()
    jobs.lock_file.write_bytes(content)
    until(training, lambda: newest(jobs).state == "failed")
    assert "FINETUNE_JOB_SECONDS=0.3" in newest(jobs).reason


def test_a_name_of_an_old_process_ends_no_young_one(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training(job_seconds=600.0)
    training.ask(1)
    until(training, lambda: newest(jobs).step == 7)
    jobs.lock_file.write_text(process_name(1) or "")
    training.step()
    assert newest(jobs).state == "running"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("annotations.sqlite", "pipe"),
        ("annotations.sqlite", "folder"),
        ("annotations.sqlite-wal", "pipe"),
        ("annotations.sqlite-shm", "folder"),
        ("annotations.sqlite-journal", "pipe"),
        ("annotations.sqlite.new", "folder"),
        ("annotations.lock", "pipe"),
        ("annotations.mending.lock", "pipe"),
        ("jobs", "pipe"),
        ("jobs/changing.lock", "pipe"),
        ("jobs/changing.lock", "folder"),
        ("jobs/running.lock", "pipe"),
        ("jobs/running.lock", "folder"),
        ("jobs/catching_up.log", "pipe"),
        ("jobs/1", "pipe"),
        ("jobs/1/0001.json", "folder"),
        ("jobs/1/0001.log", "pipe"),
        ("masks", "pipe"),
        ("masks/1", "pipe"),
    ],
)
def test_what_lies_under_the_name_of_a_file_blocks_nothing(
    tmp_path: Path, make_training: MakeTraining, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe would be waited for without an end. What can be done without it goes on, and afterwards all does."""
    monkeypatch.setattr("backend.finetune.store._LIGHT_BYTES", 0)  # has it start a process
    training, path = make_training("finish", after_objects=1), tmp_path / name
    jobs = training.jobs
    write_job(jobs.path(Job(1, 1, "x", "")), Job(1, 1, "a test", now(), state="running"))
    note(training, 1)
    remove(path)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()

    def use(training: Training) -> None:
        for deed in (
            lambda: note(training, 2),
            training.step,
            lambda: training.report(1),
            training.state,
            lambda: training.ask(1),
            lambda: training.cancel(1),
            jobs.newest_of_each,
            lambda: jobs.pictured(1),
            training.step,
        ):
            with suppress(OSError, ValueError, sqlite3.Error, BacklogError):
                deed()

    users = [Thread(target=use, args=(one,), daemon=True) for one in (training, make_training("finish"))]
    for user in users:
        user.start()
    for user in users:
        user.join(20)
        assert not user.is_alive(), "it waits for something"
    remove(path)
    after = make_training("finish", after_objects=1000)
    after.ask(3)
    until(after, lambda: newest(jobs, 3).state == "done")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def test_a_process_that_works_for_too_long_is_ended(make_training: MakeTraining, jobs: Jobs) -> None:
    """Whichever server has started it; then the next one has its turn."""
    first, second = make_training(), make_training("finish", job_seconds=0.5)
    first.ask(1)
    until(first, lambda: newest(jobs).step == 7)
    second.ask(2)
    until(second, lambda: newest(jobs, 1).state == "failed")
    assert "FINETUNE_JOB_SECONDS=0.5" in newest(jobs, 1).reason
    second._supervisor._job_seconds = 600.0  # a busy machine takes longer than half a second
    until(second, lambda: newest(jobs, 2).state == "done")


def test_projects_that_label_studio_does_not_know_are_refused(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training(is_known=lambda project: project == 1)
    for forged in (2, 3, 10**9):
        with pytest.raises(ValueError, match=f"Label Studio has no project {forged}"):
            training.ask(forged)
    assert training.ask(1).state == "queued"
    assert [job.project for job in jobs.newest_of_each()] == [1]


def test_projects_with_new_objects_have_their_turn_first(make_training: MakeTraining, jobs: Jobs) -> None:
    """New since the last training: one that learnt all there is does not overtake."""
    training = make_training("finish", automatic=False)
    note(training, 1, project=1)
    training.step()
    training.ask(1)
    until(training, lambda: newest(jobs, 1).state == "done")
    note(training, 2, project=2)
    training._store.apply_pending()
    for project in (3, 1, 2):
        training.ask(project)
        time.sleep(0.005)
    until(training, lambda: any(newest(jobs, project).state != "queued" for project in (1, 2, 3)))
    assert (newest(jobs, 1).state, newest(jobs, 3).state) == ("queued", "queued")


def test_what_would_burden_the_server_is_done_by_a_process(
    make_training: MakeTraining, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.finetune.store._LIGHT_PIXELS", 50)
    training = make_training("finish")
    note(training, 1)
    training.step()
    assert training.state()["events"] == {"waiting": 1, "bytes": ANY, "heavy": 1, "set_aside": 0}
    until(training, lambda: jobs.catching_up_log().exists() and not training._supervisor._children)
    assert jobs.catching_up_log().read_text() == "catches up\n"
    jobs.catching_up_log().unlink()
    training.step()  # it did not help: not again at once
    assert not jobs.catching_up_log().exists()
    assert training.state()["trouble"] is None


def test_a_trouble_that_lasts_is_logged_once(make_training: MakeTraining, caplog: pytest.LogCaptureFixture) -> None:
    training = make_training()
    for _ in range(5):
        training._tell(OSError("the disk is full"))
    assert len(caplog.records) == 1
    assert training.state()["trouble"] == "OSError: the disk is full"
    training._tell(OSError("another one"))
    assert len(caplog.records) == 2


def test_trainings_are_not_asked_for_faster_than_people_do(make_training: MakeTraining) -> None:
    """Label Studio is asked about each, and has others to answer."""
    asked: list[int] = []

    def is_known(project: int) -> bool:
        asked.append(project)
        return False

    training = make_training(is_known=is_known)
    for project in range(100):
        with pytest.raises((ValueError, BacklogError)):
            training.ask(project)
    assert len(asked) == 20


def test_what_it_starts_takes_what_nobody_else_wants(make_training: MakeTraining, jobs: Jobs) -> None:
    training = make_training()
    training.ask(1)
    training.step()
    (child,) = training._supervisor._children
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19


def test_an_event_that_takes_long_elsewhere_holds_up_no_job(
    make_training: MakeTraining, jobs: Jobs, tmp_path: Path
) -> None:
    training = make_training("finish")
    training.ask(1)
    with locked(tmp_path / "annotations.lock", 1):
        training.step()
    assert newest(jobs).state in ("running", "done")
