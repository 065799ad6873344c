"""What a figure was measured with: commit, software, processor."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "opencv-python-headless", "timm", "pillow", "scikit-image", "transformers")


def software_versions() -> dict[str, str | None]:
    """By name; None for what is not installed. The commit ends in "-dirty" where tracked files were changed."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: _package(package) for package in PACKAGES},
        "processor": _processor(),
        "cuda device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return git.stdout.strip() or None


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python's own name has to do
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
