"""Processes by name: a number alone may by now belong to another process, or to one of another container."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

ELSEWHERE = (
    "the training's process is not one of this machine or container, or has just ended: cancel it where it runs, or "
    "wait a few seconds"
)


def process_name(pid: int) -> str | None:
    """A name that is unique among all processes: its number, when it started, its namespace of numbers and the boot.
    None if there is no such process, or the system does not tell (only Linux does)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{pid} {_started(pid)} {os.readlink('/proc/self/ns/pid')} {boot}"
    except (OSError, ValueError, IndexError):
        return None


def seconds_running(name: str) -> float | None:
    """How long the process of that name has been running, by a clock that nobody sets; None if it is not one of this
    machine and container."""
    pid = name.partition(" ")[0]
    if not pid.isdecimal() or process_name(int(pid)) != name:
        return None
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return since_boot - _started(int(pid)) / os.sysconf("SC_CLK_TCK")


def has_open(name: str, path: Path) -> bool:
    """Whether the process of that name has a file open, by what the system says and not any file."""
    pid = name.partition(" ")[0]
    if seconds_running(name) is None:
        return False
    try:
        wanted = path.stat()
        handles = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for handle in handles:
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(handle.stat(), wanted):
                return True
    return False


def arguments_of(name: str) -> list[str]:
    """The command line of the process of that name; empty if it cannot be read."""
    try:
        return [os.fsdecode(one) for one in Path(f"/proc/{name.partition(' ')[0]}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def kill(name: str) -> None:
    """Kill the process of that name and its children. Raises `ValueError` if it is not one of this machine and
    container, or does not lead a group, as those that servers start do."""
    pid = int(name.partition(" ")[0]) if seconds_running(name) is not None else 0
    try:
        leads = pid > 1 and pid != os.getpid() and os.getpgid(pid) == pid != os.getpgrp()
    except ProcessLookupError:
        leads = False
    if not leads:
        raise ValueError(ELSEWHERE)
    kill_group(pid)


def kill_group(leader: int) -> None:
    """Kill a process that leads a group, with the whole group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def lower(pid: int) -> None:
    """Give a process that leads its own session the lowest priority for the processor."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        # Linux may divide processors between sessions first, regardless of niceness inside them.
        Path(f"/proc/{pid}/autogroup").write_text("19")


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])  # field 22 of proc_pid_stat(5); names may hold spaces and brackets
