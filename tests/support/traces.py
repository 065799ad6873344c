"""What a run of the tests must not leave behind: files, processes, another share of the processor."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHES = {".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
GRACE = 30.0  # seconds that processes have to end


class Traces:
    """What there was at the beginning of a run. Its temporary files go to a folder of the run's own, by which its
    processes are known too."""

    def __init__(self) -> None:
        multiprocessing.util.get_temp_dir()  # this process's own: removed when it ends, so not in the run's folder
        self._files = checkout_files()
        self._temporary = os.environ.get("TMPDIR"), tempfile.tempdir
        self._folder = Path(tempfile.mkdtemp(prefix="skipclick-tests-"))
        os.environ["TMPDIR"], tempfile.tempdir = str(self._folder), None

    def end(self) -> dict[str, list[str]]:
        """What the run, or a process that it started, has left behind; then all is as it was before."""
        found = {
            "processes": await_end_of_processes(self._folder),
            "temporary files": sorted(path.name for path in self._folder.iterdir()),
            "files in the checkout": sorted(checkout_files() - self._files),
        }
        variable, tempfile.tempdir = self._temporary
        os.environ.pop("TMPDIR")
        if variable is not None:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(self._folder, ignore_errors=True)
        return {what: names for what, names in found.items() if names}


def checkout_files() -> set[str]:
    """Files and folders of the checkout, but for environments, what tools keep for themselves, and what somebody may
    be writing while the tests run."""
    found: set[str] = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in CACHES and not name.startswith(".venv")]
        names = [*folders, *(name for name in files if not name.endswith((".py", ".md", ".swp")))]
        found |= {os.path.relpath(os.path.join(folder, name), ROOT) for name in names}
    return found


def processor_shares() -> tuple[int, str]:
    """Niceness of this process, and of its session where Linux shares processors between sessions."""
    session = Path("/proc/self/autogroup")
    return os.getpriority(os.PRIO_PROCESS, 0), session.read_text().strip() if session.exists() else ""


def await_end_of_processes(folder: Path) -> list[str]:
    """Command lines of processes that still run after a while, of those whose temporary files go to a folder.

    Those by which Python's multiprocessing serves this process end with it.
    """
    deadline = time.monotonic() + GRACE
    while (found := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if process.name == str(os.getpid()) or f"TMPDIR={folder}".encode() not in environment:
                continue
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended, or is somebody else's
            continue
        if command and not (parent == os.getpid() and "multiprocessing" in command):
            found.append(command)
    return found
