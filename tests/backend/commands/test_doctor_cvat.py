"""Protects the doctor's way from CVAT: each thing that may be wrong there has a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backend.commands.doctor_cvat import examine
from backend.commands.finding import Finding
from backend.settings import Settings
from tests.support.fake_cvat import FakeCvat, fake_cvat

ON = Settings(cvat="on", host="127.0.0.1")
TOKEN = {"CVAT_ACCESS_TOKEN": "secret"}
MINE = {"id": "skipclick", "kind": "interactor"}


@pytest.fixture
def cvat() -> Iterator[FakeCvat]:
    """One that is set up as it should be."""
    with fake_cvat() as running:
        running.models, running.token = [MINE, {"id": "sam", "kind": "interactor"}], "secret"
        yield running


def findings(cvat: FakeCvat, settings: Settings = ON, environment: dict[str, str] = TOKEN) -> list[Finding]:
    return list(examine(settings, cvat.url, environment))


def test_all_is_well(cvat: FakeCvat) -> None:
    server, function = findings(cvat)
    assert (server.todo, function.todo) == ("", "")
    assert server.says == f"CVAT 2.80.0 answers at {cvat.url}"
    assert "skipclick" in function.says
    cvat.version = "3.1.0"
    assert "newer" in findings(cvat)[0].says


@pytest.mark.parametrize(
    ("version", "form", "todo"),
    [
        ("2.59.1", "shapes", "set CVAT_ANSWER=mask"),
        ("2.59.1", "mask", ""),
        ("2.60.0", "mask", "leave CVAT_ANSWER out"),
        ("unknown", "shapes", "name the address that the browser shows"),
    ],
)
def test_versions(cvat: FakeCvat, version: str, form: Any, todo: str) -> None:
    cvat.version = version
    first = findings(cvat, Settings(cvat="on", host="127.0.0.1", cvat_answer=form))[0]
    assert first.todo.startswith(todo)
    assert bool(first.todo) == bool(todo)


@pytest.mark.parametrize(
    ("models", "says", "todo"),
    [
        (None, "lists no models (status 404)", "CVAT_SERVERLESS=1"),
        ([], "do not include skipclick; it has none", "CVAT_NUCLIO_HOST"),
        ([{"id": "sam", "kind": "interactor"}], "it has sam", "CVAT_NUCLIO_HOST"),
        ([{"id": "skipclick", "kind": "detector"}], "of kind detector", "CVAT_NUCLIO_HOST"),
    ],
)
def test_a_function_that_cvat_does_not_see(cvat: FakeCvat, models: Any, says: str, todo: str) -> None:
    cvat.models = models
    _, function = findings(cvat)
    assert says in function.says
    assert todo in function.todo


def test_the_login_and_the_switch(cvat: FakeCvat) -> None:
    assert "CVAT_ACCESS_TOKEN is not set" in findings(cvat, environment={})[1].says
    assert "refuses CVAT_ACCESS_TOKEN (401)" in findings(cvat, environment={"CVAT_ACCESS_TOKEN": "other"})[1].says
    assert "start it with CVAT=on" in findings(cvat, Settings())[1].todo


def test_nobody_answers(cvat: FakeCvat) -> None:
    (server,) = examine(ON, "http://127.0.0.1:1", TOKEN)
    assert "fails" in server.says
    assert "start CVAT" in server.todo
