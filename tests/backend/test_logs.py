"""Protects what is logged: one line per request, and nothing that would let a reader of the log in anywhere."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.annotator import Annotator
from backend.logs import JsonFormatter, TextFormatter, redacted
from backend.prompts import ImageReference
from backend.settings import Settings
from backend.web.app import create_app
from tests.support.fakes import FlatImages
from tests.support.recorded import clicked_bodies, recorded_requests

SIGNED = "https://bucket.s3.example.com/photos/a.png?X-Amz-Credential=hidden-1&X-Amz-Signature=hidden-2"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.hidden-3"


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def log(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    """All that is logged, from DEBUG on, as the server would write it in one of the two forms."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(request.param())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


class LeakyImages(FlatImages):
    """Fails as libraries do: with whole addresses and headers in the exception."""

    def load(self, reference: ImageReference) -> NDArray[np.uint8]:
        logging.getLogger("urllib3.connectionpool").debug(
            '%s "GET %s HTTP/1.1" 403', "https://bucket.s3.example.com:443", SIGNED.removeprefix("https://bucket")
        )
        raise RuntimeError(f"cannot open {SIGNED!r} with {{'Authorization': 'Bearer hidden-bearer'}} and {TOKEN}")


def test_no_secret_is_logged_whatever_fails(make_annotator: Callable[..., Annotator], log: StringIO) -> None:
    client = create_app(Settings(), make_annotator(images=LeakyImages())).test_client()
    body = clicked_bodies("03")[0]
    body["tasks"][0] |= {"data": {"image": SIGNED}, "meta": {"note": "hidden-body"}}
    body["params"] |= {"login": "hidden-login", "password": "hidden-password"}
    answer = client.post(
        "/predict?token=hidden-query", json=body, headers={"Authorization": "Basic aGlkZGVuOmhpZGRlbg=="}
    )
    assert answer.status_code == 500
    assert "hidden" not in answer.text
    setup = recorded_requests("01", "/setup")[0]["body"] | {"access_token": "hidden-access"}
    client.post("/setup", json=setup)
    client.post("/predict", data=b'{"hidden": "body"', content_type="application/json")
    assert "Traceback" in log.getvalue()
    assert "bucket.s3.example.com/photos/a.png?..." in log.getvalue()
    assert "hidden" not in log.getvalue()
    assert "aGlkZGVu" not in log.getvalue()


def test_the_log_of_a_click_as_json(make_annotator: Callable[..., Annotator]) -> None:
    formatter, records = JsonFormatter(), []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("backend.requests")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    client = create_app(Settings(), make_annotator()).test_client()
    client.post("/predict", json=clicked_bodies("04")[1], headers={"X-Request-ID": "proxy-17"})
    logger.removeHandler(handler)
    (line,) = [formatter.format(record) for record in records]
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    assert found["id"] == "proxy-17"
    assert found["project"].startswith("1.")
    assert (found["route"], found["status"], found["task"], found["clicks"]) == ("/predict", 200, 3, 2)
    assert {"time", "level", "ms", "fetch_ms", "encode_ms", "click_ms", "mask_ms"} <= found.keys()


def test_facts_of_a_client_cannot_forge_a_record() -> None:
    record = logging.LogRecord("backend", logging.INFO, "", 1, "x", (), None)
    record.facts = {"level": "CRITICAL", "task": 'a"}\n{"level": "CRITICAL'}
    (line,) = JsonFormatter().format(record).splitlines()
    assert json.loads(line)["level"] == "INFO"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET {SIGNED} failed", "GET https://bucket.s3.example.com/photos/a.png?... failed"),
        ("http://me:secret@host/x", "http://...@host/x"),
        ("Authorization: Token 0123456789abcdef", "Authorization: Token ..."),
        (f"key {TOKEN}", "key ..."),
        (f"data:image/png;base64,{'A' * 80} is large", "data:image/png,... is large"),
        ("LABEL_STUDIO_URL=http://ls:8080/prefix is fine?", "LABEL_STUDIO_URL=http://ls:8080/prefix is fine?"),
        ("token of user annotator@example.com", "token of user annotator@example.com"),
    ],
)
def test_redaction(text: str, shown: str) -> None:
    assert redacted(text) == shown


FORGED = "a\n2026-01-01 00:00:00,000 INFO backend.requests id=1\r\x1b[2Jb\x9b31m\u2028c\u202ed\x00e\ud800"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize("where", ["message", "name", "facts", "exception"])
def test_no_text_forges_a_line_or_commands_a_terminal(formatter: logging.Formatter, where: str) -> None:
    record = logging.LogRecord("backend", logging.ERROR, __file__, 1, "%s", ("harmless",), None)
    if where == "message":
        record.args = (FORGED,)
    elif where == "name":
        record.name = FORGED
    elif where == "facts":
        record.facts = {"action": FORGED}
    else:
        try:
            raise RuntimeError(FORGED)
        except RuntimeError:
            record.exc_info = sys.exc_info()
    lines = formatter.format(record).split("\n")
    assert not any(line.startswith("2026-01-01") for line in lines)
    for character in "\r\x1b\x9b\u2028\u202e\x00\ud800":
        assert not any(character in line for line in lines)
    if isinstance(formatter, JsonFormatter) or where != "exception":
        assert len(lines) == 1
