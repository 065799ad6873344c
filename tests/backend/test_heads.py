"""Protects the change of a project's head in a running server: at once, without a second look at any image, and so that
every mask is that of one version, whatever requests came before and whichever are under way."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.factory import build_heads
from backend.finetune.versions import Versions
from backend.heads import Head, Heads
from backend.settings import Settings
from skipclick.cache import ByteLru, SharedCache
from skipclick.features import read_features, write_features
from skipclick.head import head_state
from skipclick.predictor import Predictor
from tests.support.project_heads import (
    PROJECT,
    Counting,
    OnePhoto,
    asked,
    assert_answered_by,
    expected,
    model,
    name,
    photo,
)
from tests.support.tuned_models import base_model


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """Two versions of project 12, none in service."""
    versions = Versions(tmp_path)
    for seed in (1, 2):
        versions.write(PROJECT, model(seed), model(None), about={}, report={})
    return versions


@pytest.fixture
def predictor() -> Counting:
    return Counting(model(None))


@pytest.fixture
def annotator(tmp_path: Path, versions: Versions, predictor: Counting) -> Iterator[Annotator]:
    executor = DeviceExecutor()
    heads = build_heads(Settings(model_dir=tmp_path), model(None), predictor, executor)
    features = SharedCache("features", ByteLru(64 << 20))
    made = Annotator(heads, OnePhoto(), executor, features=features, memo_bytes=8 << 20)
    yield made
    made.close()


def test_the_heads_differ() -> None:
    """Else the tests below could not fail."""
    for count in range(3):
        assert len({expected(number)[count].tobytes() for number in (None, 1, 2)}) == 3


def test_each_project_is_answered_by_its_own_head(annotator: Annotator, versions: Versions) -> None:
    versions.promote(PROJECT, 1)
    for project, number in ((PROJECT, 1), (13, None), (None, None), (PROJECT, 1)):
        assert_answered_by(number, asked(annotator, project=project))
        assert annotator.version_of(project) == name(number)
    assert annotator.versions() == [name(None), name(1), name(2)]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("file", ["current", "v1/about.json", "v1/model.safetensors", "v1"])
def test_what_is_no_file_of_a_version_is_not_waited_for(
    annotator: Annotator, versions: Versions, tmp_path: Path, file: str, kind: str
) -> None:
    versions.promote(PROJECT, 1)
    path = tmp_path / "versions" / str(PROJECT) / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(asked(annotator, project=PROJECT)), daemon=True)
    asking.start()
    asking.join(30)
    assert_answered_by(None, answers[0])


def test_a_new_head_needs_no_second_look_and_no_more_memory(
    annotator: Annotator, versions: Versions, predictor: Counting
) -> None:
    assert_answered_by(None, asked(annotator))
    before = annotator.cache_stats()["features"]
    for number in (1, 2, None, 1):
        versions.promote(PROJECT, number)
        assert_answered_by(number, asked(annotator))
    after = annotator.cache_stats()["features"]
    assert len(predictor.encoded) == 1
    assert (after.entries, after.bytes) == (before.entries, before.bytes)  # what the old head had prepared is gone
    kept = annotator._features.peek("cup")
    assert kept is not None
    assert after.bytes == kept.nbytes


def test_a_sequence_that_meets_a_new_version_in_the_middle_is_answered_as_if_it_had_begun_with_it(
    annotator: Annotator, versions: Versions
) -> None:
    versions.promote(PROJECT, 1)
    assert_answered_by(1, asked(annotator, 2), 2)
    versions.promote(PROJECT, 2)
    assert_answered_by(2, asked(annotator, 3), 3)


def test_a_request_under_way_finishes_on_the_old_head_and_the_next_has_the_new_one(
    annotator: Annotator, versions: Versions, predictor: Counting
) -> None:
    predictor.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(asked, annotator)
        assert predictor.inside.wait(60)
        versions.promote(PROJECT, 1)
        second = pool.submit(asked, annotator)
        time.sleep(0.05)
        predictor.gate.set()
        assert_answered_by(None, first.result(60))
        assert_answered_by(1, second.result(60))


def test_swaps_while_many_click(annotator: Annotator, versions: Versions) -> None:
    """Whatever version an answer names, its mask is that version's; none is a mixture."""
    numbers = {name(number): number for number in (None, 1, 2)}
    over = threading.Event()

    def work(offset: int) -> set[str]:
        seen: set[str] = set()
        deadline = time.monotonic() + 60  # on a busy machine the first swap may come late
        turn = 0
        while turn < 12 or (len(seen) < 2 and time.monotonic() < deadline):
            count = (turn + offset) % 3 + 1
            answer = asked(annotator, count)
            assert_answered_by(numbers[answer.version], answer, count)
            seen.add(answer.version)
            turn += 1
        return seen

    def swap() -> None:
        while not over.is_set():
            for number in (1, 2, None):
                versions.promote(PROJECT, number)
                time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        swapping = pool.submit(swap)
        try:
            seen = set().union(*pool.map(work, range(3)))
        finally:
            over.set()
        swapping.result()
    assert len(seen) > 1


def test_a_rollback_holds_from_the_next_request_on(annotator: Annotator, versions: Versions) -> None:
    for number in (1, 2):
        versions.promote(PROJECT, number)
        assert_answered_by(number, asked(annotator))
    versions.rollback(PROJECT)
    assert_answered_by(1, asked(annotator))
    assert annotator.cache_stats()["heads"].misses == 2  # the old head was still there


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_version_that_cannot_be_used_leaves_the_base_in_service(
    annotator: Annotator, versions: Versions, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    versions.promote(PROJECT, 1)
    folder = versions.version(PROJECT, 1).folder
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "model.safetensors").write_bytes(b"half of it")
    for _ in range(2):
        assert_answered_by(None, asked(annotator))
    assert caplog.text.count("project 12 is served by the base model") == 1
    versions.promote(PROJECT, 2)
    assert_answered_by(2, asked(annotator))


def test_a_folder_that_cannot_be_read_leaves_the_base_in_service(tmp_path: Path) -> None:
    not_a_folder = tmp_path / "models"
    not_a_folder.write_text("a file")
    base = Head("base", Counting(base_model()))
    heads = Heads(base, Versions(not_a_folder), lambda version: base, 1 << 20)
    assert heads.of(PROJECT) is base
    heads.close()


def test_a_version_of_another_checkpoint_is_not_put_on_this_one(
    tmp_path: Path, versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    versions.promote(PROJECT, 1)
    executor = DeviceExecutor()
    other = base_model()
    heads = build_heads(Settings(model_dir=tmp_path), other, Predictor(other, keep_taps=True), executor)
    assert heads.of(PROJECT).version == other.version
    assert "was trained for a CHECKPOINT other than" in caplog.text
    executor.close()


def test_switched_off_nothing_of_it_is_looked_at(tmp_path: Path, versions: Versions, predictor: Counting) -> None:
    versions.promote(PROJECT, 1)
    executor = DeviceExecutor()
    heads = build_heads(Settings(model_dir=tmp_path, finetune="off"), model(None), predictor, executor)
    assert heads.of(PROJECT).version == name(None)
    assert heads.names() == [name(None)]
    executor.close()


def test_features_on_disk_know_their_head(tmp_path: Path) -> None:
    base = Predictor(model(None), keep_taps=True)
    tuned = base.with_head(head_state(model(1)), "v1")
    features = base.encode(photo().pixels)
    write_features(tmp_path / "file", features)
    back = tuned.prepare(read_features(tmp_path / "file"))
    fresh = Predictor(model(1)).encode(photo().pixels)
    assert back.head == tuned.head == fresh.head != base.head
    assert torch.equal(back.prepared.tokens, fresh.prepared.tokens)
    assert all(torch.equal(one, other) for one, other in zip(back.prepared.skips, fresh.prepared.skips, strict=True))
    assert base.prepare(features) is features


def test_heads_leave_when_their_memory_is_full(versions: Versions) -> None:
    loaded: list[int] = []

    def load(version: object) -> Head:
        loaded.append(version.number)  # type: ignore[attr-defined]
        return Head(version.name, None, 100)  # type: ignore[attr-defined,arg-type]

    heads = Heads(Head(name(None), None), versions, load, budget_bytes=150)  # type: ignore[arg-type]
    for number in (1, 1, 2, 1):
        versions.promote(PROJECT, number)
        assert heads.of(PROJECT).version == name(number)
    assert loaded == [1, 2, 1]
    assert heads.stats()["heads"].bytes == 100


def test_what_is_in_service_is_known_without_loading_it(
    annotator: Annotator, versions: Versions, tmp_path: Path
) -> None:
    assert annotator.promoted() == {}
    versions.promote(PROJECT, 2)
    assert annotator.promoted() == {PROJECT: name(2)}
    assert annotator.in_service()[PROJECT].number == 2
    assert annotator.cache_stats()["heads"].entries == 0
    (tmp_path / "versions" / str(PROJECT) / "v2" / "about.json").write_text("{")
    assert annotator.promoted() == {}
