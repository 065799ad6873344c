"""All that `make gpu-check` needs on a bare machine with a GPU, in one folder: `make gpu-pack`.

Such a machine is taken to have Python, PyTorch, the packages of `GIVEN`, and no network. The folder holds this
checkout's code, tests, weights and check photos, and wheels of what else they import, at the versions and with the
hashes of requirements/. On the machine, `sh run.sh` in that folder runs bench/gpu_check.py with the options it is
given. Where the checkout is there, only the folder `wheels` is needed beside it. Exit status 1 if the pack is larger
than 64 MiB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.lock import LAYERS, LOCKS, ROOT, entries

MAX_BYTES = 64 << 20
CODE = ("backend", "bench", "skipclick", "tests", "train", "pyproject.toml")
LEFT_OUT = ("tests/e2e/", "tests/image/", "tests/scale/")  # they need a browser, root or a load balancer

GIVEN = """torch torchvision triton numpy scipy matplotlib pillow opencv-python-headless timm transformers tokenizers
safetensors huggingface-hub requests urllib3 tqdm"""
"""What a machine with PyTorch has, in whatever version."""

NEEDED = """flask werkzeug jinja2 markupsafe click blinker itsdangerous gunicorn packaging orjson defusedxml
prometheus-client pydantic pydantic-core pydantic-settings python-dotenv annotated-types typing-inspection
typing-extensions pytest pytest-timeout pluggy iniconfig pygments hypothesis sortedcontainers"""
"""What is packed."""

RUN = """#!/bin/sh
# Install what is packed here, beside the code, and run the check: sh run.sh [--resume]
set -e
cd "$(dirname "$0")"
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
PYTHONPATH="$PWD:$PWD/site" exec python3 bench/gpu_check.py "$@"
"""


def locked() -> dict[str, str]:
    """By name: the entries of the lock files that are packed, with their hashes."""
    found = [entries((LOCKS / f"{layer}.txt").read_text()) for layer in ("timm", *LAYERS)]
    by_name = {line.partition("==")[0]: entry for layer in found for line, entry in layer.items()}
    return {name: by_name[name] for name in sorted(NEEDED.split())}


def copy_code(folder: Path) -> None:
    """The files of `CODE` that git knows, with their folders."""
    command = ["git", "ls-files", "-z", "--", *CODE]
    names = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\0")
    for name in filter(None, names):
        if not name.startswith(LEFT_OUT):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def download_wheels(folder: Path, python: str) -> None:
    """The wheels for Linux on x86-64. Raises `CalledProcessError`."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(locked().values()))
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--implementation=cp", f"--python-version={python}", *platforms]
        subprocess.run([*command, "-d", str(folder), "-r", file.name], check=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "gpu-pack")
    parser.add_argument("--python", default="3.12", help="the machine's version of Python (default: 3.12)")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    copy_code(options.folder)
    download_wheels(options.folder / "wheels", options.python)
    (options.folder / "run.sh").write_text(RUN)
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{options.folder}: {size / (1 << 20):.1f} MiB; on the machine: sh run.sh")
    return 1 if size > MAX_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
