"""Processes that a process started, as Linux's /proc tells."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, found) for one in (child, *descendants(child))]


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that has may wait to be asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
