"""Write the lock files in requirements/ anew: `make lock`.

pyproject.toml says what is needed, the lock files what that means: every package at one version, every file of it
with its SHA-256, for Python 3.11 to 3.13. All environments that make builds, and the image, install from them and from
nothing else, so a release made tomorrow changes nothing until `make lock` is run and its difference reviewed.

The layers build on each other: each file holds what its layer adds and refers to the one before. The server's is three
files: torch and NVIDIA's libraries, which are most of the image and seldom change; timm, NumPy and what only they and
torch need; and the rest, which is all that is installed into the image for CPUs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from skipclick.atomic_io import atomic_write

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
HEADER = "# Made by `make lock` from pyproject.toml; not to be edited.\n"
LAYERS = ("server", "train", "bench", "dev")
"""Extras of pyproject.toml; the file of each adds what it needs to those of the ones before."""
BESIDE = "cvat"
"""An extra whose file adds to `server` alone, at the versions of the layers."""
FIRST_LINES = {
    "cvat": "-r ../requirements.txt\n",
    "train": "-r ../requirements.txt\n",
    "bench": "-r train.txt\n",
    "dev": "-r bench.txt\n",
}
NOT_ON_CPU = ("torch", "torchvision", "timm", "numpy")
"""Of what pyproject.toml asks for: what the image for CPUs has from Debian (torch and NumPy) or does without."""
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")


def resolve(*wanted: str, constraints: str) -> str:
    """The pinned and hashed requirements that an option of uv names, such as `--extra=dev`, sorted by name.

    Raises `CalledProcessError`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints)
        file.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", *wanted, "--constraints", file.name, "--quiet"]
        command += ["--no-config", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header"]
        command += ["--annotation-style", "line"]
        lock = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return without_constraints(lock)


def without_constraints(lock: str) -> str:
    """Without the constraints in the comments that say what a package is there for."""

    def kept(comment: re.Match[str]) -> str:
        return ", ".join(name for name in comment[0].split(", ") if not name.startswith("-c "))

    return re.sub(r"(?<=# via ).+", kept, lock)


def entries(lock: str) -> dict[str, str]:
    """By a package's first line, without its end: the whole entry. Hashes and comments follow it, indented."""
    found = re.findall(r"^\S.*\n(?:[ \t].*\n)*", lock, re.MULTILINE)
    return {entry.partition(" \\\n")[0]: entry for entry in found}


def only_for(names: Iterable[str], entries: Mapping[str, str]) -> set[str]:
    """The entries of these packages, and of those that nothing else needs, by their first lines."""
    package = {line: line.partition("==")[0] for line in entries}
    reasons = {line: re.findall(r"[^\s,]+", entry.partition("# via ")[2]) for line, entry in entries.items()}
    needed = {package[line] for line in entries if "skipclick" in reasons[line]} - set(names)
    while more := {package[line] for line in entries if needed & set(reasons[line])} - needed - set(names):
        needed |= more
    return {line for line in entries if package[line] not in needed}


def layered(locks: dict[str, str]) -> dict[str, str]:
    """The text of each layer's file, and of `torch` and `timm`, from the complete locks of the layers in their
    order."""
    texts: dict[str, str] = {}
    before: set[str] = set()
    for layer, lock in locks.items():
        added = {line: entry for line, entry in entries(lock).items() if line not in before}
        before |= added.keys()
        of_torch = [line for line in added if OF_TORCH.match(line)]
        if of_torch:
            texts["torch"] = texts.get("torch", "") + "".join(added.pop(line) for line in of_torch)
        if layer == "server":
            of_timm = only_for(NOT_ON_CPU, entries(lock))
            texts["timm"] = "".join(added.pop(line) for line in list(added) if line in of_timm)
        texts[layer] = FIRST_LINES.get(layer, "") + "".join(added.values())
    return texts


def main() -> None:
    """Resolve everything at once, so that the layers agree; then each layer within that."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = "\n".join(project["build-system"]["requires"])
    extras = [f"--extra={layer}" for layer in LAYERS]
    everything = resolve("pyproject.toml", *extras, constraints=build)
    locks = [resolve("pyproject.toml", *extras[: place + 1], constraints=everything) for place in range(len(LAYERS))]
    texts = layered(dict(zip(LAYERS, locks, strict=True)))
    beside = resolve("pyproject.toml", "--extra=server", f"--extra={BESIDE}", constraints=everything)
    texts[BESIDE] = layered({"server": locks[0], BESIDE: beside})[BESIDE]
    texts |= {group: resolve("--group", group, constraints=build) for group in ("install", "e2e")}
    for name, text in texts.items():
        with atomic_write(LOCKS / f"{name}.txt") as temporary:
            temporary.write_text(HEADER + text)
        print(f"requirements/{name}.txt: {len(entries(text))} entries")


if __name__ == "__main__":
    main()
