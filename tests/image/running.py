"""Starting the image's command: as `buildah run` does it, and sealed as a careful operator would."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .storage import ROOT, Image, Storage, descendants

_DRIVE = Path(__file__).with_name("drive.py")

# The shell becomes the container's first process, which `docker run --read-only --network none --tmpfs /tmp --shm-size`
# would start the same way: nothing but /data, /tmp and /dev/shm can be written, no network but the loopback.
_SEALED = """
set -e
mount --make-rprivate /
mount --bind "$ROOTFS" "$ROOTFS"
mount -o remount,bind,ro "$ROOTFS"
mount -t proc proc "$ROOTFS/proc"
mount -t tmpfs tmpfs "$ROOTFS/tmp"
mount -t tmpfs tmpfs "$ROOTFS/dev"
mkdir -m 1777 "$ROOTFS/dev/shm"
for device in null zero random urandom; do mknod -m 666 "$ROOTFS/dev/$device" c 1 "$(stat -c '0x%T' /dev/$device)"; done
mount --bind "$DATA" "$ROOTFS/data"
ip link set lo up
exec env --ignore-environment "$(command -v chroot)" --userspec="$USER_AND_GROUP" "$ROOTFS" sh -c "$COMMAND"
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A started container."""

    process: subprocess.Popen[bytes]
    main: int  # process id of the container's command
    url: str  # as seen from the container
    log: Path
    container: str
    own_network: bool

    def drive(self) -> dict[str, Any]:
        """The answers to one round of requests, see `drive.py`."""
        answers: dict[str, Any] = json.loads(self._inside([sys.executable, _DRIVE, self.url]).stdout)
        return answers

    def status(self, name: str) -> str:
        """A line of the command's /proc/PID/status, such as "Uid" or "NSpid"."""
        lines = Path(f"/proc/{self.main}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM to the command, as `docker stop` does: the exit status and the seconds it took."""
        begin = time.monotonic()
        subprocess.run(["kill", "-TERM", str(self.main)], check=True)
        return self.process.wait(60), time.monotonic() - begin

    def _inside(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--net=/proc/{self.main}/ns/net"] if self.own_network else []
        done = subprocess.run([*enter, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"the backend was not reached; its log:\n{self.log.read_text()}"
        return done


def command_of(config: Mapping[str, Any]) -> list[str]:
    """The words that starting the image runs."""
    return [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]


@contextmanager
def started(store: Storage, image: Image, log: Path, port: int) -> Iterator[Running]:
    """The image's command under `buildah run`, which shares this machine's network."""
    command = command_of(store.image_config(image.name))
    with store.container(image.name) as container:
        run = store.command("run", "--isolation", "chroot", "--env", f"PORT={port}", container, "--", *command)
        with _process(run, log, {}) as process:
            main = _find(process, command, log)
            yield Running(process, main, f"http://127.0.0.1:{port}", log, container, own_network=False)


@contextmanager
def sealed(store: Storage, image: Image, log: Path, data: Path) -> Iterator[Running]:
    """The image's command as process 1, not as root, without a network, its root file system read-only."""
    config = store.image_config(image.name)
    command = command_of(config)
    line = f"cd {shlex.quote(config['WorkingDir'])} && exec env {shlex.join([*config['Env'], *command])}"
    with store.container(image.name) as container:
        place = {"ROOTFS": store.buildah("mount", container), "DATA": str(data)}
        place |= {"USER_AND_GROUP": config["User"], "COMMAND": line, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        alone = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
        with _process([*alone, "sh", "-c", _SEALED], log, place) as process:
            main = _find(process, command, log)
            yield Running(process, main, "http://127.0.0.1:9090", log, container, own_network=True)


@contextmanager
def _process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone, with its children, when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment or None)
        try:
            yield process
        finally:
            for child in [*reversed(descendants(process.pid)), process.pid] if process.poll() is None else []:
                subprocess.run(["kill", "-KILL", str(child)], stderr=subprocess.DEVNULL, check=False)
            process.wait(30)


def _find(process: subprocess.Popen[bytes], command: Sequence[str], log: Path, patience: float = 60) -> int:
    """The id of the process that runs the command, or what it has become, nearest to `process`."""
    program = command[0]
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        for candidate in descendants(process.pid):
            if (words := _words(candidate))[:1] and words[0].endswith(program) and words[1:2] == ["-m"]:
                return candidate
        time.sleep(0.1)
    raise RuntimeError(f"{command} was not started (exit status {process.poll()}); its log:\n{log.read_text()}")


def _words(process_id: int) -> list[str]:
    """The command line of a process; empty if it has just ended."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_text().split("\0")
    except OSError:
        return []
