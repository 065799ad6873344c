"""Protects that only a process which was meant is ended, whatever a file says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from backend.finetune.processes import kill, process_name, seconds_running

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux tells when processes began")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_process_is_ended_by_its_name(sleeper: subprocess.Popen[bytes]) -> None:
    name = process_name(sleeper.pid)
    assert name is not None
    assert name == process_name(sleeper.pid)
    age = seconds_running(name)
    assert age is not None
    assert -1 < age < 60
    kill(name)
    assert sleeper.wait(60) < 0
    assert process_name(sleeper.pid) is None
    with pytest.raises(ValueError, match="has just ended"):
        kill(name)


@pytest.mark.parametrize(
    "forge",
    [
        lambda name: name.split()[0],
        lambda name: "",
        lambda name: "-1",
        lambda name: "0 1 2 3",
        lambda name: "one",
        lambda name: " ".join([name.split()[0], "1", *name.split()[2:]]),  # its number was another's before
        lambda name: " ".join([*name.split()[:3], "another-boot"]),
        lambda name: " ".join([*name.split()[:2], "pid:[1]", name.split()[3]]),  # of another container
        lambda name: f"{os.getpid()} {name.partition(' ')[2]}",
    ],
)
def test_a_number_alone_ends_nobody(sleeper: subprocess.Popen[bytes], forge: object) -> None:
    name = process_name(sleeper.pid)
    assert name is not None
    assert callable(forge)
    assert seconds_running(forge(name)) is None
    with pytest.raises(ValueError, match="not one of this machine"):
        kill(forge(name))
    time.sleep(0.05)
    assert sleeper.poll() is None
