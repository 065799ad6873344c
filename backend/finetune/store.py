"""A team's annotations by project: an SQLite database, and a PNG for each object's mask.

    FOLDER/annotations.sqlite      what was received, annotations, objects, what was skipped and why
    FOLDER/annotations.lock        held by the one writer that applies received events
    FOLDER/masks/PROJECT/*.png     1 bit per pixel; written before the database refers to them, never changed

An event is first recorded as it arrived (`receive`, one small transaction: once it returns, the event is never lost)
and applied later, in order (`apply_pending`): masks are decoded and written, then a single transaction makes the event
take effect and deletes it. A process killed in between leaves unreferenced files, which `delete_orphans` removes. Any
number of processes on one machine may use the same folder; a job reads while the server writes. Events that would slow
the server down are left to a separate process (`apply_heavy`, see `catching_up.py`).

A database found to be damaged is set aside and a new one started, whenever that happens: Label Studio can be asked for
everything again (`to_collect`).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.finetune.locks import locked
from backend.label_studio.annotations import Annotation, Event, UnusableError, num_annotations, read_event
from backend.label_studio.protocol import read_json
from backend.small_files import is_file_or_missing, open_file
from skipclick.atomic_io import atomic_write, synchronize
from skipclick.evaluation.datasets.agreement import Sketched, agreements, sketch

logger = logging.getLogger(__name__)

_DATABASE = "annotations.sqlite"
_BESIDE = ("-wal", "-shm", "-journal")  # endings of the files that SQLite keeps beside a database
_PATIENCE = 5.0  # seconds to wait for another process's transaction, each of which takes milliseconds
_SHORT_PATIENCE = 1.0  # seconds for the same, while an annotator waits
_WRITERS_PATIENCE = 600.0  # seconds to wait for another process that applies events; a heavy one takes long
_LIGHT_BYTES = 1 << 20  # of an event's body; parsing takes up to 45 times as much memory
_LIGHT_DELETIONS = 1000  # annotations and tasks that an event deletes
_LIGHT_MASKS = 50  # of an event: each takes a millisecond at least
_LIGHT_PIXELS = 20_000_000  # of all masks of an event together; decoding them takes a tenth of a second
_MAX_TRIES = 5  # after which an event is set aside: each time the process ended while it was applied
MAX_WAITING = 10_000
"""Events that may wait to be applied, of all projects together."""
MAX_WAITING_BYTES = 512 << 20
"""Bytes of all waiting events together."""
_ORPHAN_SECONDS = 24 * 3600.0  # seconds that a mask is kept after its object is gone, since a job may still read it

_SCHEMA = """
CREATE TABLE IF NOT EXISTS received(
    number INTEGER PRIMARY KEY AUTOINCREMENT, project INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS annotations(
    project INTEGER NOT NULL, annotation INTEGER NOT NULL, task INTEGER NOT NULL, updated_at TEXT NOT NULL,
    ground_truth INTEGER NOT NULL, deleted INTEGER NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL,
    annotator INTEGER, agreement REAL NOT NULL DEFAULT 0, PRIMARY KEY (project, annotation));
CREATE INDEX IF NOT EXISTS annotations_of_tasks ON annotations(project, task);
CREATE TABLE IF NOT EXISTS objects(
    id INTEGER PRIMARY KEY AUTOINCREMENT, project INTEGER NOT NULL, annotation INTEGER NOT NULL, region TEXT NOT NULL,
    label TEXT, image TEXT NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL, digest TEXT NOT NULL,
    mask TEXT NOT NULL, sketch BLOB, UNIQUE (project, annotation, region));
CREATE TABLE IF NOT EXISTS skipped(
    project INTEGER NOT NULL, annotation INTEGER NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (project, annotation, reason));
CREATE TABLE IF NOT EXISTS tries(number INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS set_aside(
    number INTEGER PRIMARY KEY, project INTEGER NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS heavy(number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS to_collect(project INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS unreachable(
    project INTEGER NOT NULL, image TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (project, image));
"""
_COUNTING = """
CREATE VIEW counting AS
    SELECT objects.*, ranked.task, ranked.updated_at, ranked.annotator FROM objects JOIN (
        SELECT *, row_number() OVER (
            PARTITION BY project, task ORDER BY ground_truth DESC, agreement DESC, annotation) AS place
        FROM annotations WHERE (project, annotation) IN (SELECT project, annotation FROM objects)
    ) AS ranked USING (project, annotation) WHERE place = 1;
"""
_ADDED = (
    ("annotations", "annotator", "INTEGER"),
    ("annotations", "agreement", "REAL NOT NULL DEFAULT 0"),
    ("objects", "sketch", "BLOB"),
)
"""Columns that databases from before version 1 lack. Each training reads all annotations from Label Studio and so fills
them; until then the oldest annotation of each task counts."""
_VERSION = 1
_TABLES = (*re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", _SCHEMA), "counting")
_UPSERT = """ON CONFLICT DO UPDATE SET task = excluded.task, updated_at = excluded.updated_at,
    ground_truth = excluded.ground_truth, deleted = excluded.deleted, number = excluded.number,
    at = max(at, excluded.at), annotator = excluded.annotator"""
"""`number`: the event that an annotation's state comes from. `counting`: the one annotation that counts of a task with
several annotators: see `skipclick.evaluation.datasets.agreement`, which computes `agreement` and `sketch`."""


_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedError(sqlite3.DatabaseError):
    """The database was damaged; a new one has replaced it."""


class BacklogError(Exception):
    """Too many events are waiting; later trainings read from Label Studio what this one would have told."""


@dataclass(frozen=True)
class StoredObject:
    """An object to learn from. `image`: the reference in the task, `ImageReference.url`. `size`: (H, W) of the mask and
    of the image as annotators see it. `id` increases with every new object or mask."""

    id: int
    project: int
    task: int
    annotation: int
    region: str
    label: str | None
    image: str
    size: tuple[int, int]
    updated_at: str
    annotator: int | None
    """Who made the annotation; None if that is not known."""
    digest: str
    """Of the mask; equal digests mean equal masks."""
    mask_file: Path

    def read_mask(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W). It is kept for a day after its object was changed or deleted."""
        with open(open_file(self.mask_file, os.O_RDONLY), "rb") as file, Image.open(file) as image:
            return np.array(image, np.bool_)


@dataclass(frozen=True)
class Counts:
    """Figures of a project. `skipped`: numbers of annotations and objects not learnt from, by reason. `waiting`: events
    not applied yet. `changed_at`: Unix time of the last event, 0 if there was none."""

    objects: int
    images: int
    skipped: Mapping[str, int]
    waiting: int
    changed_at: float
    annotators: Mapping[str, int] = field(default_factory=dict)
    """Number of objects by annotator's id, the most first; "" stands for unknown ones."""


class AnnotationStore:
    """Thread-safe: it keeps nothing in memory. `max_pixels`: larger masks are not decoded."""

    def __init__(self, folder: Path, max_pixels: int = 80_000_000) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self._is_prepared = False

    def receive(self, project: int, body: bytes) -> None:
        """Record a /webhook body. Once this returns, the event survives a kill and a power failure.

        Raises `BacklogError` if too much is waiting already.
        """
        try:
            self._receive(project, body)
        except DamagedError:
            self._receive(project, body)

    def _receive(self, project: int, body: bytes) -> None:
        with self._database(_SHORT_PATIENCE) as database:
            count, size = database.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM received").fetchone()
            if count >= MAX_WAITING or size + len(body) > MAX_WAITING_BYTES:
                raise BacklogError(
                    f"{count} events with {size >> 20} MB are waiting to be applied; no more are accepted"
                )
            database.execute("INSERT INTO received (project, at, body) VALUES (?, ?, ?)", (project, time.time(), body))

    def apply_pending(self, project: int | None = None, patience: float = _WRITERS_PATIENCE) -> int:
        """Apply the received events in order, except heavy ones; returns their number. If an event cannot be applied
        now, its project waits, and the error is raised at the end; with `project`, only an error of that project.
        Raises `BusyError` if another process applies events for longer than `patience` seconds."""
        with self._sole_writer(patience):
            return self._apply_all(heavy=False, project=project)

    def apply_heavy(self) -> int:
        """Apply the events that `apply_pending` left, whatever their size. For a process that may end in the middle;
        others get their turn after each event."""
        return self._apply_all(heavy=True)

    def is_behind(self) -> bool:
        """Whether there are heavy events, or projects to read from Label Studio."""
        with self._database() as database:
            return bool(_scalar(database, "SELECT EXISTS (SELECT 1 FROM heavy) OR EXISTS (SELECT 1 FROM to_collect)"))

    def to_collect(self) -> list[int]:
        """The projects of a damaged database: their annotations have to be read from Label Studio."""
        with self._database() as database:
            return [row["project"] for row in database.execute("SELECT project FROM to_collect ORDER BY 1")]

    def collected(self, project: int) -> None:
        """Note that all annotations of a project have been read."""
        with self._database() as database:
            database.execute("DELETE FROM to_collect WHERE project = ?", (project,))

    def backlog(self) -> dict[str, int]:
        """For all projects together: events "waiting", their "bytes", the "heavy" ones among them, and those
        "set_aside"."""
        with self._database() as database:
            waiting = database.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM received").fetchone()
            heavy = _scalar(database, "SELECT count(*) FROM heavy")
            aside = _scalar(database, "SELECT count(*) FROM set_aside")
        return {"waiting": waiting[0], "bytes": waiting[1], "heavy": heavy, "set_aside": aside}

    def marker(self) -> int:
        """The number of the last event received, for `reconcile`."""
        with self._database() as database:
            return int(_scalar(database, "SELECT seq FROM sqlite_sequence WHERE name = 'received'"))

    def reconcile(self, project: int, event: Event, since: int) -> None:
        """Make a project agree with what Label Studio itself answered after the marker `since` was taken. Changes by
        events received later are newer and stay."""
        self.apply_pending(project)
        with self._sole_writer():
            self._apply(project, event, since, from_label_studio=True)

    def known(self, project: int, tasks: Collection[int] | None = None) -> set[int]:
        """Ids of all annotations (of these tasks) that are not deleted, also of those without an object."""
        with self._database() as database:
            rows = database.execute("SELECT * FROM annotations WHERE project = ? AND NOT deleted", (project,))
            return {row["annotation"] for row in rows if tasks is None or row["task"] in tasks}

    def projects(self) -> list[int]:
        """All projects from which anything was received."""
        with self._database() as database:
            rows = database.execute("SELECT project FROM annotations UNION SELECT project FROM received ORDER BY 1")
            return [row["project"] for row in rows]

    def objects(self, project: int) -> list[StoredObject]:
        """The objects to learn from, oldest first, including those whose image was reported as unreachable."""
        with self._database() as database:
            rows = database.execute("SELECT * FROM counting WHERE project = ? ORDER BY id", (project,))
            return [self._stored(row) for row in rows]

    def new_since(self, project: int, last: int) -> int:
        """Number of objects with an id above `last`: those that are new, or have a new mask, since then."""
        with self._database() as database:
            query = "SELECT count(*) FROM counting WHERE project = ? AND id > ?"
            return int(_scalar(database, query, project, last))

    def fingerprint(self, project: int) -> str:
        """A digest of the project's objects: equal ones mean the same masks and labels on the same images."""
        facts = [(one.image, one.label, one.annotation, one.region, one.digest) for one in self.objects(project)]
        return sha256("\n".join(sorted(map(repr, facts))).encode()).hexdigest()

    def report_unreachable(self, project: int, reasons: Mapping[str, str]) -> None:
        """Record which of the project's images could not be loaded, and why; replaces the previous record."""
        with self._transaction() as database:
            database.execute("DELETE FROM unreachable WHERE project = ?", (project,))
            rows = [(project, image, reason) for image, reason in reasons.items()]
            database.executemany("INSERT INTO unreachable VALUES (?, ?, ?)", rows)

    def counts(self, project: int) -> Counts:
        """See `Counts`."""
        with self._database() as database:
            skipped = database.execute(
                "SELECT reason, sum(count) FROM skipped WHERE project = ? GROUP BY reason UNION ALL "
                "SELECT reason, count(*) FROM counting JOIN unreachable USING (project, image) WHERE project = ? "
                "GROUP BY reason",
                (project, project),
            )
            reasons = {row["reason"]: row[1] for row in skipped}
            if num_aside := _scalar(database, "SELECT count(*) FROM set_aside WHERE project = ?", project):
                reasons["the event could not be applied and was set aside"] = num_aside
            num_objects, num_images = database.execute(
                "SELECT count(*), count(DISTINCT image) FROM counting WHERE project = ?", (project,)
            ).fetchone()
            by_annotator = database.execute(
                "SELECT coalesce(annotator, '') AS who, count(*) FROM counting WHERE project = ? GROUP BY who "
                "ORDER BY count(*) DESC, who",
                (project,),
            )
            annotators = {str(row["who"]): row[1] for row in by_annotator}
            waiting = _scalar(database, "SELECT count(*) FROM received WHERE project = ?", project)
            changed_at = max(
                _scalar(database, f"SELECT max(at) FROM {table} WHERE project = ?", project)
                for table in ("annotations", "received")
            )
        return Counts(num_objects, num_images, reasons, waiting, float(changed_at), annotators)

    def delete_orphans(self, older_than: float = _ORPHAN_SECONDS) -> int:
        """Remove masks that nothing has referred to for `older_than` seconds; returns their number."""
        with self._sole_writer(), self._database() as database:
            referenced = {(str(row[0]), row[1]) for row in database.execute("SELECT project, mask FROM objects")}
            before = time.time() - older_than
            orphans = [
                path
                for path in (self._folder / "masks").glob("*/*")
                if (path.parent.name, path.name) not in referenced and path.stat().st_mtime <= before
            ]
            for path in orphans:
                path.unlink()
        return len(orphans)

    def _apply_all(self, heavy: bool, project: int | None = None) -> int:
        """Apply the heavy events, or all others."""
        num_events, troubles = 0, dict[int, OSError | sqlite3.Error]()
        while (row := self._next_event(heavy, troubles)) is not None:
            try:
                with self._sole_writer() if heavy else nullcontext():
                    self._apply_one(row, heavy)
                num_events += 1
            except (OSError, sqlite3.Error) as error:  # `_is_of_the_system`
                troubles[row["project"]] = error
        trouble = next(iter(troubles.values()), None) if project is None else troubles.get(project)
        if trouble is not None:
            raise trouble
        return num_events

    def _next_event(self, heavy: bool, but: Collection[int]) -> sqlite3.Row | None:
        """The oldest of the heavy events, or of the others, `but` not of these projects."""
        query = (
            f"SELECT * FROM received WHERE number {'IN' if heavy else 'NOT IN'} (SELECT number FROM heavy) "
            f"AND project NOT IN ({', '.join(map(str, but))}) ORDER BY number LIMIT 1"
        )
        with self._database() as database:
            row: sqlite3.Row | None = database.execute(query).fetchone()
        return row

    def _apply_one(self, row: sqlite3.Row, heavy: bool) -> None:
        """Apply an event; one that turns out to be heavy is only marked, unless `heavy`. Raises `OSError` or
        `sqlite3.Error` if it cannot be applied now for a reason that is not its own."""
        number = row["number"]
        if not heavy and len(row["body"]) > _LIGHT_BYTES:
            self._leave_for_later(number)
            return
        if self._count_try(number) > _MAX_TRIES:
            self._set_aside(row)
            return
        try:
            body = _body(row["body"], row["project"])
            if not heavy and num_annotations(body) > _LIGHT_MASKS:  # each may expand a labeling config
                self._leave_for_later(number)
                return
            event = _event(body, row["body"], row["project"])
            if not heavy and _is_heavy(event, self._max_pixels):
                self._leave_for_later(number)
                return
            self._apply(row["project"], event, number, at=row["at"])
        except Exception as error:
            if _is_of_the_system(error):
                self._forget_tries(number)
                raise
            logger.exception("an event of project %d cannot be applied", row["project"])
            self._set_aside(row)

    def _leave_for_later(self, number: int) -> None:
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO heavy VALUES (?)", (number,))
            database.execute("DELETE FROM tries WHERE number = ?", (number,))

    def _count_try(self, number: int) -> int:
        """Record that an event is about to be applied; returns how often it was. So attempts that kill the process
        count too."""
        with self._transaction() as database:
            database.execute("INSERT INTO tries VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (number,))
            return int(_scalar(database, "SELECT count FROM tries WHERE number = ?", number))

    def _forget_tries(self, number: int) -> None:
        with suppress(sqlite3.Error), self._database() as database:
            database.execute("DELETE FROM tries WHERE number = ?", (number,))

    def _set_aside(self, row: sqlite3.Row) -> None:
        """Skip an event that cannot be applied: nothing is lost, since every training reads from Label Studio again."""
        logger.error(
            "an event of project %d with %d bytes is set aside: it could not be applied",
            row["project"],
            len(row["body"]),
        )
        with self._transaction() as database:
            values = row["number"], row["project"], row["at"], len(row["body"])
            database.execute("INSERT OR REPLACE INTO set_aside VALUES (?, ?, ?, ?)", values)
            _forget_event(database, row["number"])

    def _apply(self, project: int, event: Event, number: int, at: float = 0.0, from_label_studio: bool = False) -> None:
        """Let an event take effect: decode and write masks first, then change the database in one transaction.

        Webhooks may overtake each other, so an older state does not replace a newer one, and what was deleted stays
        deleted (Label Studio never reuses an id), unless Label Studio itself was asked and still has it.
        """

        def is_news(row: sqlite3.Row | None, updated_at: str) -> bool:
            if row is None:
                return True
            if from_label_studio:
                return bool(row["number"] <= number)
            return not row["deleted"] and (not updated_at or updated_at >= row["updated_at"])

        with self._database() as database:
            rows = {one.id: _annotation_row(database, project, one.id) for one in event.saved}
            saved = [
                self._prepare(database, project, one) for one in event.saved if is_news(rows[one.id], one.updated_at)
            ]
            deleted = [(one, _annotation_row(database, project, one)) for one in event.deleted]
            for task in event.deleted_tasks:
                of_task = database.execute("SELECT * FROM annotations WHERE project = ? AND task = ?", (project, task))
                deleted += [(row["annotation"], row) for row in of_task]
        tasks = {one.annotation.task for one in saved}
        tasks |= {row["task"] for row in (*rows.values(), *(row for _, row in deleted)) if row is not None}
        with self._transaction() as database:
            for one in saved:
                self._replace(database, project, one, number, at)
            for annotation, row in deleted:
                if row is None or not from_label_studio or row["number"] <= number:
                    self._delete(database, project, annotation, number, at)
            for task in tasks:
                _compare(database, project, task)
            if not from_label_studio:
                _forget_event(database, number)

    def _prepare(self, database: sqlite3.Connection, project: int, annotation: Annotation) -> _Prepared:
        """Decode an annotation's masks and write those that the store lacks."""
        known = {row["region"]: row for row in _object_rows(database, project, annotation.id)}
        skipped: Counter[str] = Counter(annotation.skipped)
        new, kept = [], {}
        for one in annotation.objects:
            try:
                mask = one.mask(self._max_pixels)
            except UnusableError as error:
                skipped[error.reason] += 1
                continue
            digest = sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()
            row = known.get(one.region)
            if row is not None and (row["label"], row["image"], row["digest"]) == (one.label, one.image, digest):
                kept[row["id"]] = row["sketch"] or sketch(mask)
            else:
                name = f"{annotation.id}-{secrets.token_hex(8)}.png"
                with atomic_write(self._masks(project) / name) as temporary:
                    Image.fromarray(mask).save(temporary, format="PNG")
                new.append((one.region, one.label, one.image, *mask.shape, digest, name, sketch(mask)))
        if new:
            synchronize(self._masks(project))
        return _Prepared(annotation, new, kept, skipped)

    def _replace(self, database: sqlite3.Connection, project: int, prepared: _Prepared, number: int, at: float) -> None:
        one = prepared.annotation
        self._forget(database, project, one.id, prepared.kept)
        database.execute(
            f"INSERT INTO annotations VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, 0) {_UPSERT}",
            (project, one.id, one.task, one.updated_at, one.ground_truth, number, at, one.annotator),
        )
        database.executemany(
            "INSERT INTO objects (project, annotation, region, label, image, height, width, digest, mask, sketch) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(project, one.id, *row) for row in prepared.new],
        )
        sketches = [(drawn, row) for row, drawn in prepared.kept.items()]
        database.executemany("UPDATE objects SET sketch = ? WHERE id = ? AND sketch IS NULL", sketches)
        rows = [(project, one.id, str(reason), count) for reason, count in prepared.skipped.items()]
        database.executemany("INSERT INTO skipped VALUES (?, ?, ?, ?)", rows)

    def _delete(self, database: sqlite3.Connection, project: int, annotation: int, number: int, at: float) -> None:
        self._forget(database, project, annotation, kept=())
        database.execute(
            f"INSERT INTO annotations VALUES (?, ?, 0, '', 0, 1, ?, ?, NULL, 0) {_UPSERT}",
            (project, annotation, number, at),
        )

    def _forget(self, database: sqlite3.Connection, project: int, annotation: int, kept: Collection[int]) -> None:
        """Remove an annotation's objects, except those with an id in `kept`, and its skipped counts."""
        for row in _object_rows(database, project, annotation):
            if row["id"] not in kept:
                database.execute("DELETE FROM objects WHERE id = ?", (row["id"],))
                with suppress(FileNotFoundError):
                    os.utime(self._masks(project) / row["mask"])  # its last day starts, see `delete_orphans`
        database.execute("DELETE FROM skipped WHERE project = ? AND annotation = ?", (project, annotation))

    def _stored(self, row: sqlite3.Row) -> StoredObject:
        return StoredObject(
            id=row["id"],
            project=row["project"],
            task=row["task"],
            annotation=row["annotation"],
            region=row["region"],
            label=row["label"],
            image=row["image"],
            size=(row["height"], row["width"]),
            updated_at=row["updated_at"],
            annotator=row["annotator"],
            digest=row["digest"],
            mask_file=self._masks(row["project"]) / row["mask"],
        )

    def _masks(self, project: int) -> Path:
        return self._folder / "masks" / str(project)

    @contextmanager
    def _database(self, patience: float = _PATIENCE) -> Iterator[sqlite3.Connection]:
        """A connection in which each statement is its own transaction. Raises `DamagedError` if the block ran into
        damage and the database was replaced."""
        try:
            if not self._is_prepared:
                self._prepare_database()
            with self._connection(patience) as database:
                yield database
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._replace_damaged(error)
            raise DamagedError(
                f"the database of annotations was damaged ({error}) and has been replaced by a new one; try again"
            ) from None

    @contextmanager
    def _connection(self, patience: float = _PATIENCE, name: str = _DATABASE) -> Iterator[sqlite3.Connection]:
        path = self._folder / name
        _check_files(path)
        with closing(sqlite3.connect(path, timeout=patience, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA synchronous = FULL")
            yield database

    def _prepare_database(self) -> None:
        """Create the folder and missing tables, and check the database."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._make_tables(_DATABASE)
            self._check(thoroughly=False)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._replace_damaged(error)
        self._is_prepared = True

    def _make_tables(self, name: str) -> None:
        with self._connection(name=name) as database:
            database.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            is_new = not _scalar(database, "SELECT count(*) FROM sqlite_master WHERE name = 'objects'")
            database.executescript(_SCHEMA)
            _migrate(database)
            if is_new:  # but there may be masks of a lost database
                projects = [(int(one.name),) for one in (self._folder / "masks").glob("*") if one.name.isdecimal()]
                database.executemany("INSERT OR IGNORE INTO to_collect VALUES (?)", projects)

    def _check(self, thoroughly: bool) -> None:
        """Raises `sqlite3.DatabaseError` with `SQLITE_CORRUPT` for a database that is damaged."""
        with self._connection() as database:
            for table in _TABLES:
                database.execute(f"SELECT 1 FROM {table} LIMIT 1")
            found = database.execute(f"PRAGMA {'integrity' if thoroughly else 'quick'}_check(1)").fetchone()[0]
        if found != "ok":
            error = sqlite3.DatabaseError(found)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

    def _replace_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Set a damaged database aside and start a new one, unless another thread or process has just done so. Clicks
        must not wait for a repair, and Label Studio has all annotations anyway."""
        with locked(self._folder / "annotations.mending.lock", _WRITERS_PATIENCE):
            try:
                self._check(thoroughly=True)
                return
            except sqlite3.DatabaseError as still:
                if not _is_damage(still):
                    raise
            aside, new = f".damaged-{time.time_ns()}", f"{_DATABASE}.new"
            _remove_database(self._folder / new)
            self._make_tables(new)  # under another name: nobody sees it incomplete
            for name in (*(f"{_DATABASE}{ending}" for ending in _BESIDE), _DATABASE):
                with suppress(FileNotFoundError):
                    (self._folder / name).rename(self._folder / f"{name}{aside}")
            (self._folder / new).replace(self._folder / _DATABASE)
        logger.error(
            "%s is damaged (%s) and was renamed to end with %s; its annotations are read from Label Studio again",
            self._folder / _DATABASE,
            error,
            aside,
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection with a transaction that is committed if the block succeeds, and rolled back otherwise."""
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")  # closing a connection without it rolls back

    @contextmanager
    def _sole_writer(self, patience: float = _WRITERS_PATIENCE) -> Iterator[None]:
        """Keeps other threads and processes from applying events. Raises `BusyError`."""
        with locked(self._folder / "annotations.lock", patience):
            yield


@dataclass(frozen=True)
class _Prepared:
    """An annotation whose masks are on disk: rows to insert, ids of rows to keep with the sketches of their masks, and
    counts of what was skipped."""

    annotation: Annotation
    new: list[tuple[str | int | bytes | None, ...]]
    kept: Mapping[int, bytes]
    skipped: Mapping[str, int]


def _migrate(database: sqlite3.Connection) -> None:
    """Migrate a database of an earlier version, once; a new one gets its view."""
    if _scalar(database, "PRAGMA user_version") >= _VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    if _scalar(database, "PRAGMA user_version") < _VERSION:  # else another process was faster
        for table, column, kind in _ADDED:
            if column not in {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}:
                database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        database.execute("DROP VIEW IF EXISTS counting")
        database.execute(_COUNTING)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _compare(database: sqlite3.Connection, project: int, task: int) -> None:
    """Store how far the annotations of a task agree, computed from the sketches of their masks."""
    rows = database.execute(
        "SELECT annotation, annotator, ground_truth, image, sketch FROM annotations JOIN objects "
        "USING (project, annotation) WHERE project = ? AND task = ? ORDER BY annotation, objects.id",
        (project, task),
    ).fetchall()
    database.execute("UPDATE annotations SET agreement = 0 WHERE project = ? AND task = ?", (project, task))
    if len({row["annotator"] for row in rows}) < 3 or any(row["sketch"] is None for row in rows):
        return
    sketches: dict[int, dict[str, list[bytes]]] = {}
    for row in rows:
        sketches.setdefault(row["annotation"], {}).setdefault(row["image"], []).append(row["sketch"])
    facts = {row["annotation"]: (row["annotator"], bool(row["ground_truth"])) for row in rows}
    annotations = [Sketched(one, *facts[one], of_one) for one, of_one in sketches.items()]
    database.executemany(
        "UPDATE annotations SET agreement = ? WHERE project = ? AND annotation = ?",
        [(agreed, project, one.id) for one, agreed in zip(annotations, agreements(annotations), strict=True)],
    )


def _body(raw: bytes, project: int) -> Any:
    """The JSON of a received body; an empty object if it cannot be read."""
    try:
        return read_json(raw)
    except Exception:
        logger.exception("an event of project %d cannot be read and is skipped", project)
        return {}


def _event(body: Any, raw: bytes, project: int) -> Event:
    """The event of a received body; an empty one if it cannot be read, so that it does not block those after it."""
    try:
        return read_event(body, raw)
    except Exception:
        logger.exception("an event of project %d cannot be read and is skipped", project)
        return Event()


def _is_heavy(event: Event, max_pixels: int) -> bool:
    """Whether an event deletes much, or has many or large masks to decode; those of more than `max_pixels` are not
    decoded."""
    if len(event.deleted) + len(event.deleted_tasks) > _LIGHT_DELETIONS:
        return True
    sizes = (piece.size[0] * piece.size[1] for one in event.saved for each in one.objects for piece in each.pieces)
    pixels = [size for size in sizes if size <= max_pixels]
    return len(pixels) > _LIGHT_MASKS or sum(pixels) > _LIGHT_PIXELS


def _is_of_the_system(error: Exception) -> bool:
    """Whether the system, not the event, is the reason: a full disk, a locked database."""
    if isinstance(error, (sqlite3.OperationalError, DamagedError)):
        return True
    return isinstance(error, OSError) and error.errno is not None  # Pillow's own, of files it cannot read, have none


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error means that the database is damaged or lacks a table: its file was emptied or replaced."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _DAMAGE:
        return True
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("no such table")


def _check_files(database: Path) -> None:
    """Raises `sqlite3.DatabaseError` with `SQLITE_NOTADB` if anything but files has the names of a database: SQLite
    would wait for ever for what a pipe says."""
    for path in (database, *(database.with_name(database.name + ending) for ending in _BESIDE)):
        if not is_file_or_missing(path):
            error = sqlite3.DatabaseError(f"{path.name} is not a file")
            error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
            raise error


def _remove_database(path: Path) -> None:
    for each in (path, *(path.with_name(path.name + ending) for ending in _BESIDE)):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)


def _forget_event(database: sqlite3.Connection, number: int) -> None:
    for table in ("received", "tries", "heavy"):
        database.execute(f"DELETE FROM {table} WHERE number = ?", (number,))


def _annotation_row(database: sqlite3.Connection, project: int, annotation: int) -> sqlite3.Row | None:
    query = "SELECT * FROM annotations WHERE project = ? AND annotation = ?"
    row: sqlite3.Row | None = database.execute(query, (project, annotation)).fetchone()
    return row


def _object_rows(database: sqlite3.Connection, project: int, annotation: int) -> list[sqlite3.Row]:
    query = "SELECT * FROM objects WHERE project = ? AND annotation = ?"
    return database.execute(query, (project, annotation)).fetchall()


def _scalar(database: sqlite3.Connection, query: str, *values: int) -> Any:
    """The single value of a query; 0 for none."""
    row = database.execute(query, values).fetchone()
    return (row[0] if row is not None else None) or 0
