"""Protects the adapter to the official runner: through it Label Studio gets the answers of our own server."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support import official_runner_stand_in as stand_in
from tests.support.fakes import DiscPredictor
from tests.support.recorded import RECORDINGS, clicked_bodies, recorded_requests


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`backend.official_runner`, imported where the package's place is taken by the stand-in."""
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "backend.official_runner", raising=False)
    module = import_module("backend.official_runner")
    monkeypatch.delitem(sys.modules, "backend.official_runner")
    return module


@pytest.fixture
def official(adapter: ModuleType, app: Flask, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """The runner with our model, around the app whose predictor draws discs."""
    monkeypatch.setattr(adapter, "_our_app", lambda: app)
    runner = adapter.official_app()
    runner.testing = True  # an error reaches the test instead of becoming a status
    return runner.test_client()


def without_ids(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results whose regions have lost their ids, which are random."""
    return [
        result | {"result": [{k: v for k, v in region.items() if k != "id"} for region in result["result"]]}
        for result in results
    ]


@pytest.mark.parametrize("name", sorted(path.stem[:2] for path in RECORDINGS.glob("*.json")))
def test_every_recorded_prediction_is_answered_as_by_our_own_server(
    name: str, official: FlaskClient, client: FlaskClient
) -> None:
    for recorded in recorded_requests(name, "/predict"):
        own = client.post("/predict", json=recorded["body"])
        if own.status_code == 200:
            through = official.post("/predict", json=recorded["body"]).get_json()
            assert without_ids(through["results"]) == without_ids(own.get_json()["results"])
        else:
            with pytest.raises(ValueError, match="the annotator sees"):
                official.post("/predict", json=recorded["body"])


def test_setup_tells_the_model_version(official: FlaskClient) -> None:
    body = recorded_requests("01", "/setup")[0]["body"]
    assert official.post("/setup", json=body).get_json() == {"model_version": "discs-1"}


def test_an_unusable_config_is_refused_with_the_same_sentence(official: FlaskClient, client: FlaskClient) -> None:
    body = recorded_requests("01", "/setup")[0]["body"]
    body["schema"] = body["schema"].replace("BrushLabels", "VideoRectangle")
    with pytest.raises(ValueError, match="tag") as refusal:
        official.post("/setup", json=body)
    assert str(refusal.value) == client.post("/setup", json=body).get_json()["error"]


def test_the_runner_s_login_for_images_arrives(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def ask(route: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((route, body))
        return {"model_version": "1", "results": []}

    monkeypatch.setattr(adapter, "_ask", ask)
    adapter.SkipClick("7", "<View/>").predict([{"id": 1}], context=None, login="me", password="secret")
    params = {"login": "me", "password": "secret", "context": None}
    assert asked[1] == (
        "/predict",
        {"tasks": [{"id": 1}], "project": "7", "label_config": "<View/>", "params": params},
    )


def test_webhooks_are_handed_on(official: FlaskClient, client: FlaskClient) -> None:
    project = {"id": 1, "label_config": recorded_requests("01", "/setup")[0]["body"]["schema"]}
    body = {"action": "START_TRAINING", "project": project}
    answer = official.post("/webhook", json=body)
    assert answer.status_code == 201
    assert answer.get_json() == {"result": client.post("/webhook", json=body).get_json()["result"], "status": "ok"}


@pytest.mark.parametrize("from_file", [False, True])
def test_it_starts_from_the_environment_and_the_runner_asks_for_the_password(
    from_file: bool, adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("secret\n")
    password = {"BASIC_AUTH_PASS_FILE": str(tmp_path / "password")} if from_file else {"BASIC_AUTH_PASS": "secret"}
    for name, value in {"DEVICE": "cpu", "BASIC_AUTH_USER": "me", **password}.items():
        monkeypatch.setenv(name, value)
    runner = adapter.official_app().test_client()
    body = recorded_requests("01", "/setup")[0]["body"]
    for wrong in (None, ("me", "wrong"), ("you", "secret")):
        assert runner.post("/setup", json=body, auth=wrong).status_code == 401
    answer = runner.post("/setup", json=body, auth=("me", "secret"))
    assert answer.get_json() == {"model_version": "skipclick-lite"}


@pytest.mark.parametrize("name", ["BASIC_AUTH_USER", "BASIC_AUTH_PASS"])
def test_half_a_login_is_refused_as_by_our_own_server(
    name: str, adapter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner alone would be open to everybody then."""
    monkeypatch.setenv(name, "half")
    with pytest.raises(ValueError, match="set both BASIC_AUTH_USER and BASIC_AUTH_PASS"):
        adapter.official_app()


def test_the_stand_in_is_driven_by_clicks(official: FlaskClient, predictor: DiscPredictor) -> None:
    """The comparison above would hold for a runner that never asks, too."""
    body = clicked_bodies("05")[-1]
    assert len(official.post("/predict", json=body).get_json()["results"][0]["result"]) == 1
    assert predictor.calls
