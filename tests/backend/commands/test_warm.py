"""Protects warming a project: every page, every task once, retries, reasons, and an end when the cache is full.

Against a real server on loopback and a Label Studio that answers as the real one's REST interface does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from werkzeug.serving import make_server

from backend.annotator import Annotator
from backend.commands import warm
from backend.commands.warm import Server, ServerError, warm_project
from backend.images.decode import DecodedImage, ImageError
from backend.label_studio.auth import LabelStudioAuth
from backend.label_studio.client import ApiError, LabelStudioApi
from backend.prompts import ImageReference
from backend.settings import Settings
from backend.web.app import create_app
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.recorded import recorded_requests

MakeAnnotator = Callable[..., Annotator]
CONFIG = recorded_requests("01", "/setup")[0]["body"]["schema"]


class LabelStudio(ThreadingHTTPServer):
    """Project 7 with `num_tasks` tasks; the first `num_failures` requests fail."""

    def __init__(self, num_tasks: int, num_failures: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tasks = [{"id": i, "data": {"image": f"/data/upload/7/{i}.png"}} for i in range(1, num_tasks + 1)]
        self.num_failures = num_failures
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: LabelStudio

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status, body = 200, {}
        if len(self.server.seen) <= self.server.num_failures:
            status = 502
        elif parts.path == "/api/projects/7/":
            body = {"id": 7, "label_config": CONFIG}
        elif parts.path == "/api/tasks/" and query["project"] == "7" and query["resolve_uri"] == "false":
            first = (int(query["page"]) - 1) * int(query["page_size"])
            page = self.server.tasks[first : first + int(query["page_size"])]
            body = {"tasks": page, "total": len(self.server.tasks)}
        else:
            status = 404
        answer = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(server: Any) -> Iterator[str]:
    """A server that runs in a thread of its own; its address."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def backend(annotator: Annotator, **settings: Any) -> Iterator[Server]:
    app = create_app(Settings(**settings), annotator)
    with served(make_server("127.0.0.1", 0, app, threaded=True)) as url:
        yield Server(url, pause=0.001)


def api(studio: LabelStudio) -> LabelStudioApi:
    return LabelStudioApi(LabelStudioAuth(studio.url, "legacy", 5), 5)


def test_all_pages_are_read_and_each_image_is_prepared_once(
    make_annotator: MakeAnnotator, predictor: DiscPredictor, images: FlatImages
) -> None:
    studio = LabelStudio(205, num_failures=2)
    with served(studio), backend(make_annotator()) as server:
        summary = warm_project(api(studio), server, 7)
        again = warm_project(api(studio), server, 7)
    assert (summary.total, summary.prepared, summary.failures, summary.stopped) == (205, 205, {}, "")
    assert again.prepared == 205
    assert sorted(images.loaded) == sorted(task["data"]["image"] for task in studio.tasks)
    assert len(predictor.encoded) == 205
    assert [path.split("page=")[1][0] for path in studio.seen if "page=" in path][:3] == ["1", "2", "3"]


class SomeBroken(FlatImages):
    def load(self, reference: ImageReference) -> DecodedImage:
        if reference.url.endswith(("3.png", "5.png")):
            raise ImageError("status 404; was it deleted?")
        return super().load(reference)


def test_failures_are_counted_by_reason_and_stop_nothing(make_annotator: MakeAnnotator) -> None:
    studio = LabelStudio(6)
    studio.tasks[0]["data"] = {"text": "no image"}
    with served(studio), backend(make_annotator(images=SomeBroken())) as server:
        summary = warm_project(api(studio), server, 7)
    assert summary.prepared == 3
    assert sorted(summary.failures) == [1, 3, 5]
    first, second, third = summary.lines()
    assert first == "3 of 6 images are prepared."
    assert second.startswith("2 failed (task ")
    assert "was it deleted?" in second
    assert third.startswith("1 failed (task 1)")


def test_it_ends_when_the_server_forgets_the_first_images(make_annotator: MakeAnnotator) -> None:
    studio = LabelStudio(200)
    with served(studio), backend(make_annotator(feature_bytes=20 * 1000)) as server:
        summary = warm_project(api(studio), server, 7)
    assert 20 < summary.prepared < 60
    assert "no more than 20 images" in summary.stopped
    assert "FEATURE_CACHE_DIR" in list(summary.lines())[-1]


def test_a_busy_server_is_asked_again(make_annotator: MakeAnnotator) -> None:
    """With five threads one place is left for predictions, so that of two images one is refused with a 503."""
    studio = LabelStudio(10)
    with served(studio), backend(make_annotator(), threads=5) as server:
        patient = replace(server, pause=0.1)  # on a busy machine the other image takes its time too
        assert warm_project(api(studio), patient, 7).prepared == 10


def test_who_cannot_be_asked_is_named(make_annotator: MakeAnnotator) -> None:
    studio = LabelStudio(3)
    with served(studio):
        with pytest.raises(ServerError, match=r"no answer from http://127.0.0.1:9 .*is the server running"):
            warm_project(api(studio), Server("http://127.0.0.1:9", pause=0.001), 7)
        with pytest.raises(ServerError, match="status 501: another server or password"):
            warm_project(api(studio), Server(studio.url, pause=0.001), 7)
        with pytest.raises(ApiError, match="status 404"):
            warm_project(api(studio), Server(studio.url, pause=0.001), 8)


def test_the_command(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studio = LabelStudio(2)
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "legacy")
    monkeypatch.setenv("BASIC_AUTH_USER", "me")
    monkeypatch.setenv("BASIC_AUTH_PASS", "secret")
    annotator = make_annotator()
    with served(studio), backend(annotator, basic_auth_user="me", basic_auth_pass="secret") as server:
        assert warm.main(["--project", "7", "--server", server.url]) == 0
        assert capsys.readouterr().out == "2 of 2 images are prepared.\n"
        monkeypatch.setenv("BASIC_AUTH_PASS", "wrong")
        assert warm.main(["--project", "7", "--server", server.url]) == 2
        assert "status 401" in capsys.readouterr().err
        monkeypatch.setenv("PORT", "http")
        assert warm.main(["--project", "7"]) == 2
        assert "PORT=http" in capsys.readouterr().err


def test_values_that_json_has_not_stop_nothing(make_annotator: MakeAnnotator) -> None:
    studio = LabelStudio(1)
    studio.tasks[0]["data"] |= {"a": float("nan"), "b": "\ud800"}
    with served(studio), backend(make_annotator()) as server:
        assert warm_project(api(studio), server, 7).prepared == 1
