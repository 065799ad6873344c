"""Protects that nobody waits for ever for a lock that another process holds."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Thread

import pytest

from backend.finetune.locks import BusyError, locked


def test_it_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path, begun, events = tmp_path / "folder" / "a.lock", Event(), []

    def second() -> None:
        begun.set()
        with locked(path, 60):
            events.append("second")

    with locked(path, 1):
        thread = Thread(target=second)
        thread.start()
        begun.wait(60)
        with pytest.raises(BusyError, match=r"a\.lock"), locked(path, 0.05):
            pass
        events.append("first")
    thread.join(60)
    assert events == ["first", "second"]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_cannot_be_held_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.lock"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(OSError, match=r"a\.lock"), locked(path, 60):
        pass


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a.lock", 1):
        raise KeyError
    with locked(tmp_path / "a.lock", 0):
        pass
