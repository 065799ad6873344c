"""Protects the architecture: imports go one way only, between the packages and inside the backend (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = ("skipclick", "skipclick.evaluation", "train", "backend", "bench")
"""A package imports itself and those before it."""

BACKEND = (
    {"settings", "logs", "executor", "places", "prompts", "device", "http_client", "small_files"},
    {"label_studio", "cvat"},
    {"images"},
    {"finetune"},
    {"heads", "click_memo"},
    {"annotator", "known_picture"},
    {"factory"},
    {"readiness"},
    {"web"},
    {"commands", "wsgi", "official_runner", "gunicorn", "cvat_agent"},
    {"worker", "__main__"},
)
"""The backend's modules and sub-packages from the bottom up; one may import those of its own level and below."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import of a file, the imported names included: `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # tests/e2e imports its own files relatively
                continue
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package_level(dotted: str) -> int | None:
    """The place of a module in `PACKAGES`; None for a module of nobody's."""
    found = [level for level, package in enumerate(PACKAGES) if f"{dotted}.".startswith(f"{package}.")]
    return max(found, default=None)


def backend_level(dotted: str) -> int:
    name = dotted.split(".")[1]
    return next(level for level, names in enumerate(BACKEND) if name in names)


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("package", [package for package in PACKAGES if "." not in package])
def test_a_package_imports_only_those_before_it(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imports(path)
        if (level := package_level(name)) is not None and level > (package_level(dotted_name(path)) or 0)
    ]
    assert wrong == []


def test_the_backend_imports_in_one_order() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("backend")
        if path != ROOT / "backend" / "__init__.py"
        for line, name in imports(path)
        if name.startswith("backend.") and backend_level(name) > backend_level(dotted_name(path))
    ]
    assert wrong == []


def test_no_test_module_imports_another() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("tests")
        for line, name in imports(path)
        if any(part.startswith("test_") for part in name.split(".")) and name.startswith("tests.")
    ]
    assert wrong == []
