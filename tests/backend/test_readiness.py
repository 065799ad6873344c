"""Protects the server's beginning and end: what it says while it loads, when something breaks, and when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend import readiness as module
from backend.annotator import Annotator
from backend.factory import Service
from backend.readiness import Readiness, folder_trouble
from backend.settings import Settings
from backend.web import app as app_module
from backend.web.app import build_app
from tests.support.recorded import clicked_bodies, recorded_requests


class Loading:
    """A service that is being loaded until somebody says otherwise."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator, self.go_on = annotator, threading.Event()
        self._error: Exception | None = None
        self.failures: list[BaseException] = []
        self.readiness = Readiness.load(self._build, self.failures.append, [])

    def _build(self) -> Service:
        assert self.go_on.wait(10)
        if self._error is not None:
            raise self._error
        return Service(self._annotator)

    def end(self, error: Exception | None = None) -> None:
        self._error = error
        self.go_on.set()
        deadline = time.monotonic() + 5
        while not self.failures if error else self.readiness.loaded() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def loading(annotator: Annotator) -> Iterator[Loading]:
    loading = Loading(annotator)
    yield loading
    loading.go_on.set()


@pytest.fixture
def client(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setattr(app_module, "SETUP_PATIENCE", 0.01)
    return build_app(Settings(), loading.readiness).test_client()


def test_while_the_model_loads(client: FlaskClient, loading: Loading) -> None:
    setup = recorded_requests("01", "/setup")[0]["body"]
    assert client.get("/health").status_code == 200
    for answer in (
        client.get("/ready"),
        client.post("/predict", json=clicked_bodies("03")[0]),
        client.post("/setup", json=setup),
        client.get("/versions"),
    ):
        assert answer.status_code == 503
        assert "still being loaded" in answer.json["error"]
        assert "still being loaded" in answer.status, "all that Label Studio shows"
        assert int(answer.headers["Retry-After"]) > 0
    assert "skipclick_ready 0.0" in client.get("/metrics").text
    bad = client.post("/setup", json=setup | {"schema": "<View/>"})
    assert bad.status_code == 400, "a config that cannot work is told at once"
    loading.end()
    assert client.get("/ready").json == {"status": "READY"}
    assert client.post("/predict", json=clicked_bodies("03")[0]).status_code == 200
    assert client.post("/setup", json=setup).json["model_version"] == "discs-1"
    assert "skipclick_ready 1.0" in client.get("/metrics").text


def test_setup_waits_a_moment_for_a_model_that_is_nearly_there(
    client: FlaskClient, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "SETUP_PATIENCE", 5)
    threading.Timer(0.1, loading.end).start()
    assert client.post("/setup", json=recorded_requests("01", "/setup")[0]["body"]).status_code == 200


def test_a_model_that_cannot_be_loaded_is_reported_once_and_answered_plainly(
    client: FlaskClient, loading: Loading
) -> None:
    loading.end(ValueError("checkpoint x does not exist"))
    assert [str(error) for error in loading.failures] == ["checkpoint x does not exist"]
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "checkpoint x does not exist" in answer.json["error"]
    assert client.get("/metrics").status_code == 200


def test_a_stopping_server_wants_no_new_requests_but_answers_those_it_gets(
    client: FlaskClient, loading: Loading
) -> None:
    loading.end()
    loading.readiness.stop()
    assert client.get("/ready").status_code == 503
    assert "stopping" in client.get("/ready").json["error"]
    assert client.get("/health").status_code == 200
    assert client.post("/predict", json=clicked_bodies("03")[0]).status_code == 200


class BrokenService(Service):
    def check_device(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_broken_device_is_not_ready(annotator: Annotator) -> None:
    client = build_app(Settings(), Readiness.of(BrokenService(annotator))).test_client()
    assert "the device does not answer" in client.get("/ready").json["error"]
    assert client.get("/health").status_code == 200


def test_a_full_disk_and_a_folder_that_cannot_be_made(
    annotator: Annotator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder_trouble(tmp_path / "not" / "there" / "yet") is None
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written to" in str(folder_trouble(file / "folder"))
    monkeypatch.setattr(module, "_MIN_FREE", 1 << 62)
    readiness = Readiness.load(lambda: Service(annotator), lambda error: None, [tmp_path])
    readiness.service(5)
    client = build_app(Settings(), readiness).test_client()
    assert client.get("/ready").status_code == 200  # clicks need no disk
    (trouble,) = client.get("/status").json["folders"]
    assert "MB left" in trouble
    assert "skipclick_folders_in_trouble 1.0" in client.get("/metrics").text


def test_health_touches_no_model(loading: Loading, make_annotator: Callable[..., Annotator]) -> None:
    """Liveness holds even where every part that could be asked is gone."""
    annotator = make_annotator()
    annotator.close()
    client = build_app(Settings(), Readiness.of(BrokenService(annotator))).test_client()
    assert client.get("/health").json == {"status": "UP", "model_class": "SkipClick"}
