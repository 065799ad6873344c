"""Write the image's lock files anew: `make lock`.

`requirements.lock` and `requirements-torch.lock` together are everything that `requirements.txt` needs, each package at
one version, each file of it with its SHA-256. They are two because torch and NVIDIA's libraries are most of the
image and seldom change: they become a layer of their own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from skipclick.atomic_io import replaced_atomically

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS, LOCK, TORCH_LOCK = (
    ROOT / name for name in ("requirements.txt", "requirements.lock", "requirements-torch.lock")
)
HEADER = "# Made from requirements.txt by `make lock`; not to be edited.\n"
OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==")


def resolve(requirements: Path) -> str:
    """Pinned and hashed requirements for Linux and Python 3.11 or newer. Raises `CalledProcessError`."""
    command = [sys.executable, "-m", "uv", "pip", "compile", str(requirements), "--quiet", "--no-config"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def split(lock: str) -> tuple[str, str]:
    """The lock's entries that do not belong to torch, and those that do. An entry's hashes follow it, indented."""
    entries: list[str] = re.findall(r"^\S.*\n(?:[ \t].*\n)*", lock, re.MULTILINE)
    of_torch = [entry for entry in entries if OF_TORCH.match(entry)]
    return "".join(entry for entry in entries if entry not in of_torch), "".join(of_torch)


def main() -> None:
    """Resolve, split, write."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    for path, entries in zip((LOCK, TORCH_LOCK), split(resolve(REQUIREMENTS)), strict=True):
        with replaced_atomically(path) as temporary:
            temporary.write_text(HEADER + entries)
        print(f"{path.name}: {len(re.findall(r'^[a-z]', entries, re.MULTILINE))} entries")


if __name__ == "__main__":
    main()
