"""Protects what a person's browser gets: the page with nothing foreign in it, its files and no others, and the status.

How the page behaves in a browser is tests/e2e/test_ui.py's.
"""

from __future__ import annotations

import re
from concurrent.futures import Future
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.app import build_app
from skipclick import __version__
from tests.support.recorded import clicked_bodies

UI = Path(__file__).parents[3] / "backend" / "ui"


def test_the_page_and_its_files_are_served_with_a_strict_policy(client: FlaskClient) -> None:
    kinds = {
        "/ui": "text/html",
        "/ui/page.js": "text/javascript",
        "/ui/page.css": "text/css",
        "/ui/sample.jpg": "image/jpeg",
    }
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.content_type.startswith(kind)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    page = (UI / "index.html").read_text(encoding="utf-8")
    for text in (page, (UI / "page.js").read_text(encoding="utf-8"), (UI / "page.css").read_text(encoding="utf-8")):
        assert re.findall(r"(?:https?:)?//\w[\w.-]*\.\w+", text) == []
    assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page) == []
    for file in re.findall(r'(?:href|src)="ui/([^"]+)"', page):
        assert (UI / file).is_file()
    names = set(re.findall(r'\bat\("(\w+)"\)|\blist\("(\w+)"', (UI / "page.js").read_text(encoding="utf-8")))
    assert {a or b for a, b in names} <= set(re.findall(r'id="(\w+)"', page))


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js", "/etc/passwd", "a%00", ".."]
)
def test_no_other_files_are_served(client: FlaskClient, name: str) -> None:
    answer = client.get(f"/ui/{name}")
    assert answer.status_code in (308, 404)
    assert set(answer.json) == {"error"}


def test_the_status(client: FlaskClient) -> None:
    client.post("/predict", json=clicked_bodies("03")[0])
    status = client.get("/status").json
    assert (status["version"], status["ready"], status["trouble"]) == (__version__, True, None)
    assert (status["model"], status["device"], status["dtype"]) == ("discs-1", "cpu", "float32")
    assert status["caches"]["features"] == {"hits": 0, "misses": 1, "entries": 1, "bytes": 1000}
    assert set(status["queue"].values()) == {0}
    assert status["training"] is None


def test_the_status_and_the_page_are_there_while_the_model_is_loaded() -> None:
    client = build_app(Settings(), Readiness(Future())).test_client()
    assert client.get("/ui").status_code == 200
    status = client.get("/status").json
    trouble = status["trouble"]
    assert status == {"version": __version__, "ready": False, "trouble": trouble, "folders": [], "learning": None}
    assert "being loaded" in status["trouble"]


def test_a_prediction_says_how_long_its_stages_took(client: FlaskClient) -> None:
    answer = client.post("/predict", json=clicked_bodies("03")[0])
    timing = answer.headers["Server-Timing"]
    assert re.fullmatch(r"fetch;dur=[\d.]+, encode;dur=[\d.]+, click;dur=[\d.]+, mask;dur=[\d.]+", timing)
    assert "Server-Timing" not in client.get("/health").headers
