"""Protects the team's annotations: what was received is kept whatever is killed, updates replace, deletions delete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

from backend.finetune import store as store_module
from backend.finetune.store import AnnotationStore, StoredObject
from backend.label_studio.annotations import Event, Reason, read_event
from tests.support.annotation_bodies import HEIGHT, WIDTH, annotation, deleted, drawn, project, region, saved

SHOWN = drawn(2, 2, 9, 9)


@pytest.fixture
def store(tmp_path: Path) -> AnnotationStore:
    return AnnotationStore(tmp_path)


def tell(store: AnnotationStore, *events: dict[str, Any]) -> None:
    for body in events:
        store.receive(body["project"]["id"], json.dumps(body).encode())
    store.apply_pending()


def regions(store: AnnotationStore, project_id: int = 1) -> list[str]:
    return [one.region for one in store.objects(project_id)]


def test_an_object_comes_back_as_it_was_annotated(store: AnnotationStore, tmp_path: Path) -> None:
    tell(store, saved(annotation(7, 5, [region("a", SHOWN)], seconds=3, completed_by=4)))
    (one,) = store.objects(1)
    assert one == StoredObject(
        id=1,
        project=1,
        task=5,
        annotation=7,
        region="a",
        label="Ski",
        image="/data/upload/1/5.png",
        size=(HEIGHT, WIDTH),
        updated_at="2026-11-20T12:00:03.000000+00:00",
        annotator=4,
        digest=one.digest,
        mask_file=one.mask_file,
    )
    assert one.mask_file.is_relative_to(tmp_path / "masks" / "1")
    assert np.array_equal(one.read_mask(), SHOWN)
    assert one.read_mask().dtype == np.bool_


def test_an_update_replaces_and_a_deletion_deletes(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", SHOWN)])))
    tell(store, saved(annotation(1, 5, [region("b", SHOWN), region("c", SHOWN)], 9), action="ANNOTATION_UPDATED"))
    assert regions(store) == ["b", "c"]
    tell(store, deleted(1))
    assert regions(store) == []
    assert store.known(1) == set()


def test_events_that_overtake_each_other(store: AnnotationStore) -> None:
    """With a queue of its own, Label Studio may send the older state last."""
    tell(store, saved(annotation(1, 5, [region("new", SHOWN)], 9)), saved(annotation(1, 5, [region("old", SHOWN)], 3)))
    assert regions(store) == ["new"]
    tell(store, deleted(1, 2), saved(annotation(1, 5, [region("a", SHOWN)], 20)), saved(annotation(2, 5, [], 20)))
    assert regions(store) == []
    assert store.known(1) == set()


def test_a_deleted_task_takes_its_annotations_along(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])), saved(annotation(2, 6, [region("b", SHOWN)])))
    tell(store, {"action": "TASKS_DELETED", "tasks": [{"id": 5}], "project": project(1)})
    assert regions(store) == ["b"]


def test_projects_do_not_touch_each_other(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])), saved(annotation(2, 6, [region("b", SHOWN)]), 2))
    tell(store, deleted(1, project_id=2))  # ids are Label Studio's own, a project that does not have it changes nothing
    assert (regions(store, 1), regions(store, 2)) == (["a"], ["b"])
    assert store.projects() == [1, 2]


def test_what_is_skipped_is_counted_until_it_is_mended(store: AnnotationStore) -> None:
    result = [region("a", SHOWN), region("b", drawn(0, 0, 0, 0)), region("c", SHOWN, original_width=7)]
    tell(store, saved(annotation(1, 5, result)), saved(annotation(2, 6, [], was_cancelled=True)))
    counts = store.counts(1)
    assert (counts.objects, counts.images, counts.waiting) == (1, 1, 0)
    assert counts.skipped == {Reason.EMPTY: 1, Reason.WRONG_SIZE: 1, Reason.CANCELLED: 1}
    tell(store, saved(annotation(1, 5, [region("b", SHOWN)], 9)), deleted(2))
    assert store.counts(1).skipped == {}


def test_masks_larger_than_allowed_are_not_decoded(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path, max_pixels=WIDTH * HEIGHT - 1)
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    assert store.counts(1).skipped == {Reason.TOO_LARGE: 1}


def test_of_several_annotators_one_counts(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [], 1, completed_by=7)))
    tell(store, saved(annotation(2, 5, [region("second", SHOWN)], 2, completed_by=7)))
    tell(store, saved(annotation(3, 5, [region("third", SHOWN)], 3, completed_by=8)))
    assert regions(store) == ["second"]
    tell(store, saved(annotation(3, 5, [region("third", SHOWN)], 4, completed_by=8, ground_truth=True)))
    tell(store, saved(annotation(2, 5, [region("second", SHOWN)], 5, completed_by=7)))
    assert regions(store) == ["third"]


def test_an_extra_annotation_of_each_task_teaches_nothing(store: AnnotationStore) -> None:
    """Whoever annotates last would else supply all objects: with masks that are wrong, and again after corrections."""
    for number in range(1, 9):
        tell(store, saved(annotation(number, number, [region("true", SHOWN)], 1, completed_by=7)))
    for number in range(1, 9):
        extra = annotation(100 + number, number, [region("half", drawn(2, 2, 9, 5))], 30, completed_by=8)
        tell(store, saved(extra), saved(extra | {"id": 200 + number}))
    assert {(one.region, one.annotator) for one in store.objects(1)} == {("true", 7)}
    assert store.counts(1).annotators == {"7": 8}
    assert len(store.objects(1)) == 8
    tell(store, saved(annotation(1, 1, [region("corrected", SHOWN)], 40, completed_by=7)))
    assert store.objects(1)[-1].region == "corrected"  # who corrects an annotation keeps its place


def test_of_three_annotators_those_who_agree_are_heard(store: AnnotationStore) -> None:
    half, near = drawn(2, 2, 9, 5), drawn(2, 2, 9, 8)
    tell(store, saved(annotation(1, 5, [region("half", half)], 1, completed_by=7)))
    tell(store, saved(annotation(2, 5, [region("second", SHOWN)], 2, completed_by={"id": 8})))
    tell(store, saved(annotation(3, 5, [region("half again", half)], 2, completed_by=7)))
    assert regions(store) == ["half"]  # two people have annotated it: the oldest counts
    tell(store, saved(annotation(4, 5, [region("third", near)], 3, completed_by=9)))
    assert regions(store) == ["third"]  # the one in the middle
    tell(store, deleted(4))
    assert regions(store) == ["half"]
    tell(store, saved(annotation(6, 5, [region("fourth", SHOWN)], 3, completed_by=10)))
    assert regions(store) == ["second"]  # as the fourth, and older
    tell(store, saved(annotation(6, 6, [region("fourth", near)], 4, completed_by=10)))  # moved to another task
    assert regions(store) == ["half", "fourth"]


def as_of_version_0(folder: Path) -> None:
    """Turn a database into one that the release before wrote."""
    with contextlib.closing(sqlite3.connect(folder / "annotations.sqlite")) as database:
        database.executescript(
            """
            DROP VIEW counting;
            ALTER TABLE annotations DROP COLUMN annotator;
            ALTER TABLE annotations DROP COLUMN agreement;
            ALTER TABLE objects DROP COLUMN sketch;
            CREATE VIEW counting AS
                SELECT objects.*, ranked.task, ranked.updated_at FROM objects JOIN (
                    SELECT *, row_number() OVER (PARTITION BY project, task
                        ORDER BY ground_truth DESC, updated_at DESC, annotation DESC) AS place
                    FROM annotations WHERE (project, annotation) IN (SELECT project, annotation FROM objects)
                ) AS ranked USING (project, annotation) WHERE place = 1;
            PRAGMA user_version = 0;
            """
        )


def test_a_database_of_an_earlier_version_is_brought_up_to_date(store: AnnotationStore, tmp_path: Path) -> None:
    told = [
        annotation(1, 5, [region("half", drawn(2, 2, 9, 5))], 1, completed_by=7),
        annotation(2, 5, [region("second", SHOWN)], 2, completed_by=8),
        annotation(3, 5, [region("third", SHOWN)], 3, completed_by=9),
    ]
    tell(store, *map(saved, told))
    as_of_version_0(tmp_path)
    again = AnnotationStore(tmp_path)
    (one,) = again.objects(1)
    assert (one.region, one.annotator) == ("half", None)  # nothing is known of the annotators: the oldest counts
    ids = {one.id for one in again.objects(1)}
    again.reconcile(
        1, Event(saved=tuple(one for body in told for one in read_event(saved(body)).saved)), again.marker()
    )
    (one,) = again.objects(1)
    assert (one.region, one.annotator) == ("second", 8)  # as every training does: Label Studio was asked
    assert np.array_equal(one.read_mask(), SHOWN)
    again.reconcile(1, Event(deleted=(2, 3)), again.marker())
    assert {one.id for one in again.objects(1)} == ids  # no object was taken for a new one
    tell(AnnotationStore(tmp_path), saved(annotation(4, 6, [region("new", SHOWN)])))
    assert regions(again) == ["half", "new"]


def test_only_what_is_new_counts_as_new(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", SHOWN)])))
    last = max(one.id for one in store.objects(1))
    before = store.fingerprint(1)
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", SHOWN)], 9)))
    assert (store.new_since(1, 0), store.new_since(1, last)) == (2, 0)
    assert store.fingerprint(1) == before
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", drawn(0, 0, 3, 3)), region("c", SHOWN)], 12)))
    assert (store.new_since(1, 0), store.new_since(1, last)) == (3, 2)
    assert store.fingerprint(1) != before


def test_the_fingerprint_tells_labels_and_images_apart(tmp_path: Path) -> None:
    def fingerprint(name: str, *events: dict[str, Any]) -> str:
        store = AnnotationStore(tmp_path / name)
        tell(store, *events)
        return store.fingerprint(1)

    first, second = saved(annotation(1, 5, [region("a", SHOWN)])), saved(annotation(2, 6, [region("b", SHOWN)]))
    other_label = saved(annotation(1, 5, [region("a", SHOWN, "Helmet")]))
    other_image = saved(annotation(1, 7, [region("a", SHOWN)]))
    names = {fingerprint(str(n), *events) for n, events in enumerate([[first], [other_label], [other_image], []])}
    assert len(names) == 4
    assert fingerprint("one way", first, second) == fingerprint("the other", second, first)


def test_images_that_have_gone_are_counted_with_what_was_said_of_them(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", SHOWN)])))
    tell(store, saved(annotation(2, 6, [region("c", SHOWN)])))
    store.report_unreachable(1, {"/data/upload/1/5.png": "status 404", "/data/upload/1/99.png": "status 404"})
    assert store.counts(1).skipped == {"status 404": 2}
    store.report_unreachable(1, {})
    assert store.counts(1).skipped == {}


def test_a_mask_outlives_its_object_for_a_job_that_reads(store: AnnotationStore) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN), region("b", SHOWN)])))
    gone, kept = store.objects(1)
    os.utime(gone.mask_file, (0, 0))  # annotated long ago
    tell(store, saved(annotation(1, 5, [region("b", SHOWN)], 9)))
    assert store.delete_orphans() == 0
    assert np.array_equal(gone.read_mask(), SHOWN)
    assert store.delete_orphans(older_than=0) == 1
    assert not gone.mask_file.exists()
    assert np.array_equal(kept.read_mask(), SHOWN)


def test_a_body_that_makes_no_sense_does_not_stop_those_behind_it(store: AnnotationStore) -> None:
    store.receive(1, b"no JSON at all")
    store.receive(1, b"[" * 100_000)
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    assert regions(store) == ["a"]
    assert store.counts(1).waiting == 0


def test_what_is_received_waits_until_it_is_applied(store: AnnotationStore) -> None:
    before = time.time()
    store.receive(3, json.dumps(saved(annotation(1, 5, [region("a", SHOWN)]), 3)).encode())
    assert store.projects() == [3]
    assert (store.counts(3).objects, store.counts(3).waiting) == (0, 1)
    assert before <= store.counts(3).changed_at <= time.time()
    assert AnnotationStore(store._folder).apply_pending() == 1  # another process would do it as well
    assert (store.counts(3).objects, store.counts(3).waiting) == (1, 0)
    assert before <= store.counts(3).changed_at <= time.time()
    assert (store.counts(4).objects, store.counts(4).changed_at) == (0, 0)


def test_a_failed_write_keeps_the_event(store: AnnotationStore, tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("in the way")
    with pytest.raises(OSError, match="masks"):
        tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    assert store.counts(1).waiting == 1
    (tmp_path / "masks").unlink()
    store.apply_pending()
    assert regions(store) == ["a"]


def test_threads_receive_and_apply_at_the_same_time(store: AnnotationStore) -> None:
    def work(first: int) -> None:
        for number in range(first, first + 10):
            tell(store, saved(annotation(number, number, [region(f"{number}", SHOWN)])))

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, regions(store))) == [100 * k + n for k in range(4) for n in range(10)]
    assert store.counts(1).waiting == 0


def test_label_studio_itself_is_believed_but_for_what_has_changed_since(store: AnnotationStore) -> None:
    def seen(number: int, name: str) -> Event:
        return read_event(saved(annotation(number, number, [region(name, SHOWN)], 5)))

    tell(store, saved(annotation(1, 1, [region("forged", SHOWN)], 59)), deleted(2))
    since = store.marker()
    tell(store, saved(annotation(3, 3, [region("newer", SHOWN)], 9)), deleted(4))
    for number in (1, 2, 3, 4):
        store.reconcile(1, seen(number, "seen"), since)
    assert {(one.annotation, one.region) for one in store.objects(1)} == {(1, "seen"), (2, "seen"), (3, "newer")}
    store.reconcile(1, Event(deleted=(1, 3)), since)
    assert {(one.annotation, one.region) for one in store.objects(1)} == {(2, "seen"), (3, "newer")}


def write_on(folder: Path, number: int, acknowledged: Connection) -> None:
    """Receive and apply without an end; `acknowledged` gets the number of each event that was received.

    Event n creates annotation n with three masks; every fourth one deletes annotation n - 1 instead.
    """
    store = AnnotationStore(folder)
    while True:
        number += 1
        masks = [region(f"{number}.{k}", drawn(k, number % 20, k + 5, number % 20 + 5)) for k in range(3)]
        body = saved(annotation(number, number, masks)) if number % 4 else deleted(number - 1)
        store.receive(1, json.dumps(body).encode())
        acknowledged.send(number)
        if number % 3 == 0:
            store.apply_pending()


def check_whole(folder: Path) -> None:
    """Whatever was interrupted, the database is sound and names masks that are whole."""
    database = sqlite3.connect(folder / "annotations.sqlite")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    annotations: dict[int, int] = {}
    for one in AnnotationStore(folder).objects(1):
        annotations[one.annotation] = annotations.get(one.annotation, 0) + 1
        number, k = map(int, one.region.split("."))
        assert np.array_equal(one.read_mask(), drawn(k, number % 20, k + 5, number % 20 + 5))
    assert set(annotations.values()) <= {3}  # an event takes effect as a whole


@pytest.mark.slow
def test_a_writer_killed_fifty_times(tmp_path: Path) -> None:
    """kill -9 at random moments: always consistent, and nothing that was acknowledged is lost."""
    rng, processes, last = random.Random(6), get_context("fork"), 0
    for _ in range(50):
        reader, acknowledged = processes.Pipe(duplex=False)
        writer = processes.Process(target=write_on, args=(tmp_path, last, acknowledged))
        writer.start()
        acknowledged.close()
        last = [reader.recv() for _ in range(rng.randint(1, 5))][-1]
        time.sleep(rng.uniform(0, 0.02))  # a few events take that long
        writer.kill()
        writer.join()
        with suppress(EOFError):
            while True:
                last = reader.recv()  # an event received but not acknowledged comes again, as by a retry
        check_whole(tmp_path)
    store = AnnotationStore(tmp_path)
    store.apply_pending()
    check_whole(tmp_path)
    expected = {n for n in range(1, last + 1) if n % 4 in (1, 2)}
    assert expected <= {one.annotation for one in store.objects(1)} <= expected | {last, last + 1}
    store.delete_orphans(older_than=0)
    assert len(list((tmp_path / "masks" / "1").iterdir())) == len(store.objects(1))


# --- events and files that are meant to stop it


def test_an_event_that_ends_the_process_is_set_aside_and_stops_no_other(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody counts what it did to the memory; how often it was begun stands in the database."""
    store.receive(1, json.dumps(saved(annotation(1, 5, [region("deadly", SHOWN)]))).encode())
    store.receive(1, json.dumps(saved(annotation(2, 6, [region("b", SHOWN)]))).encode())
    whole = AnnotationStore._apply

    def killed(self: AnnotationStore, project: int, event: Event, *rest: Any, **more: Any) -> None:
        if any(one.region == "deadly" for saved in event.saved for one in saved.objects):
            raise KeyboardInterrupt  # as a kill: no handler runs behind it
        whole(self, project, event, *rest, **more)

    monkeypatch.setattr(AnnotationStore, "_apply", killed)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            store.apply_pending()
    assert store.apply_pending() == 2
    assert regions(store) == ["b"]
    counts = store.counts(1)
    assert (counts.waiting, counts.skipped) == (0, {"the event could not be applied and was set aside": 1})


def test_an_event_that_cannot_be_applied_is_set_aside_at_once(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(AnnotationStore, "_prepare", fails)
        tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    tell(store, saved(annotation(2, 6, [region("b", SHOWN)])))
    assert regions(store) == ["b"]


def test_a_full_disk_is_not_the_events_fault(store: AnnotationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    store.receive(1, json.dumps(saved(annotation(1, 5, [region("a", SHOWN)]))).encode())
    with monkeypatch.context() as context:
        context.setattr(AnnotationStore, "_prepare", fails)
        for _ in range(9):
            with pytest.raises(OSError, match="no space"):
                store.apply_pending()
    store.apply_pending()
    assert regions(store) == ["a"]


def test_the_backlog_has_bounds(store: AnnotationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", 2)
    monkeypatch.setattr(store_module, "MAX_WAITING_BYTES", 100)
    store.receive(1, bytes(60))
    with pytest.raises(store_module.BacklogError):
        store.receive(2, bytes(41))
    store.receive(1, bytes(1))
    with pytest.raises(store_module.BacklogError, match="2 events"):
        store.receive(2, bytes(1))
    store.apply_pending()
    store.receive(2, bytes(1))


@pytest.mark.parametrize("place", [0, 4096, 8192])
def test_a_damaged_database_is_set_aside_and_begun_anew(store: AnnotationStore, tmp_path: Path, place: int) -> None:
    for number in range(50):
        tell(store, saved(annotation(number + 1, 5, [region("a", SHOWN)])))
    path = tmp_path / "annotations.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(4096))
    again = AnnotationStore(tmp_path)
    tell(again, saved(annotation(1, 5, [region("b", SHOWN)])))
    assert regions(again) == ["b"]
    assert len(list(tmp_path.glob("annotations.sqlite.damaged-*"))) == 1


def _overwrite(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(os.urandom(size))


@pytest.mark.parametrize(
    "damage",
    [
        _overwrite,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        Path.unlink,
    ],
    ids=["overwritten", "emptied", "one page", "half", "deleted"],
)
def test_a_database_damaged_while_it_is_used_is_replaced(
    store: AnnotationStore, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """By whatever asks for it first. The projects that it held are to be read again; what comes meanwhile stays."""
    for number in range(50):
        tell(store, saved(annotation(number + 1, 5, [region("a", SHOWN)])))
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)]), 2))
    path = tmp_path / "annotations.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    tell(store, saved(annotation(1, 5, [region("b", SHOWN)])))
    assert regions(store) == ["b"]
    assert store.to_collect() == [1, 2]
    assert store.is_behind()
    store.collected(1)
    store.collected(2)
    assert not store.is_behind()


@pytest.mark.parametrize(
    "entrance", ["apply_pending", "projects", "backlog", "to_collect", "is_behind", "marker", "delete_orphans"]
)
def test_whatever_meets_the_damage_says_so_and_the_next_one_works(
    store: AnnotationStore, tmp_path: Path, entrance: str
) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    _overwrite(tmp_path / "annotations.sqlite")
    for name in ("annotations.sqlite-wal", "annotations.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(store_module.DamagedError, match="replaced by a new one; try again"):
        getattr(store, entrance)()
    getattr(store, entrance)()
    assert len(list(tmp_path.glob("annotations.sqlite.damaged-*"))) == 1


def test_one_of_many_replaces_a_damaged_database(store: AnnotationStore, tmp_path: Path) -> None:
    """The others must not set the new one aside."""
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    _overwrite(tmp_path / "annotations.sqlite")
    bodies = [json.dumps(saved(annotation(number, number, [region("b", SHOWN)]))).encode() for number in range(1, 9)]
    threads = [threading.Thread(target=store.receive, args=(1, body)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.apply_pending()
    assert len(list(tmp_path.glob("annotations.sqlite.damaged-*"))) == 1
    assert len(regions(store)) == 8


def test_a_folder_that_cannot_be_used_yet_may_be_later(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in its place")
    store = AnnotationStore(tmp_path / "data")
    with pytest.raises(OSError, match="data"):
        store.receive(1, b"{}")
    (tmp_path / "data").unlink()
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    assert regions(store) == ["a"]


# --- events that would burden the server


def test_heavy_events_are_left_for_a_process_of_their_own(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their bytes, or by the pixels of their masks together, however few bytes those take."""
    monkeypatch.setattr(store_module, "_LIGHT_PIXELS", 2 * HEIGHT * WIDTH)
    three = [region(name, drawn(2, 2, 9, place)) for name, place in (("a", 7), ("b", 8), ("c", 9))]
    tell(store, saved(annotation(1, 5, three)))
    monkeypatch.setattr(store_module, "_LIGHT_BYTES", 5000)
    tell(store, saved(annotation(2, 6, [region("d", SHOWN)])) | {"more": "x" * 5000})
    tell(store, saved(annotation(3, 7, [region("e", SHOWN)])))
    monkeypatch.setattr(store_module, "_LIGHT_MASKS", 1)
    tell(store, saved(annotation(4, 8, [region("f", SHOWN), region("g", drawn(2, 2, 9, 7))])))
    assert regions(store) == ["e"]
    assert store.backlog() == {"waiting": 3, "bytes": ANY, "heavy": 3, "set_aside": 0}
    assert store.is_behind()
    assert store.apply_pending() == 0
    assert store.apply_heavy() == 3
    assert sorted(regions(store)) == ["a", "b", "c", "d", "e", "f", "g"]
    assert store.backlog() == {"waiting": 0, "bytes": 0, "heavy": 0, "set_aside": 0}
    assert not store.is_behind()


@pytest.mark.parametrize(("action", "key"), [("ANNOTATIONS_DELETED", "annotations"), ("TASKS_DELETED", "tasks")])
def test_an_event_that_deletes_much_is_heavy(store: AnnotationStore, action: str, key: str) -> None:
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    tell(store, {"action": action, "project": {"id": 1}, key: [{"id": number} for number in range(1, 1002)]})
    assert (store.backlog()["heavy"], regions(store)) == (1, ["a"])
    assert store.apply_heavy() == 1
    assert regions(store) == []


def test_an_event_of_many_annotations_is_heavy_before_it_is_read(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may expand a labeling config of tens of thousands of tags."""
    body = saved(annotation(1, 5, [region("a", SHOWN)]))
    body |= {"action": "ANNOTATIONS_CREATED", "annotation": [body["annotation"]] * 51}
    with monkeypatch.context() as context:
        context.setattr(store_module, "read_event", lambda *_: pytest.fail("it was read"))
        tell(store, body)
    assert store.backlog()["heavy"] == 1
    assert store.apply_heavy() == 1
    assert regions(store) == ["a"]


def test_a_heavy_event_that_ends_its_process_is_set_aside(
    store: AnnotationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_LIGHT_BYTES", 0)
    tell(store, saved(annotation(1, 5, [region("a", SHOWN)])))
    with monkeypatch.context() as context:
        context.setattr(AnnotationStore, "_apply", killed)
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                store.apply_heavy()
        store.apply_heavy()
    assert store.backlog()["set_aside"] == 1
    assert not store.is_behind()


def test_a_project_whose_events_cannot_be_applied_now_stops_no_other(store: AnnotationStore, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1").write_text("a file in its place")
    for project_id in (1, 2):
        body = saved(annotation(1, 5, [region("a", SHOWN)]), project_id)
        store.receive(project_id, json.dumps(body).encode())
    for _ in range(7):
        with pytest.raises(OSError, match="masks"):
            store.apply_pending()
    assert (regions(store, 1), regions(store, 2)) == ([], ["a"])
    (tmp_path / "masks" / "1").unlink()
    store.apply_pending()
    assert regions(store, 1) == ["a"]
