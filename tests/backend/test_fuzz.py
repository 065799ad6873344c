"""Protects the server against requests that nobody meant: whatever comes, it answers, in JSON, and names what is wrong.

Recorded requests of Label Studio and one of CVAT are damaged in one to three places; requests are made up from the
OpenAPI description; and ten thousand bad ones leave no memory behind.
"""

from __future__ import annotations

import base64
import copy
import gc
import os
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.heads import Head, Heads
from backend.images.allowlist import ImageHosts
from backend.images.loader import ImageLoader, Look
from backend.label_studio.auth import LabelStudioAuth
from backend.prompts import ImageReference
from backend.settings import Settings
from backend.web.app import create_app
from skipclick.cache import ByteLru, SharedCache
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.recorded import clicked_bodies, recorded_requests

T = TypeVar("T")

OPENAPI = orjson.loads((Path(__file__).parents[2] / "backend" / "web" / "openapi.json").read_bytes())


class KnownImages(ImageLoader):
    """The recordings' uploads as flat images; every other reference goes the real way, with nobody there."""

    def __init__(self) -> None:
        auth = LabelStudioAuth("http://127.0.0.1:1", None, 1)
        super().__init__(auth, max_bytes=1 << 20, max_pixels=1 << 20, timeout=1, hosts=ImageHosts(()))
        self._flat = FlatImages()

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        if reference.url.startswith("/data/upload/"):
            return self._flat.look(reference, find, doubt)
        return super().look(reference, find, doubt)


def build_app() -> tuple[Flask, Annotator]:
    annotator = Annotator(
        Heads(Head("discs-1", DiscPredictor())),
        KnownImages(),
        DeviceExecutor(),
        features=SharedCache("features", ByteLru(1 << 16)),
        memo_bytes=1 << 20,
    )
    return create_app(Settings(cvat="on", host="127.0.0.1"), annotator), annotator


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Flask]:
    app, annotator = build_app()
    yield app
    annotator.close()


@pytest.fixture(scope="module")
def client(fuzzed: Flask) -> FlaskClient:
    return fuzzed.test_client()


def data_uri(width: int, height: int) -> str:
    file = BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


CLICK = clicked_bodies("03")[0]
CVAT_CLICK = {
    "image": data_uri(160, 120).partition(",")[2],
    "pos_points": [[40.5, 50.25], [60, 70]],
    "neg_points": [[10, 10]],
    "obj_bbox": [[20, 30], [80, 90]],
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/predict", CLICK),
    ("/predict", clicked_bodies("05")[-1]),
    ("/predict", clicked_bodies("15")[-1]),
    ("/predict", clicked_bodies("19")[-1]),
    ("/predict", clicked_bodies("35")[-1]),
    ("/predict", recorded_requests("02", "/predict")[0]["body"]),
    ("/warm", recorded_requests("02", "/predict")[0]["body"]),
    ("/setup", recorded_requests("01", "/setup")[0]["body"]),
    ("/webhook", recorded_requests("90", "/webhook")[0]["body"]),
    ("/api/function_invocations", CVAT_CLICK),
    ("/", CVAT_CLICK),
]


# --- damaged recordings


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a value, but not to each of a mask's thousands of numbers."""
    if path:
        yield path
    if path[-1:] == ("rle",):
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with the value at `path` replaced, or gone if `new` is `MISSING`."""
    if not path:
        return new
    key, *rest = path
    changed = copy.copy(value)
    try:
        part = replaced(changed[key] if rest else None, tuple(rest), new)
        if part is MISSING:
            del changed[key]
        else:
            changed[key] = part
    except (KeyError, IndexError, TypeError):
        pass  # an earlier damage took the place away
    return changed


MISSING = object()

# Raw JSON: some of it (NaN, lone surrogates, huge numbers) is nothing that every parser takes.
NASTY = [
    *["null", "true", "false", "0", "-1", "1e999", "-1e308", "NaN", "Infinity", "1" + "0" * 400, "4294967296", "0.5"],
    *[
        '""',
        '"x"',
        '"\\ud800"',
        '"\\u0000"',
        '"\\u202e\\ufeff💥"',
        '"' + "x" * 100_000 + '"',
        '"0:99999999"',
        '"../../etc/passwd"',
    ],
    *[
        "[]",
        "{}",
        "[null]",
        "[[]]",
        "[1e999]",
        '{"a": {}}',
        '{"": null}',
        "[" * 900 + "]" * 900,
        "[" * 5000 + "]" * 5000,
    ],
    *['{"a":' * 900 + "1" + "}" * 900, "[" + "0," * 50_000 + "0]", '"http://169.254.169.254/"', '"file:///etc/passwd"'],
    *[
        '"s3://a/b"',
        '"http://[::1"',
        '"data:image/png;base64,AAAA"',
        '"<View/>"',
        "\"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>\"",
    ],
]
REFERENCES = [data_uri(160, 120), data_uri(1, 1)]

nasty = st.one_of(
    st.just(MISSING),
    st.sampled_from(NASTY),
    st.sampled_from([orjson.dumps(text).decode() for text in REFERENCES]),
    st.text(max_size=20).map(lambda text: orjson.dumps(text.encode(errors="ignore").decode()).decode()),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.integers(-(2**70), 2**70).map(str),
)


@st.composite
def damaged(draw: Callable[..., Any]) -> tuple[str, bytes]:
    """A route, and a body for it in which one to three values are missing or replaced by raw JSON."""
    route, body = draw(st.sampled_from(BODIES))
    marks: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        if not (left := list(places(body))):
            break
        path, new = draw(st.sampled_from(left)), draw(nasty)
        if new is not MISSING:
            marks.append(new)
            new = f"@{len(marks) - 1}@"
        body = replaced(body, path, new)
    raw = orjson.dumps(body)
    for number, mark in enumerate(marks):
        raw = raw.replace(f'"@{number}@"'.encode(), mark.encode())
    return route, raw


def check_answer(client: FlaskClient, route: str, raw: bytes) -> int:
    """Any answer but a failure: JSON in any case, a sentence where the request was refused."""
    answer = client.post(route, data=raw, content_type="application/json")
    assert answer.status_code in (200, 201, 400), (answer.status, raw[:2000])
    found = orjson.loads(answer.data)
    if answer.status_code == 400:
        assert 10 < len(found["error"]) <= 2000
        assert len(answer.status) < 600
    return answer.status_code


@given(damaged())
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_damaged_recordings_are_answered(client: FlaskClient, request_: tuple[str, bytes]) -> None:
    check_answer(client, *request_)


@pytest.mark.parametrize("number", range(len(NASTY)))
def test_every_nasty_value_in_every_place_of_a_click(client: FlaskClient, number: int) -> None:
    for route, click in (("/predict", CLICK), ("/api/function_invocations", CVAT_CLICK)):
        for path in places(click):
            raw = orjson.dumps(replaced(click, path, "@@")).replace(b'"@@"', NASTY[number].encode())
            check_answer(client, route, raw)


@given(st.binary(max_size=200))
@example(b"\xff\xfe[\0]\0")
@example(b"[" * 100_000)
@example(b'"rle":[' * 1000)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_mean_nothing_are_refused(client: FlaskClient, raw: bytes) -> None:
    for route in ("/predict", "/warm", "/setup", "/webhook", "/api/function_invocations"):
        if raw.strip() not in (b"{}",):
            assert check_answer(client, route, raw) == 400


# --- the answer names the field

KEYPOINT = "keypointlabels"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("tasks",), MISSING, "tasks"),
        (("tasks",), {}, "tasks"),
        (("tasks", 0), 3, "tasks"),
        (("tasks", 0, "id"), [1], "tasks[0].id"),
        (("tasks", 0, "project"), {}, "tasks[0].project"),
        (("tasks", 0, "data"), "x", "tasks[0].data"),
        (("tasks", 0, "data"), MISSING, "$image"),
        (("tasks", 0, "data", "image"), 3, "$image"),
        (("tasks", 0, "drafts"), "x", "tasks[0].drafts"),
        (("tasks", 0, "annotations"), {"a": 1}, "tasks[0].annotations"),
        (("label_config",), 3, "label_config"),
        (("label_config",), "<View", "labeling config"),
        (("project",), [], "project"),
        (("project",), "x" * 1000, "project"),
        (("params",), "x", "params"),
        (("params", "login"), 3, "params.login"),
        (("params", "password"), {}, "params.password"),
        (("params", "context"), "x", "params.context"),
        (("params", "context", "result"), {"a": 1}, "params.context.result"),
        (("params", "context", "result", 0, "id"), [], "id"),
        (("params", "context", "result", 0, "original_width"), "x", "original_width"),
        (("params", "context", "result", 0, "original_height"), MISSING, "original_height"),
        (("params", "context", "result", 0, "original_height"), 2**40, "IMAGE_MAX_PIXELS"),
        (("params", "context", "result", 0, "image_rotation"), "x", "image_rotation"),
        (("params", "context", "result", 0, "item_index"), -1, "item_index"),
        (("params", "context", "result", 0, "value", "x"), "x", '"x"'),
        (("params", "context", "result", 0, "value", "y"), MISSING, '"y"'),
        (("params", "context", "result", 0, "value", "y"), 1e300, '"y"'),
        (("params", "context", "result", 0, "value", KEYPOINT), [3], KEYPOINT),
        (("params", "context", "result", 0, "value", KEYPOINT), ["No such label"], "No such label"),
    ],
)
def test_the_answer_names_the_field(client: FlaskClient, path: tuple[Any, ...], value: Any, named: str) -> None:
    answer = client.post("/predict", json=replaced(CLICK, path, value))
    assert answer.status_code == 400
    assert named in answer.json["error"]


def test_setup_and_webhook_name_their_fields_too(client: FlaskClient) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("/setup", {"schema": 3}),
        ("/setup", {"schema": "", "project": []}),
        ("/webhook", {"action": 3}),
    ]
    for route, body in bad:
        answer = client.post(route, json=body)
        assert answer.status_code == 400
        assert f'"{list(body)[-1]}"' in answer.json["error"]


# --- the description of the routes


def test_the_description_is_complete(fuzzed: Flask) -> None:
    rules = [(re.sub("<(.+?)>", r"{\1}", rule.rule), rule.methods or ()) for rule in fuzzed.url_map.iter_rules()]
    routes = {(path, method.lower()) for path, methods in rules for method in methods}
    described = {(path, method) for path, methods in OPENAPI["paths"].items() for method in methods}
    page_files = {("/", "get"), ("/ui/{name}", "get")}
    assert described == {one for one in routes - page_files if one[1] in ("get", "post", "delete")}


def test_recorded_requests_and_our_answers_are_as_described(client: FlaskClient) -> None:
    schema = schemathesis.openapi.from_dict(OPENAPI)
    for route, body in BODIES:
        request = Draft202012Validator(
            {"$ref": OPENAPI["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]}
            | {"components": OPENAPI["components"]}
        )
        assert [error.json_path for error in request.iter_errors(body)] == []
        schema[route]["POST"].validate_response(schemathesis.Response.from_any(client.post(route, json=body)))


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (path, method.upper(), mode)
        for path, methods in OPENAPI["paths"].items()
        for method in methods
        for mode in schemathesis.GenerationMode
        if method == "post" or mode is schemathesis.GenerationMode.POSITIVE  # a GET has nothing to get wrong
    ],
)
def test_requests_made_up_from_the_description_are_answered_as_described(
    fuzzed: Flask, path: str, method: str, mode: schemathesis.GenerationMode
) -> None:
    """Requests that fit the description, and requests that do not."""
    cases = schemathesis.openapi.from_wsgi("/openapi.json", fuzzed)[path][method].as_strategy(generation_mode=mode)

    @given(cases)
    @settings(deadline=None, max_examples=20 if method == "POST" else 1, suppress_health_check=list(HealthCheck))
    def call(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    call()


# --- memory


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from Linux's /proc")
def test_ten_thousand_bad_requests_leave_no_memory_behind(caplog: pytest.LogCaptureFixture) -> None:
    """The second half of them may take no more than noise; each would have to leave less than 400 bytes."""
    caplog.set_level("CRITICAL")
    app, annotator = build_app()
    client = app.test_client()
    bodies = [
        orjson.dumps(replaced(CLICK, path, "@@")).replace(b'"@@"', value.encode())
        for path in places(CLICK)
        for value in NASTY
        if len(value) < 10_000
    ]
    sizes = []
    for number in range(10_000):
        raw = bodies[number % len(bodies)].replace(b'"id":', b'"unique%d": 1, "id":' % number)
        client.post("/predict", data=raw)
        client.post(f"/nothing/{number}")
        if number in (4_999, 9_999):
            gc.collect()
            sizes.append(resident())
    annotator.close()
    print(f"resident after 5,000 and 10,000 bad requests: {sizes[0] >> 10} and {sizes[1] >> 10} KiB")
    assert sizes[1] - sizes[0] < 2 << 20
