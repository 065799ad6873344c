"""Protects the agreement of the store with Label Studio: all pages, retries, and annotators who go on meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.finetune import sync as module
from backend.finetune.store import AnnotationStore
from backend.finetune.sync import collect, receive
from backend.label_studio.annotations import Reason
from backend.label_studio.auth import LabelStudioAuth
from backend.label_studio.client import ApiError, LabelStudioApi
from backend.label_studio.labeling_config import ConfigError
from backend.label_studio.protocol import read_json
from tests.support import annotation_bodies as bodies
from tests.support.annotation_bodies import annotation, deleted, drawn, region, saved, task
from tests.support.fake_label_studio import PERSONAL, FakeLabelStudio, fake_label_studio

SHOWN = drawn(2, 2, 9, 9)
PAUSE = 0.001


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path)


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    """Project 1 with tasks 1 to 50; every task but each tenth has an annotation of its own number."""
    with fake_label_studio() as running:
        running.label_config = bodies.CONFIG
        running.tasks = [annotated(number) if number % 10 else task(number) for number in range(1, 51)]
        yield running


def annotated(number: int, name: str = "a", **changes: Any) -> dict[str, Any]:
    return task(number, annotation(number, number, [region(f"{name}{number}", SHOWN)], **changes))


def api(studio: FakeLabelStudio) -> LabelStudioApi:
    return LabelStudioApi(LabelStudioAuth(studio.url, PERSONAL, 5.0), 5.0)


def tell(store: AnnotationStore, body: dict[str, Any]) -> int | None:
    raw = json.dumps(body).encode()
    return receive(store, read_json(raw), raw)


def test_events_about_annotations_are_received(store: AnnotationStore) -> None:
    assert tell(store, saved(annotation(1, 5, [region("a", SHOWN)]), 3)) == 3
    assert tell(store, {"action": "START_TRAINING", "project": bodies.project(3)}) is None
    assert tell(store, {"action": "ANNOTATIONS_DELETED"}) is None
    assert store.counts(3).waiting == 1
    store.apply_pending()
    assert [one.region for one in store.objects(3)] == ["a"]


def test_all_annotated_tasks_come_page_by_page(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    asked: list[str] = []
    studio.watch = asked.append
    counts = collect(api(studio), store, 1, PAUSE)
    assert [one.annotation for one in store.objects(1)] == [number for number in range(1, 51) if number % 10]
    assert (counts.objects, counts.images, counts.changed_at) == (45, 45, 0)
    assert asked == ["/api/projects/1/"] + 3 * ["/api/tasks/"]


def test_collecting_again_changes_nothing(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    collect(api(studio), store, 1, PAUSE)
    before = store.objects(1)
    collect(api(studio), store, 1, PAUSE)
    assert store.objects(1) == before


def test_the_store_is_brought_in_line(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    """With an annotation that was deleted while nobody listened, one that changed, and one that somebody made up."""
    collect(api(studio), store, 1, PAUSE)
    tell(store, saved(annotation(999, 5, [region("made up", SHOWN)])))
    tell(store, saved(annotation(3, 3, [region("made up", SHOWN)], seconds=3599)))
    studio.tasks[0] = task(1)
    studio.tasks[1] = annotated(2, "b", seconds=9)
    assert collect(api(studio), store, 1, PAUSE).objects == 44
    regions = {one.region for one in store.objects(1)}
    assert "made up" not in regions
    assert {"b2", "a3"} <= regions
    assert not {"a1", "a2"} & regions


def test_skipped_annotations_are_counted(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    skipped = annotation(70, 70, [], was_cancelled=True)
    empty, misfit = region("e", drawn(0, 0, 0, 0)), region("w", SHOWN, original_width=3)
    studio.tasks = [annotated(1), task(70, skipped), task(71, annotation(71, 71, [empty, misfit]))]
    studio.tasks.append(annotated(72) | {"data": {"text": "no image"}})
    assert collect(api(studio), store, 1, PAUSE).skipped == dict.fromkeys(
        (Reason.CANCELLED, Reason.EMPTY, Reason.WRONG_SIZE, Reason.NO_IMAGE), 1
    )


def test_label_studio_may_stumble(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    studio.failures = [502, 503, 500]
    assert collect(api(studio), store, 1, PAUSE).objects == 45


def test_label_studio_that_does_not_answer_takes_nothing_away(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    collect(api(studio), store, 1, PAUSE)
    for failures in ([500] * 4, [403]):
        studio.failures = failures
        with pytest.raises(ApiError, match="status"):
            collect(api(studio), store, 1, PAUSE)
        assert len(store.objects(1)) == 45


def test_a_project_without_a_readable_config_is_refused(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    studio.label_config = "<View>"
    with pytest.raises(ConfigError, match="not valid XML"):
        collect(api(studio), store, 1, PAUSE)


def test_tasks_deleted_while_pages_are_read(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    """The pages shift, and some tasks are never shown; nothing of them is forgotten."""
    collect(api(studio), store, 1, PAUSE)
    pages = iter(range(3))

    def delete_ten(path: str) -> None:
        if path == "/api/tasks/" and next(pages, None) == 1:
            del studio.tasks[:10]

    left = {number for number in range(11, 51) if number % 10}
    studio.watch = delete_ten
    collect(api(studio), store, 1, PAUSE)
    assert left <= {one.annotation for one in store.objects(1)}  # the deleted ones had been shown already
    collect(api(studio), store, 1, PAUSE)
    assert left == {one.annotation for one in store.objects(1)}


def test_annotators_go_on_while_pages_are_read(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    """What they do after the collecting began is newer than what the pages say."""
    collect(api(studio), store, 1, PAUSE)

    def go_on(path: str) -> None:
        if path == "/api/projects/1/":
            tell(store, saved(annotation(1, 1, [region("newer", SHOWN)], seconds=9)))
            tell(store, saved(annotation(900, 900, [region("new", SHOWN)], seconds=9)))
            tell(store, deleted(2))

    studio.watch = go_on
    collect(api(studio), store, 1, PAUSE)
    regions = {one.region for one in store.objects(1)}
    assert {"newer", "new"} <= regions
    assert not {"a1", "a2"} & regions


def test_other_projects_are_left_alone(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    tell(store, saved(annotation(1, 1, [region("theirs", SHOWN)]), 2))
    collect(api(studio), store, 1, PAUSE)
    assert [one.region for one in store.objects(2)] == ["theirs"]


def test_some_tasks_alone_can_be_asked_for(store: AnnotationStore, studio: FakeLabelStudio) -> None:
    """What concerns others stays; what a forged event says of them is gone."""
    tell(store, saved(annotation(1, 1, [region("made up", SHOWN)])))
    tell(store, saved(annotation(901, 1, [region("forged", SHOWN)])))
    tell(store, saved(annotation(902, 3, [region("not asked for", SHOWN)])))
    collect(api(studio), store, 1, PAUSE, tasks={1, 2})
    assert {one.region for one in store.objects(1)} == {"a1", "a2", "not asked for"}


def test_the_question_for_annotated_tasks_is_the_one_that_label_studio_understood() -> None:
    """Tried against version 1.23.2: tasks that were annotated or skipped, and no others."""
    filters = json.loads(module._TOUCHED)["filters"]
    assert filters["conjunction"] == "or"
    assert [(one["filter"], one["operator"], one["type"], one["value"]) for one in filters["items"]] == [
        ("filter:tasks:total_annotations", "greater", "Number", 0),
        ("filter:tasks:cancelled_annotations", "greater", "Number", 0),
    ]
