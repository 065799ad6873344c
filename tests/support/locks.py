"""Lock files, and the environment that tests run in, as versions by package."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ROOT / "requirements"
INSTALL = LOCKS / "install.txt"
LAYERS = {
    "server": [LOCKS / "torch.txt", LOCKS / "timm.txt", LOCKS / "server.txt"],
    "train": [LOCKS / "train.txt"],
    "bench": [LOCKS / "bench.txt"],
    "dev": [LOCKS / "dev.txt"],
}
"""The files that each extra adds to those of the ones before it."""
CVAT = LOCKS / "cvat.txt"
"""What the extra `cvat` adds to `server` alone."""


def extras_up_to(extra: str) -> list[str]:
    """An extra and those whose files it is installed on."""
    names = list(LAYERS)
    return names[: names.index(extra) + 1]


def files_of(extra: str) -> list[Path]:
    """All files that an extra is installed from."""
    return [file for name in extras_up_to(extra) for file in LAYERS[name]]


def asked_for(extra: str | None) -> list[Requirement]:
    """What pyproject.toml asks for, with an extra or without; an extra may refer to others."""
    found = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra] if extra else ()):
        inner = [one for name in requirement.extras for one in asked_for(name)]
        found += inner if requirement.name == PROJECT["project"]["name"] else [requirement]
    return found


@cache
def requirements(path: Path) -> list[Requirement]:
    """The entries of a lock file, whatever environment they are for."""
    lines = [line.rstrip(" \\") for line in path.read_text().splitlines() if re.match("[a-z0-9]", line)]
    return [Requirement(line) for line in lines]


def locked(paths: Iterable[Path], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Versions by package, of the entries meant for this machine and Python, or for the values of `environment`."""
    found: dict[str, str] = {}
    for entry in (entry for path in paths for entry in requirements(path)):
        if entry.marker is None or entry.marker.evaluate(dict(environment or {})):
            name, version = canonicalize_name(entry.name), str(entry.specifier).removeprefix("==")
            assert found.setdefault(name, version) == version, f"{name} is locked at {found[name]} and at {version}"
    return found


def installed() -> dict[str, str]:
    """Versions by package of the environment that this Python runs in, but for this project itself."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found = {canonicalize_name(one.name): one.version for one in distributions(path=list(folders))}
    return {name: version for name, version in found.items() if name != "skipclick"}


def closure(
    asked_for: Iterable[Requirement], versions: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> Iterator[Requirement]:
    """What is asked for and all that it needs, by the metadata of the packages installed at the locked version.

    `versions` are the locked ones, `environment` is as for `locked`.
    """
    done: set[tuple[str, frozenset[str]]] = set()
    todo = list(asked_for)
    while todo:
        requirement = todo.pop()
        yield requirement
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        wanted: list[dict[str, Any]] = [{**(environment or {}), "extra": extra} for extra in ("", *extras)]
        for need in needs(name, versions.get(name)):
            if need.marker is None or any(need.marker.evaluate(each) for each in wanted):
                todo.append(need)


@cache
def needs(name: str, version: str | None) -> list[Requirement]:
    """What an installed package needs; nothing is known where it has another version."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return []
    return [Requirement(line) for line in package.requires or ()] if package.version == version else []
