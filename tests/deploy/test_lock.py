"""Protects the image's lock files: they say what requirements.txt says, completely, and each file is hashed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.lock import HEADER, LOCK, OF_TORCH, REQUIREMENTS, TORCH_LOCK, split

RENEW = "run `make lock`"


def locked(path: Path) -> dict[str, str]:
    """Versions by package, of the entries that are meant for this Python and this machine."""
    lines = [line.rstrip(" \\") for line in path.read_text().splitlines() if re.match("[a-z0-9]", line)]
    entries = [Requirement(line) for line in lines]
    meant = [entry for entry in entries if entry.marker is None or entry.marker.evaluate()]
    return {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in meant}


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    return locked(LOCK) | locked(TORCH_LOCK)


def asked_for() -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_every_requirement_is_locked_at_its_version(versions: dict[str, str]) -> None:
    for requirement in asked_for():
        assert f"=={versions.get(canonicalize_name(requirement.name))}" == str(requirement.specifier), RENEW


def test_what_the_packages_need_is_locked_and_nothing_else(versions: dict[str, str]) -> None:
    """Follows the metadata of the installed packages, which are the locked ones where this environment is current."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = asked_for()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in found:
            continue
        found.add((name, extras))
        assert name in versions, f"{name} is not locked; {RENEW}"
        assert requirement.specifier.contains(versions[name], prereleases=True), f"{requirement}; {RENEW}"
        try:
            needs = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed here, so its requirements are not known")
        wanted = [{"extra": extra} for extra in ("", *extras)]
        todo += [need for need in needs if need.marker is None or any(need.marker.evaluate(each) for each in wanted)]
    assert {name for name, _ in found} == versions.keys(), RENEW


@pytest.mark.parametrize("path", [LOCK, TORCH_LOCK])
def test_a_lock_is_hashes_and_pins_alone(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(HEADER)
    entries = re.split(r"\n(?=\S)", text.removeprefix(HEADER).rstrip("\n"))
    for entry in entries:
        first, *hashes = [line.removesuffix(" \\") for line in entry.splitlines()]
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;]+( ; .+)?", first), first
        assert hashes, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    assert "://" not in text  # no index: whose it is depends on where the image is built


def test_torch_has_a_lock_of_its_own(versions: dict[str, str]) -> None:
    assert {"torch", "torchvision", "triton"} <= locked(TORCH_LOCK).keys()
    assert not locked(LOCK).keys() & locked(TORCH_LOCK).keys()
    assert all(OF_TORCH.match(f"{name}==") for name in locked(TORCH_LOCK))


def test_splitting_loses_nothing() -> None:
    flask = "flask==1 \\\n    --hash=sha256:aa\n"
    nvidia = "nvidia-nccl-cu13==2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
    assert split(nvidia + flask + "torch==3\n") == (flask, nvidia + "torch==3\n")
