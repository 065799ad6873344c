"""Protects that what is served is always a complete version, whoever is killed when; no number is used twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.finetune.versions import Version, Versions
from skipclick.head import head_state
from skipclick.model import SkipClick
from skipclick.proposals import Prototypes
from tests.support.tuned_models import base_model, tuned_model


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path)


def write(versions: Versions, project: int = 12, seed: int = 1) -> Version:
    return versions.write(project, tuned_model(seed), base_model(), about={"objects": 50}, report={"noc": 3.5})


def test_a_version_keeps_what_it_was_given(versions: Versions, tmp_path: Path) -> None:
    picture = tmp_path / "drawn.png"
    picture.write_bytes(b"a picture")
    versions.write(12, tuned_model(1), base_model(), about={"objects": 50}, report={"noc": 3.5}, picture=picture)
    version = versions.version(12, 1)
    assert version.name == "tiny+p12.v1"
    assert version.about["objects"] == 50
    assert version.report == {"noc": 3.5}
    assert version.picture.read_bytes() == b"a picture"
    wanted = head_state(tuned_model(1))
    assert wanted.keys() == version.head().keys()
    assert all(torch.equal(wanted[key], tensor) for key, tensor in version.head().items())
    assert sorted(path.name for path in version.folder.iterdir()) == [
        "about.json",
        "model.safetensors",
        "report.json",
        "report.png",
    ]


def test_prototypes_are_kept_and_damage_is_noticed(versions: Versions) -> None:
    known = Prototypes({"Ski": np.eye(3, dtype=np.float32)})
    about = {"proposals": {"helps": True}}
    versions.write(12, tuned_model(1), base_model(), about=about, report={}, prototypes=known)
    version = versions.version(12, 1)
    assert version.proposals_help
    np.testing.assert_array_equal(version.prototypes().vectors["Ski"], known.vectors["Ski"])
    (version.folder / "prototypes.safetensors").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="cannot be used"):
        version.prototypes()
    without = write(versions)
    assert not without.proposals_help
    with pytest.raises(ValueError, match="cannot be used"):
        without.prototypes()


def test_a_head_with_a_value_that_is_no_number_is_never_in_service(versions: Versions) -> None:
    """One is enough for empty masks, and the digest says nothing of it."""
    model = tuned_model(1)
    with torch.no_grad():
        next(iter(head_state(model).values())).view(-1)[0] = float("nan")
    version = versions.write(12, model, base_model(), about={}, report={})
    with pytest.raises(ValueError, match="not finite"):
        version.head()
    with pytest.raises(ValueError, match="not finite"):
        versions.promote(12, 1)
    assert versions.current(12) is None


def test_a_written_version_is_not_in_service_before_it_is_promoted(versions: Versions) -> None:
    assert versions.current(12) is None
    write(versions)
    assert versions.current(12) is None
    versions.promote(12, 1)
    assert versions.current(12) == 1
    assert versions.current(13) is None


def test_rollback_goes_back_step_by_step_to_the_base(versions: Versions) -> None:
    for number in (1, 2, 3):
        write(versions, seed=number)
        versions.promote(12, number)
    versions.promote(12, 3)  # once more: not a step of its own
    assert [versions.rollback(12) for _ in range(3)] == [2, 1, None]
    assert versions.current(12) is None
    with pytest.raises(ValueError, match="project 12 is served by the base model"):
        versions.rollback(12)
    versions.promote(12, 2)
    versions.promote(12, None)
    assert versions.current(12) is None
    with pytest.raises(ValueError, match="is served by the base model"):
        versions.rollback(12)


def test_rollback_passes_over_what_was_replaced(versions: Versions) -> None:
    for number in range(1, 5):
        versions.write(12, tuned_model(number), base_model(), about={}, report={})
    versions.promote(12, 1)
    versions.promote(12, 2)
    versions.promote(12, 3, in_place_of=2)
    versions.promote(12, 4, in_place_of=2)  # which is no more in service: nothing is taken away
    versions.delete(12, [2])
    assert versions.numbers(12) == [1, 3, 4]
    assert [versions.rollback(12) for _ in range(2)] == [3, 1]


def test_rollback_passes_over_versions_that_are_gone(versions: Versions) -> None:
    for number in (1, 2, 3, 4):
        write(versions, seed=number)
        versions.promote(12, number)
    assert versions.prune(12, keep=1) == [1, 2, 3]
    assert versions.rollback(12) is None


def test_pruning_spares_the_one_in_service_and_numbers_never_come_again(versions: Versions) -> None:
    for number in (1, 2, 3, 4):
        write(versions, seed=number)
    versions.promote(12, 1)
    assert versions.prune(12, keep=1) == [2, 3]
    assert versions.numbers(12) == [1, 4]
    assert write(versions).number == 5
    with pytest.raises(ValueError, match="at least one"):
        versions.prune(12, keep=0)


def test_what_is_not_there_or_damaged_is_not_promoted(versions: Versions) -> None:
    with pytest.raises(ValueError, match="project 12 has no version v1; there is none"):
        versions.promote(12, 1)
    version = write(versions)
    with pytest.raises(ValueError, match="project 12 has no version v7; there is v1"):
        versions.promote(12, 7)
    weights = version.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        versions.promote(12, 1)
    weights.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        versions.promote(12, 1)
    (version.folder / "about.json").write_text("{")
    with pytest.raises(ValueError, match=r"about\.json is damaged"):
        versions.promote(12, 1)
    assert versions.current(12) is None


def test_a_candidate_with_another_backbone_is_refused(versions: Versions) -> None:
    model = tuned_model(1)
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="backbone differs"):
        versions.write(12, model, base_model(), about={}, report={})
    assert versions.numbers(12) == []


def test_a_version_of_another_base_is_not_put_on_this_one(versions: Versions) -> None:
    version = write(versions)
    torch.manual_seed(9)
    with pytest.raises(ValueError, match="a base model other than"):
        version.model(SkipClick(base_model().config, version="other"))
    model = version.model(base_model())
    assert model.version == "tiny+p12.v1"
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in tuned_model(1).state_dict().items())


def test_writers_at_once_get_numbers_of_their_own(versions: Versions) -> None:
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda seed: write(versions, seed=seed), range(8)))
    assert sorted(version.number for version in written) == list(range(1, 9))
    assert all(version.head() for version in written)


def test_whoever_is_killed_when_what_is_served_is_complete(tmp_path: Path) -> None:
    """Kill -9 at 50 random moments; after each the pointer names a whole version, and the next writer goes on."""
    versions, rng, seen, longest = Versions(tmp_path), random.Random(0), set(), 0.2
    root = Path(__file__).parents[3]
    nursery = subprocess.Popen(
        [sys.executable, root / "tests" / "support" / "promoting_process.py", tmp_path, "12"],
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(50):
            nursery.stdin.write("another\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            assert nursery.stdout.readline() == "ended\n"
            numbers, current = versions.numbers(12), versions.current(12)
            assert current is None or current in numbers
            assert all(versions.version(12, number).head() for number in numbers)
            assert all("number" in versions.version(12, number).report for number in numbers)
            longest = 2 * longest if current in seen else 0.2  # on a busy machine nothing may get done in a moment
            seen.add(current)
    assert len(seen) > 5
    assert write(versions).number == max(numbers) + 1
    assert list((tmp_path / "versions" / "12").glob(".*.tmp")) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"base": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_about_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "versions" / "12" / "v1"
    folder.mkdir(parents=True)
    (folder / "about.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        Versions(tmp_path).version(12, 1)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"v99999999999999999999999\n", b"nonsense\n", b""])
def test_a_damaged_pointer_never_raises(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "versions" / "12"
    folder.mkdir(parents=True)
    (folder / "current").write_bytes(content)
    assert Versions(tmp_path).current(12) in (None, 99999999999999999999999)
