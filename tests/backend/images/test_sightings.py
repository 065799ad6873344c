"""Protects that a mask is one of the picture that is there now: replaced, deleted and confused files, and what it costs
to know."""

from __future__ import annotations

import base64
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.annotator import Annotator, SizeMismatchError
from backend.images.allowlist import ImageHosts
from backend.images.decode import ImageError
from backend.images.loader import ImageLoader, UnreachableError, _unsigned
from backend.images.sightings import answer_etag, answer_stamp, file_stamp
from backend.label_studio.auth import LabelStudioAuth
from backend.prompts import ImageReference, SmartClick
from skipclick.cache import ByteLru, FileLru, SharedCache
from skipclick.config import TINY
from skipclick.features import read_features, write_features
from skipclick.model import SkipClick
from skipclick.predictor import Predictor
from tests.support.fakes import DiscFeatures, DiscPredictor

CLICK = (SmartClick("a", 40, 60, True),)
SIZE = (120, 160)
LONG_AGO = 1_600_000_000

MakeAnnotator = Callable[..., Annotator]


def picture(level: int, size: tuple[int, int] = SIZE) -> bytes:
    """One colour, uncompressed: all of one size have the same number of bytes."""
    file = BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "BMP")
    return file.getvalue()


class Source:
    """A host with one changing file, at every path unless `by_path` says otherwise, and what it tells of it."""

    def __init__(self) -> None:
        self.file = picture(10)
        self.by_path: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.status = 200
        self.delay = 0.0
        self.clock: float | None = None
        """What it says the time is; None for the truth."""
        self.asked: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.sent = 0
        source = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                source.asked.append(dict(self.headers.items()))
                source.paths.append(self.path)
                time.sleep(source.delay)
                path = urlsplit(self.path).path
                if path in source.redirects:
                    self.answer(302, b"", Location=source.redirects[path])
                elif source.status != 200:
                    self.answer(source.status, b"")
                elif "ETag" in source.headers and self.headers.get("If-None-Match") == source.headers["ETag"]:
                    self.answer(304, b"", **source.headers)
                else:
                    body = source.by_path.get(path, source.file)
                    source.sent += len(body)
                    self.answer(200, body, **source.headers)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(source.clock if timestamp is None else timestamp)

            def answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def date(self, when: float) -> None:
        self.headers["Last-Modified"] = formatdate(when, usegmt=True)


@pytest.fixture
def source() -> Iterator[Source]:
    running = Source()
    yield running
    running.server.shutdown()
    running.server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def loader(url: str, clock: Clock, revalidate: float = 60.0, root: Path | None = None) -> ImageLoader:
    return ImageLoader(
        LabelStudioAuth(url, None, 5),
        max_bytes=1 << 20,
        max_pixels=1 << 20,
        timeout=5,
        hosts=ImageHosts(("127.0.0.1",), allow_private=True),
        local_root=root,
        revalidate=revalidate,
        clock=clock,
    )


class Levels(DiscPredictor):
    """Remembers the colours that it has looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []

    def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
        with self.lock:
            self.levels.append(round(float(image.mean())))
        return super().encode(image)


def level_of(annotator: Annotator, reference: ImageReference) -> int:
    """Click, and say the colour of the picture that the answer is about."""
    annotator.annotate(reference, CLICK, None, SIZE)
    sighting = annotator._images._sightings.peek(annotator._images.place(reference))
    return round(annotator._features.peek(sighting.name).mean)


# --- what a source says, and what it does not

KINDS = {
    "an ETag": {"ETag": '"v{}"'},
    "a weak ETag": {"ETag": 'W/"v{}"'},
    "a date": {"Last-Modified": "{}"},
    "a date and the same length": {"Last-Modified": "same"},
    "an ETag made of a date and a length": {"ETag": '"seconds-length"', "Last-Modified": "same"},
    "nothing": {},
    "an empty ETag": {"ETag": '""'},
}


def tell(source: Source, kind: str, version: int) -> None:
    """Set what the source says of this version of its file."""
    source.headers = {}
    for name, value in KINDS[kind].items():
        source.headers[name] = value.format(version)
        if name == "Last-Modified":
            # The same second as now: such a date may belong to two files.
            source.clock = time.time() if value == "same" else None  # stays, however slow the machine is
            source.date(source.clock or LONG_AGO - 100 * version)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_file_is_seen_after_the_stated_time_whatever_its_host_says(
    source: Source, clock: Clock, make_annotator: MakeAnnotator, kind: str
) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    reference = ImageReference("/a.bmp", 1)
    tell(source, kind, 1)
    assert level_of(annotator, reference) == 10
    source.file = picture(200)
    tell(source, kind, 2)  # "a date": an earlier one, as of a file that was moved there
    clock.now += 59
    assert level_of(annotator, reference) == 10
    assert len(source.asked) == 1  # within the stated time nobody is asked
    clock.now += 2
    assert level_of(annotator, reference) == 200
    assert level_of(annotator, reference) == 200
    assert predictor.levels == [10, 200]
    assert len(source.asked) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_file_is_encoded_once_and_asked_about_once_a_time(
    source: Source, clock: Clock, make_annotator: MakeAnnotator, kind: str
) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    tell(source, kind, 1)
    for _ in range(3):
        for _ in range(4):
            assert level_of(annotator, ImageReference("/a.bmp", 1)) == 10
        clock.now += 61
    assert predictor.levels == [10]
    assert len(predictor.calls) == 1  # the memo holds
    assert len(source.asked) == 3
    if kind in ("an ETag", "a weak ETag"):
        assert source.sent == len(source.file)
        assert [asked.get("If-None-Match") for asked in source.asked[1:]] == [source.headers["ETag"]] * 2


def test_zero_asks_at_every_click(source: Source, clock: Clock, make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator(images=loader(source.url, clock, revalidate=0), predictor=Levels())
    reference = ImageReference("/a.bmp", 1)
    for level in (10, 200, 50):
        source.file = picture(level)
        annotator.annotate(reference, CLICK, None, SIZE)
    assert annotator._heads.base.predictor.levels == [10, 200, 50]


def test_many_clicks_at_once_ask_once(source: Source, clock: Clock, make_annotator: MakeAnnotator) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    reference = ImageReference("/a.bmp", 1)
    level_of(annotator, reference)
    source.file, source.delay = picture(200), 0.3
    clock.now += 61
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: level_of(annotator, reference), range(8)))
    assert found == [200] * 8
    assert len(source.asked) == 2
    assert predictor.levels == [10, 200]


def test_a_deleted_or_forbidden_file_does_not_answer(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    annotator = make_annotator(images=loader(source.url, clock), predictor=Levels())
    reference = ImageReference("/a.bmp", 1)
    for status in (404, 410, 403, 401):
        source.status = 200
        assert level_of(annotator, reference) == 10
        clock.now += 61
        source.status = status
        with pytest.raises(ImageError, match=f"status {status}"):
            annotator.annotate(reference, CLICK, None, SIZE)
        source.status = 503  # nor when the host goes down afterwards
        with pytest.raises(ImageError, match="status 503"):
            annotator.annotate(reference, CLICK, None, SIZE)


@pytest.mark.parametrize("trouble", [500, 502, 503, 429, "gone"])
def test_while_the_source_is_down_what_was_seen_counts_for_a_while(
    source: Source, clock: Clock, make_annotator: MakeAnnotator, trouble: int | str
) -> None:
    annotator = make_annotator(images=loader(source.url, clock), predictor=Levels())
    reference = ImageReference("/a.bmp", 1)
    level_of(annotator, reference)
    clock.now += 61
    if trouble == "gone":
        source.server.shutdown()
        source.server.server_close()
    else:
        source.status = int(trouble)
    for _ in range(3):
        assert level_of(annotator, reference) == 10
    if trouble != "gone":
        assert len(source.asked) == 2  # it is not asked with each click
    clock.now += 600
    with pytest.raises(UnreachableError):
        annotator.annotate(reference, CLICK, None, SIZE)


def test_a_photo_that_was_never_seen_needs_its_source(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    source.status = 503
    with pytest.raises(ImageError, match="status 503"):
        make_annotator(images=loader(source.url, clock)).annotate(ImageReference("/a.bmp", 1), CLICK, None, SIZE)


def test_opening_a_task_asks_so_that_the_click_need_not(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    annotator = make_annotator(images=loader(source.url, clock), predictor=Levels())
    reference = ImageReference("/a.bmp", 1)
    level_of(annotator, reference)
    source.file = picture(200)
    clock.now += 61
    annotator.warm(reference)
    while annotator._warming:
        time.sleep(0.001)
    assert len(source.asked) == 2
    assert level_of(annotator, reference) == 200
    annotator.warm(reference)
    assert not annotator._warming
    assert len(source.asked) == 2


# --- a size that disagrees


def test_another_size_is_fetched_once_more_before_it_is_refused(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    reference = ImageReference("/a.bmp", 1)
    for headers in ({}, {"ETag": '"1"'}, {"ETag": '"lies"'}):
        source.headers = headers
        level_of(annotator, reference)
        num_asked = len(source.asked)
        source.file = picture(200, (60, 80))
        if headers == {"ETag": '"1"'}:
            source.headers = {"ETag": '"2"'}
        annotator.annotate(reference, CLICK, None, (60, 80))  # within the stated time
        assert len(source.asked) == num_asked + 1
        source.file = picture(10)
        clock.now += 61
    source.file = picture(200, (60, 80))
    with pytest.raises(SizeMismatchError, match="80 x 60 pixels"):
        annotator.annotate(reference, CLICK, None, SIZE)


def test_a_first_fetch_of_another_size_is_not_repeated(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    with pytest.raises(SizeMismatchError):
        make_annotator(images=loader(source.url, clock)).annotate(ImageReference("/a.bmp", 1), CLICK, None, (7, 7))
    assert len(source.asked) == 1


# --- one reference, several photos


def test_one_cloud_uri_of_two_storages_is_two_photos(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    """Label Studio resolves a URI by the storage of the task."""
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    source.redirects = {"/tasks/1/resolve/": "/one/a.bmp?sign=1", "/tasks/2/resolve/": "/two/a.bmp?sign=1"}
    source.by_path = {"/one/a.bmp": picture(10), "/two/a.bmp": picture(200), "/tasks/3/resolve/": picture(99)}
    source.headers = {"ETag": '"1"'}  # versions that each storage counts for itself
    for task, level in ((1, 10), (2, 200), (3, 99), (1, 10), (2, 200), (3, 99)):
        assert level_of(annotator, ImageReference("s3://bucket/a.bmp", task)) == level
    assert predictor.levels == [10, 200, 99]


def test_the_query_of_a_redirect_may_tell_which_of_two_photos_is_meant(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    source.headers = {"ETag": '"1"'}
    for task in (1, 2):
        source.redirects[f"/tasks/{task}/resolve/"] = f"/data/upload/a.bmp?storage={task}&X-Amz-Signature={task}"
    for task, level in ((1, 10), (2, 200), (1, 10)):
        source.file = picture(level)
        assert level_of(annotator, ImageReference("s3://bucket/a.bmp", task)) == level
    assert predictor.levels == [10, 200]


@pytest.mark.parametrize(
    ("address", "unsigned"),
    [
        ("http://h/a?X-Amz-Date=1&X-Amz-Signature=2", "http://h/a"),
        ("http://h/a?sv=1&sig=2&se=3&versionid=7", "http://h/a?versionid=7"),
        ("http://h/a?key=b&Expires=1", "http://h/a?key=b"),
        ("http://h/a?", "http://h/a"),
        ("http://h/a", "http://h/a"),
    ],
)
def test_an_address_without_its_signature(address: str, unsigned: str) -> None:
    assert _unsigned(address) == unsigned


def test_tasks_that_share_a_photo_share_its_features(
    source: Source, clock: Clock, make_annotator: MakeAnnotator
) -> None:
    """Also where each address is signed anew, and under the name that Hadoop has for S3."""
    predictor = Levels()
    annotator = make_annotator(images=loader(source.url, clock), predictor=predictor)
    for headers in ({"ETag": '"1"'}, {}):
        source.headers = headers
        for task, scheme in enumerate(("s3", "s3", "s3a", "S3N", "S3")):
            source.redirects[f"/tasks/{task}/resolve/"] = f"/bucket/a.bmp?signature={task}"
            assert level_of(annotator, ImageReference(f"{scheme}://bucket/a.bmp", task)) == 10
        clock.now += 61
    asked = [parse_qs(urlsplit(path).query)["fileuri"][0] for path in source.paths if "resolve" in path]
    assert {base64.urlsafe_b64decode(uri) for uri in asked} == {b"s3://bucket/a.bmp"}
    assert predictor.levels == [10, 10]  # one by its ETag, one by its bytes


def test_another_login_is_another_place(source: Source, clock: Clock) -> None:
    images = loader(source.url, clock)
    logins = [("me", "a"), ("me", "b"), ("you", "a"), (None, None)]
    assert len({images.place(ImageReference("http://h/a", 1, *login)) for login in logins}) == 4


# --- files of this machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def put(path: Path, data: bytes, when: float | None = None) -> None:
    path.write_bytes(data)
    if when is not None:
        os.utime(path, (when, when))


@pytest.mark.parametrize("when", [None, LONG_AGO], ids=["written now", "with the old date"])
def test_a_replaced_local_file_is_seen(
    source: Source, clock: Clock, folder: Path, make_annotator: MakeAnnotator, when: float | None
) -> None:
    """Same length, and even the same date, as `cp -p` and `rsync -t` leave it."""
    annotator = make_annotator(images=loader(source.url, clock, root=folder), predictor=Levels())
    reference = ImageReference("/data/local-files/?d=cam.bmp", 1)
    put(folder / "cam.bmp", picture(10), when)
    assert level_of(annotator, reference) == 10
    put(folder / "cam.bmp", picture(200), when)
    clock.now += 2.1
    assert level_of(annotator, reference) == 200
    (folder / "other.bmp").write_bytes(picture(77))
    os.replace(folder / "other.bmp", folder / "cam.bmp")
    clock.now += 2.1
    assert level_of(annotator, reference) == 77
    put(folder / "cam.bmp", picture(50, (60, 80)))
    annotator.annotate(reference, CLICK, None, (60, 80))  # at once, as its size disagrees
    (folder / "cam.bmp").unlink()
    clock.now += 2.1
    with pytest.raises(ImageError, match="FileNotFoundError"):
        annotator.annotate(reference, CLICK, None, (60, 80))
    assert source.asked == []


def test_a_settled_local_file_is_not_read_again(folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "cam.bmp", picture(10))
    status = (folder / "cam.bmp").stat()
    assert file_stamp("cam.bmp", status) is None
    monkeypatch.setattr(time, "time", lambda: status.st_ctime + 3)
    assert file_stamp("cam.bmp", status) == file_stamp("cam.bmp", (folder / "cam.bmp").stat()) != None  # noqa: E711
    images, kept = loader("http://127.0.0.1:1", clock, root=folder), {}
    look = images.look(ImageReference("/data/local-files/?d=cam.bmp", 1), kept.get)
    assert look.photo is not None
    kept[look.name] = "features"
    monkeypatch.setattr("backend.images.loader.digest_name", lambda file: pytest.fail("read"))
    again = images.look(ImageReference("/data/local-files/?d=cam.bmp", 1), kept.get)
    assert (again.name, again.kept, again.asked) == (look.name, "features", False)
    put(folder / "cam.bmp", picture(200))
    monkeypatch.setattr(time, "time", lambda: (folder / "cam.bmp").stat().st_ctime + 3)
    changed = images.look(ImageReference("/data/local-files/?d=cam.bmp", 1), kept.get)  # without any wait
    assert changed.name != look.name
    assert changed.photo is not None


# --- after a restart


@pytest.fixture(scope="module")
def network() -> Predictor:
    return Predictor(SkipClick(TINY), resolution=(64, 64))


def features_in(folder: Path) -> SharedCache:
    files = FileLru(folder, 1 << 30, write_features, read_features)
    return SharedCache("features", ByteLru(1 << 30), {"files": files})


@pytest.mark.parametrize("kind", ["an ETag", "a date", "nothing"])
def test_after_a_restart_the_kept_features_serve_only_the_photo_that_they_are_of(
    source: Source,
    clock: Clock,
    tmp_path: Path,
    make_annotator: MakeAnnotator,
    network: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    encoded: list[int] = []
    encode = Predictor.encode

    def counting(self: Predictor, image: NDArray[np.uint8]) -> object:
        encoded.append(round(float(image.mean())))
        return encode(self, image)

    monkeypatch.setattr(Predictor, "encode", counting)
    reference = ImageReference("/a.bmp", 1)

    def restarted() -> Annotator:
        clock.now += 1
        return make_annotator(
            images=loader(source.url, clock), predictor=network, features=features_in(tmp_path / "features")
        )

    tell(source, kind, 1)
    first = restarted()
    before = first.annotate(reference, CLICK, None, SIZE)
    first.close()  # what is copied in the background is there now
    second = restarted()
    again = second.annotate(reference, CLICK, None, SIZE)
    second.close()
    np.testing.assert_array_equal(before.mask.full(), again.mask.full())
    assert before.score == again.score
    assert encoded == [10]
    source.file = picture(200)
    tell(source, kind, 2)
    third = restarted()
    third.annotate(reference, CLICK, None, SIZE)
    assert encoded == [10, 200]
    source.status = 404
    with pytest.raises(ImageError):
        restarted().annotate(reference, CLICK, None, SIZE)


def test_a_data_uri_is_named_by_itself(clock: Clock, make_annotator: MakeAnnotator) -> None:
    predictor = Levels()
    annotator = make_annotator(images=loader("http://127.0.0.1:1", clock), predictor=predictor)
    for _ in range(2):
        for level in (10, 200):
            uri = f"data:image/bmp;base64,{base64.b64encode(picture(level)).decode()}"
            annotator.annotate(ImageReference(uri, 1), CLICK, None, SIZE)
        clock.now += 1000
    assert predictor.levels == [10, 200]


def test_a_data_uri_is_hashed_once(
    clock: Clock, make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has megabytes, and each click comes with it."""
    uri = f"data:image/bmp;base64,{base64.b64encode(picture(10)).decode()}"
    hashed: list[int] = []

    def counted(data: bytes) -> Any:
        hashed.append(len(data))
        return sha256(data)

    for module in ("backend.prompts", "backend.images.loader"):
        monkeypatch.setattr(f"{module}.sha256", counted)
    make_annotator(images=loader("http://127.0.0.1:1", clock)).annotate(ImageReference(uri, 1), CLICK, None, SIZE)
    assert hashed.count(len(uri)) == 1


# --- the words of hosts

DATE = {"Date": formatdate(LONG_AGO + 100, usegmt=True)}


@pytest.mark.parametrize(
    ("headers", "stamp"),
    [
        ({"ETag": '"a"'}, 'etag "a"'),
        ({"ETag": "unquoted"}, "etag unquoted"),
        ({"ETag": '""'}, None),
        ({"ETag": 'W/""'}, None),
        ({"ETag": '"a\xff"'}, None),
        ({"ETag": '"' + "a" * 300 + '"'}, None),
        ({}, None),
        (DATE | {"Last-Modified": formatdate(LONG_AGO, usegmt=True)}, "modified"),
        (DATE | {"Last-Modified": formatdate(LONG_AGO + 99, usegmt=True)}, None),
        (DATE | {"Last-Modified": formatdate(LONG_AGO + 99, usegmt=True), "ETag": '"seconds-length"'}, None),
        (DATE | {"Last-Modified": formatdate(LONG_AGO + 999, usegmt=True)}, None),
        ({"Last-Modified": formatdate(LONG_AGO, usegmt=True)}, None),
        (DATE | {"Last-Modified": "yesterday"}, None),
    ],
)
def test_what_an_answer_says_of_its_file(headers: dict[str, str], stamp: str | None) -> None:
    found = answer_stamp(headers)
    assert found is None if stamp is None else found is not None and found.startswith(stamp)
    assert answer_etag(headers) in (None, headers.get("ETag"))


def test_the_length_counts_beside_a_date() -> None:
    headers = DATE | {"Last-Modified": formatdate(LONG_AGO, usegmt=True)}
    assert answer_stamp(headers | {"Content-Length": "5"}) != answer_stamp(headers | {"Content-Length": "6"})


def test_the_published_case(clock: Clock, folder: Path, make_annotator: MakeAnnotator) -> None:
    """A photo is turned by 180 degrees in its place, then another size takes it."""
    fixture = Path(__file__).parents[2] / "fixtures" / "replaced_file.jpg"  # drawn for this project: a box on a ground
    shutil.copy(fixture, folder / "cam.jpg")
    images = loader("http://127.0.0.1:1", clock, root=folder)
    annotator = make_annotator(images=images)
    reference = ImageReference("/data/local-files/?d=cam.jpg", 1)
    with Image.open(fixture) as photo:
        size = photo.size[::-1]
        turned, larger = photo.rotate(180), photo.resize((320, 240))
    annotator.annotate(reference, CLICK, None, size)
    first = images.recent(reference)
    turned.save(folder / "cam.jpg", quality=95)
    clock.now += 2.1
    annotator.annotate(reference, CLICK, None, size)
    assert images.recent(reference) not in (None, first)
    larger.save(folder / "cam.jpg", quality=95)
    annotator.annotate(reference, CLICK, None, (240, 320))


# --- all pixels, for crops

PLACES = [*KINDS, "a local file"]


@pytest.mark.parametrize("kind", PLACES)
def test_all_pixels_are_those_of_the_name_or_none(source: Source, clock: Clock, tmp_path: Path, kind: str) -> None:
    """A crop must never show another photo than the one whose mask it corrects."""
    images, reference = loader(source.url, clock, root=tmp_path), ImageReference("/a.bmp", 1)
    if kind == "a local file":
        reference = ImageReference("/data/local-files/?d=a.bmp", 1)
    else:
        tell(source, kind, 1)
    write(source, tmp_path, 10)
    look = images.look(reference, lambda _: None)
    assert look.photo is not None
    np.testing.assert_array_equal(images.pixels(reference, look.name), look.photo.pixels)
    write(source, tmp_path, 200)
    if kind != "a local file":
        tell(source, kind, 2)
    with pytest.raises(ImageError, match="replaced by another image: click once more"):
        images.pixels(reference, look.name)
    assert images.recent(reference) is None, "the next click looks anew"
    again = images.look(reference, lambda _: None)
    assert again.name != look.name
    assert round(float(images.pixels(reference, again.name).mean())) == 200


def test_all_pixels_of_a_data_uri_are_there(source: Source, clock: Clock) -> None:
    uri = f"data:image/bmp;base64,{base64.b64encode(picture(70)).decode()}"
    images, reference = loader(source.url, clock), ImageReference(uri, 1)
    name = images.look(reference, lambda _: None).name
    assert round(float(images.pixels(reference, name).mean())) == 70


def write(source: Source, folder: Path, level: int) -> None:
    source.file = picture(level)
    (folder / "a.bmp").write_bytes(picture(level))
