"""Protects immediate adaptation in service: it learns from what Label Studio confirms, its outcome is served at once,
one rollback leads back past all of it, and it leaves no heap of versions."""

from __future__ import annotations

import dataclasses
import json

import pytest

from backend.finetune import adaptation as module
from backend.finetune.adaptation import adapt_project, newest_images
from backend.finetune.store import AnnotationStore, StoredObject
from backend.finetune.versions import Versions
from backend.label_studio.client import ApiError
from backend.settings import Settings
from skipclick.head import head_digest
from tests.support import annotation_bodies as bodies
from tests.support.fake_label_studio import FakeLabelStudio
from tests.support.tuned_models import base_model, tuned_model
from train.finetune.adapt import RECIPE, AdaptConfig, Adapted

PROJECT = 1
QUICK = AdaptConfig(recipe=dataclasses.replace(RECIPE, steps=2, batch_size=2, views=1, max_seconds=600.0), num_images=1)


@pytest.fixture(name="settings")
def settings_of_a_small_model(settings: Settings, small_checkpoint: str) -> Settings:
    return settings.model_copy(update={"checkpoint": small_checkpoint})


@pytest.fixture
def versions(settings: Settings) -> Versions:
    return Versions(settings.model_dir)


@pytest.fixture
def store(settings: Settings) -> AnnotationStore:
    return AnnotationStore(settings.model_dir)


def annotate(studio: FakeLabelStudio, store: AnnotationStore, number: int) -> None:
    """Somebody accepts the mask of a task's bright square; the webhook tells of it."""
    task, studio.files[f"/data/upload/1/{number}.png"] = bodies.photographed_task(number)
    studio.tasks.append(task)
    (annotation,) = task["annotations"]
    store.receive(PROJECT, json.dumps(bodies.saved(annotation, PROJECT) | {"task": task}).encode())
    store.apply_pending()


def test_each_mask_moves_the_head_and_one_rollback_undoes_all(
    studio: FakeLabelStudio, settings: Settings, store: AnnotationStore, versions: Versions
) -> None:
    heads = []
    for number in range(1, 4):
        annotate(studio, store, number)
        version = adapt_project(settings, PROJECT, QUICK)
        assert version is not None
        assert versions.current(PROJECT) == version.number == number
        assert version.about["adapted"] == {"from": None, "steps": 2 * number}
        assert version.about["objects"] == min(number, 2)  # of the newest image and the one before
        heads.append(head_digest(version.head()))
    assert len(set(heads)) == 3
    assert versions.numbers(PROJECT) == [2, 3]
    assert versions.rollback(PROJECT) is None


def test_it_begins_at_the_version_that_was_measured(
    studio: FakeLabelStudio, settings: Settings, store: AnnotationStore, versions: Versions
) -> None:
    versions.write(PROJECT, tuned_model(1), base_model(), about={}, report={})
    versions.promote(PROJECT, 1)
    for number in (1, 2):
        annotate(studio, store, number)
        version = adapt_project(settings, PROJECT, QUICK)
        assert version is not None
        assert version.about["adapted"] == {"from": 1, "steps": 2 * number}
    assert versions.rollback(PROJECT) == 1


def test_what_label_studio_does_not_confirm_teaches_nothing(
    studio: FakeLabelStudio, settings: Settings, store: AnnotationStore, versions: Versions
) -> None:
    annotate(studio, store, 1)
    studio.tasks.clear()
    assert adapt_project(settings, PROJECT, QUICK) is None
    assert store.objects(PROJECT) == []
    assert versions.numbers(PROJECT) == []


def test_an_image_that_has_gone_changes_nothing(
    studio: FakeLabelStudio, settings: Settings, store: AnnotationStore, versions: Versions
) -> None:
    annotate(studio, store, 1)
    studio.files.clear()
    assert adapt_project(settings, PROJECT, QUICK) is None
    assert versions.numbers(PROJECT) == []


def test_label_studio_that_refuses_is_named(
    studio: FakeLabelStudio, settings: Settings, store: AnnotationStore
) -> None:
    annotate(studio, store, 1)
    studio.failures = [403]
    with pytest.raises(ApiError, match="status 403"):
        adapt_project(settings, PROJECT, QUICK)


def test_a_choice_made_meanwhile_stands(
    studio: FakeLabelStudio,
    settings: Settings,
    store: AnnotationStore,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    annotate(studio, store, 1)
    learn = module.adapt

    def promoted_meanwhile(*arguments: object) -> Adapted:
        versions.write(PROJECT, tuned_model(1), base_model(), about={}, report={})
        versions.promote(PROJECT, 1)
        return learn(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "adapt", promoted_meanwhile)
    assert adapt_project(settings, PROJECT, QUICK) is None
    assert versions.current(PROJECT) == 1


def test_the_images_annotated_last(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    for number in (1, 2, 3):
        annotate(studio, store, number)
    first, second, third = store.objects(PROJECT)
    again = dataclasses.replace(first, id=9, region="another of the first image")

    def chosen(count: int) -> list[StoredObject]:
        return newest_images([first, second, third, again], count)

    assert chosen(1) == [first, again]
    assert chosen(2) == [third, first, again]
    assert chosen(9) == [second, third, first, again]
    assert newest_images([], 3) == []
