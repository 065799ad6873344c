"""Protects training checkpoints: whole or not there at all, the newest few and the best, safe to read."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from skipclick.model import SkipClick
from tests.support.training_process import SMALL_VIT
from train.checkpoints import Identity, TrainingState, check_same, read_state, save_state
from train.step import new_state

IDENTITY = Identity(SMALL_VIT, {"fingerprint": "f", "photos": 3, "sources": ["1*folder:a"]}, {"torch": "2"}, ("fit",))


@pytest.fixture
def state() -> TrainingState:
    return new_state(SkipClick(SMALL_VIT.model), SMALL_VIT, torch.device("cpu"))


def save(state: TrainingState, folder: Path, step: int, *, best: bool = False) -> Path:
    state.step = step
    return save_state(state, IDENTITY, folder, keep=2, best=best)


def test_the_newest_few_and_the_best_stay(state: TrainingState, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(state, tmp_path, step, best=step == 2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000003.pt",
        "step-00000004.pt",
    ]
    assert read_state(tmp_path / "last.pt")["step"] == 4
    assert read_state(tmp_path / "best.pt")["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "checkpoints", "last.pt"]


def test_a_file_system_without_links_gets_copies(
    state: TrainingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*names: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    save(state, tmp_path, 1, best=True)
    assert read_state(tmp_path / "best.pt")["step"] == 1


def test_a_write_that_breaks_off_leaves_the_last_good_checkpoint(
    state: TrainingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(state, tmp_path, 1)

    def full(content: Any, file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    check_refusal(state, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(state: TrainingState, small_disk: Path) -> None:
    size = save(state, small_disk, 1).stat().st_size
    (small_disk / "filler").write_bytes(bytes(900 * 1024 - size * 3 // 2))
    check_refusal(state, small_disk)


def check_refusal(state: TrainingState, folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"step 2 could not be written .*No space left.*last\.pt is the last good"
    ) as e:
        save(state, folder, 2)
    assert "\n" not in str(e.value)
    assert read_state(folder / "last.pt")["step"] == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001.pt"]


def test_other_files_are_no_training_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for content in (b"", b"no zip", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a training checkpoint"):
            read_state(path)
    torch.save({"format": "another"}, path)
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        read_state(path)


def test_only_the_length_of_a_run_at_a_constant_rate_may_change(state: TrainingState, tmp_path: Path) -> None:
    saved = read_state(save(state, tmp_path, 1))
    check_same(IDENTITY, saved)
    check_same(replace(IDENTITY, config=replace(SMALL_VIT, steps=99)), saved)
    for changed, said in [
        ({"seed": 1}, "seed"),
        ({"batch_size": 1}, "batch_size"),
        ({"schedule": "cosine"}, "schedule"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_same(replace(IDENTITY, config=replace(SMALL_VIT, **changed)), saved)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data"):
        check_same(replace(IDENTITY, data=IDENTITY.data | {"fingerprint": "g"}), saved)
