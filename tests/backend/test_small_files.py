"""Protects whoever reads a job, a pointer or a version from what else may lie under its name: nothing is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.finetune.job_store import Jobs
from backend.finetune.versions import Versions
from backend.label_studio.names import FILE, ToldNames
from backend.small_files import is_file_or_missing, new_file, open_file, read_end, read_small


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    for content in (b"", b"v1\n", bytes(1 << 20)):
        (tmp_path / "a").write_bytes(content)
        assert read_small(tmp_path / "a") == content


def put(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.write_bytes(b" " * (2 << 20))
    elif kind == "deep":
        path.write_bytes(b"[" * 500_000)


ANYTHING = ["pipe", "folder", "loop", "device"]


@pytest.mark.parametrize("kind", ANYTHING)
def test_no_file_stays_open(tmp_path: Path, kind: str) -> None:
    """A server looks at the files of all jobs every second: with one left open each time it would run out of them."""
    put(tmp_path / "a", kind)
    before = len(os.listdir("/proc/self/fd"))
    for deed in (read_small, new_file, lambda path: open_file(path, os.O_RDWR)):
        for _ in range(3):
            with pytest.raises((OSError, ValueError)):
                deed(tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_are_made_with_their_folders_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "b" / "a"
    for content in (b"much", b"a"):
        with new_file(path) as file:
            file.write(content)
        assert read_end(path, 3) == content[-3:]
    assert is_file_or_missing(path)
    assert is_file_or_missing(path / "below")
    put(tmp_path / "c", "loop")
    assert not is_file_or_missing(tmp_path / "c")


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "large"])
def test_anything_else_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "a", kind)
    with pytest.raises((OSError, ValueError)):
        read_small(tmp_path / "a")


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "large", "deep"])
def test_jobs_and_versions_of_other_projects_are_found_beside_it(tmp_path: Path, kind: str) -> None:
    jobs, versions = Jobs(tmp_path), Versions(tmp_path)
    jobs.enqueue(2, "a test", 0)
    for name in ("jobs/1/0001.json", "versions/1/v1/about.json", "versions/2/current", FILE):
        put(tmp_path / name, kind)
    assert ToldNames(tmp_path).names() == []
    assert [job.project for job in jobs.newest_of_each()] == [2]
    assert jobs.newest(1) is None
    with pytest.raises((OSError, ValueError)):
        versions.version(1, 1)
    if kind == "deep":
        assert versions.current(2) is None
    else:
        with pytest.raises((OSError, ValueError)):
            versions.current(2)
