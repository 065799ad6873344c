"""Protects the lock files: they hold what pyproject.toml asks for, completely and hashed, and environments equal them.

Nothing here asks a package index: what packages need is read from the metadata of the installed ones.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from deploy import lock
from tests.support.locks import (
    CVAT,
    INSTALL,
    LAYERS,
    LOCKS,
    PROJECT,
    ROOT,
    asked_for,
    closure,
    extras_up_to,
    files_of,
    installed,
    locked,
    requirements,
)

RENEW = "run `make lock`"
PYTHONS = ("3.11", "3.12", "3.13")
FILES = sorted(LOCKS.glob("*.txt"))


def environment(python: str) -> dict[str, str]:
    """The markers' values of another Python on this machine; none where it is the running one."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {} if python == running else {"python_version": python, "python_full_version": f"{python}.4"}


def asked_for_up_to(extra: str) -> list[Requirement]:
    """What the files up to an extra's are there for."""
    return [one for name in extras_up_to(extra) for one in asked_for(name)]


def test_this_environment_equals_the_lock() -> None:
    here, expected = installed(), locked([INSTALL, *files_of("dev")])
    differences = {
        name: f"installed {here.get(name)}, locked {expected.get(name)}"
        for name in sorted(here.keys() | expected.keys())
        if here.get(name) != expected.get(name)
    }
    assert not differences, "`make distclean test` builds the environment of the lock"


@pytest.mark.parametrize("extra", list(LAYERS))
@pytest.mark.parametrize("python", PYTHONS)
def test_a_layer_has_all_that_is_needed(extra: str, python: str) -> None:
    """For other Pythons than this one as far as they have the same versions, whose metadata is at hand."""
    versions = locked(files_of(extra), environment(python))
    for requirement in closure(asked_for_up_to(extra), versions, environment(python)):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not locked; {RENEW}"
        assert requirement.specifier.contains(versions[name], prereleases=True), f"{requirement}; {RENEW}"


@pytest.mark.parametrize("extra", list(LAYERS))
def test_a_layer_has_nothing_else(extra: str) -> None:
    versions = locked(files_of(extra))
    found = {canonicalize_name(requirement.name) for requirement in closure(asked_for_up_to(extra), versions)}
    assert versions.keys() == found, RENEW


@pytest.mark.parametrize("python", PYTHONS)
def test_cvat_s_agent_is_installed_beside_the_server_alone(python: str) -> None:
    """At the versions of the development environment, in which its tests run."""
    own, versions = locked([CVAT], environment(python)), locked([*files_of("server"), CVAT], environment(python))
    found = {canonicalize_name(one.name) for one in closure(asked_for("cvat"), versions, environment(python))}
    assert found <= versions.keys(), RENEW
    assert own.keys() <= found, RENEW
    assert not own.keys() & locked(files_of("server"), environment(python)).keys(), RENEW
    assert own.items() <= locked(files_of("dev"), environment(python)).items(), RENEW


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locked_versions_are_made_for_each_python(python: str) -> None:
    for name, version in locked([INSTALL, *files_of("dev")], environment(python)).items():
        package = distribution(name)
        if package.version == version and (made_for := package.metadata["Requires-Python"]):
            assert SpecifierSet(made_for).contains(f"{python}.4"), f"{name} {version} is made for Python {made_for}"


def test_every_extra_is_locked_at_the_version_that_it_names() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {*LAYERS, "eval", "cvat", "openvino"}
    for extra in extras:
        assert all(re.fullmatch(r"==[^*,]+", str(one.specifier)) for one in asked_for(extra))
    assert {str(one) for one in asked_for("eval")} <= {str(one) for one in asked_for("train")}
    assert {str(one) for one in asked_for("openvino")} <= {str(one) for one in asked_for("server")}


def test_the_end_to_end_environment_has_what_is_asked_for() -> None:
    """What it needs beyond that is checked where it is installed, in tests/e2e."""
    for python in PYTHONS:
        versions = locked([LOCKS / "e2e.txt"], environment(python))
        for requirement in map(Requirement, PROJECT["dependency-groups"]["e2e"]):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), RENEW


def test_all_environments_build_with_the_same_setuptools() -> None:
    (build,) = map(Requirement, PROJECT["build-system"]["requires"])
    for paths in ([INSTALL], files_of("dev"), [LOCKS / "e2e.txt"]):
        assert build.specifier == SpecifierSet(f"=={locked(paths)['setuptools']}"), RENEW
    assert {one.name for one in requirements(INSTALL)} == {"pip", "setuptools"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_lock_file_is_sorted_pins_with_hashes_and_their_reason(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(lock.HEADER)
    assert "://" not in text  # no index: which one is asked depends on where it is installed
    body = text.removeprefix(lock.HEADER).removeprefix(lock.FIRST_LINES.get(path.stem, ""))
    entries = re.split(r"\n(?=\S)", body.rstrip("\n"))
    for entry in entries:
        first, *hashes, reason = [line.removesuffix(" \\") for line in entry.splitlines()]
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;]+( ; .+)?", first), first
        assert hashes, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
        assert re.fullmatch(r"    # via [^/]+", reason), reason
    names = [re.split("==", entry)[0] for entry in entries]
    assert names == sorted(names)


def test_torch_has_a_lock_of_its_own() -> None:
    """Together with the server's it is what requirements.txt names, and the image installs."""
    torch, *others = (locked([path]) for path in LAYERS["server"])
    assert {"torch", "torchvision", "triton"} <= torch.keys()
    assert not any(other.keys() & torch.keys() for other in others)
    assert all(lock.OF_TORCH.match(f"{name}==") for name in torch)
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"-r {path.relative_to(ROOT)}" for path in LAYERS["server"]]


def test_the_image_for_cpus_installs_all_that_needs_neither_torch_nor_timm() -> None:
    """Debian has the rest: torch and NumPy, and what they need."""
    own = locked([LOCKS / "server.txt"])
    elsewhere = locked([LOCKS / "torch.txt", LOCKS / "timm.txt"]).keys()
    assert not own.keys() & elsewhere
    wanted = [one for one in asked_for("server") if one.name not in lock.NOT_ON_CPU]
    found = {canonicalize_name(one.name) for one in closure(wanted, own)} - set(lock.NOT_ON_CPU)
    assert own.keys() == found, RENEW


FLASK = "flask==1 \\\n    --hash=sha256:aa\n    # via skipclick (pyproject.toml)\n"
NVIDIA = "nvidia-nccl-cu13==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n    # via torch\n"
TIMM = (
    "hub==3 \\\n    --hash=sha256:ee\n    # via timm\n"
    "timm==5 \\\n    --hash=sha256:ff\n    # via skipclick (pyproject.toml)\n"
    "yaml==6 \\\n    --hash=sha256:00\n    # via hub, timm\n"
)
JINJA = "jinja2==7 \\\n    --hash=sha256:11\n    # via flask, hub\n"
PYTEST = "pytest==4 \\\n    --hash=sha256:dd\n    # via skipclick (pyproject.toml)\n"


def test_a_layer_s_file_holds_what_it_adds() -> None:
    other_marker = FLASK.replace("flask==1", "flask==1 ; sys_platform == 'linux'")
    server, dev = TIMM + other_marker + JINJA + NVIDIA, TIMM + FLASK + JINJA + NVIDIA + PYTEST
    assert lock.layered({"server": server, "dev": dev}) == {
        "torch": NVIDIA,
        "timm": TIMM,
        "server": other_marker + JINJA,
        "dev": "-r bench.txt\n" + FLASK + PYTEST,
    }


def test_reasons_do_not_mention_the_constraints() -> None:
    lock_text = "    # via -c /tmp/a.txt, flask\n    # via flask, -c /tmp/a.txt, jinja2\n    # via torch\n"
    assert lock.without_constraints(lock_text) == "    # via flask\n    # via flask, jinja2\n    # via torch\n"
