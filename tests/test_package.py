"""Protects `pip install`: the wheel holds skipclick alone and works by itself; each extra has what its code imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import cv2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skipclick import __version__
from tests.support.locks import ROOT, asked_for, closure, files_of, locked

PHOTO = ROOT / "tests" / "e2e" / "photos" / "coffee.jpg"
OWN = ("skipclick", "train", "backend", "bench")


def run(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What a command printed; `path` is where it finds packages besides this environment's."""
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its work beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in OWN:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", ".", cwd=source)
    (built,) = source.glob("*.whl")
    return built


def test_the_wheel_holds_skipclick_alone_with_its_weights(wheel: Path) -> None:
    assert wheel.name == f"skipclick-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {"skipclick", f"skipclick-{__version__}.dist-info"}
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "skipclick").rglob("*") if path.is_file()}
    assert {name for name in tracked if "__pycache__" not in name} == {
        name for name in names if "dist-info" not in name
    }
    assert {"skipclick/py.typed", "skipclick/weights/skipclick-lite.safetensors"} <= names


def test_the_installed_wheel_segments_from_the_shell_and_from_python(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    command = [site / "bin" / "skipclick", "segment", "photo.jpg", "--positive", "120,80", "-o", "mask.png"]
    run(*command, cwd=tmp_path, path=site)
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert set(mask.ravel()) == {0, 255}
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    before = "import cv2, skipclick; image = cv2.imread('photo.jpg', cv2.IMREAD_COLOR_RGB)\n"
    after = "\nprint(skipclick.__file__, second.shape == image.shape[:2])"
    found = run(sys.executable, "-c", before + code + after, cwd=tmp_path, path=site)
    assert found.split() == [str(site / "skipclick" / "__init__.py"), "True"]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The top-level names that a file imports from elsewhere, and whether importing the file imports them."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], at_once
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    for name, at_once in visit(ast.parse(path.read_text()), True):
        if name not in sys.stdlib_module_names and name not in OWN:
            yield name, at_once


ELSEWHERE = {"label_studio_ml", "cvat_sdk", "openvino"}
"""Label Studio's runner, which has no release to depend on, CVAT's agent and a runtime of choice: extras of their own,
imported where they start the backend or are there."""


@pytest.mark.parametrize(
    ("package", "at_once", "later"),
    [
        ("skipclick", None, None),
        ("skipclick/evaluation", None, "eval"),
        ("train", None, "train"),
        ("backend", "server", "server"),
        ("bench", "bench", "bench"),
    ],
)
def test_an_extra_has_what_its_code_imports(package: str, at_once: str | None, later: str | None) -> None:
    """Fine-tuning is in the image, which has the extra `server` alone: what it imports of `train` and
    `skipclick.evaluation` needs no other one until a function asks for it."""
    distributions = packages_distributions()
    for path in sorted((ROOT / package).rglob("*.py")):
        if package == "skipclick" and "evaluation" in path.parts:
            continue
        for name, is_needed_at_once in imports(path):
            if name in ELSEWHERE:
                continue
            found = {canonicalize_name(one) for one in distributions.get(name, ())}
            assert found & available(at_once if is_needed_at_once else later), f"{path} imports {name}"


@cache
def available(extra: str | None) -> set[str]:
    """Packages that come with an extra, or without any."""
    versions = locked(files_of("dev"))
    wanted: list[Requirement] = asked_for(extra)
    return {canonicalize_name(requirement.name) for requirement in closure(wanted, versions)}
