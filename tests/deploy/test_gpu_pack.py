"""Protects `make gpu-pack`: what it packs is locked, and enough for the check on a machine with PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.gpu_pack import GIVEN, MAX_BYTES, NEEDED, copy_code, locked

IMPORTED = """
import importlib, json, sys
from importlib.metadata import packages_distributions
from pathlib import Path
import gunicorn, pytest_timeout, backend.web.app, bench.gpu_check
from bench.gpu_measures import cuda_tests
for path in [Path("tests/conftest.py"), *cuda_tests()]:
    importlib.import_module(".".join(path.absolute().relative_to(Path.cwd()).with_suffix("").parts))
of = packages_distributions()
print(json.dumps([name for module in sys.modules for name in of.get(module.partition(".")[0], [])]))
"""
OWN = {"skipclick", "setuptools", "pip"}
COME_WITH_GIVEN = """anyio certifi charset-normalizer contourpy cuda-bindings cuda-pathfinder cycler filelock fonttools
fsspec h11 httpcore2 httpx2 idna kiwisolver mpmath networkx pyparsing python-dateutil pyyaml regex six sympy
truststore"""


def test_all_that_is_imported_is_packed_or_given(tmp_path: Path) -> None:
    copy_code(tmp_path)
    command = [sys.executable, "-c", IMPORTED]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": "."})
    names = {name.lower().replace("_", "-") for name in json.loads(run.stdout)}
    assert names - OWN - set(f"{NEEDED} {GIVEN} {COME_WITH_GIVEN}".split()) == set()
    assert names >= {"flask", "torch", "pytest", "pydantic-core"}
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < MAX_BYTES / 2  # the rest is for wheels


def test_each_package_has_one_version_and_its_hashes() -> None:
    for name, entry in locked().items():
        assert entry.startswith(f"{name}==")
        assert "--hash=sha256:" in entry
