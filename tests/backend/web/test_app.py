"""Protects the HTTP side: errors that say what to do and reveal nothing, passwords, metrics, and prompt answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image

from backend.annotator import Annotator
from backend.factory import Service
from backend.finetune.job_store import Jobs
from backend.finetune.scheduler import Training
from backend.finetune.store import AnnotationStore
from backend.images.decode import DecodedImage, ImageError
from backend.label_studio.names import ToldNames
from backend.prompts import ImageReference
from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.app import build_app, create_app
from tests.support.fakes import DiscFeatures, DiscPredictor, FlatImages, HeldPredictor
from tests.support.recorded import clicked_bodies, recorded_requests

MakeAnnotator = Callable[..., Annotator]
SWITCHED_OFF = "this server does not learn: it was started with FINETUNE=off or follow"


def opened_task() -> dict[str, Any]:
    body: dict[str, Any] = recorded_requests("02", "/predict")[0]["body"]
    return body


@pytest.mark.parametrize("path", ["/", "/health"])
def test_health(client: FlaskClient, path: str) -> None:
    assert client.get(path).json == {"status": "UP", "model_class": "SkipClick"}


def test_setup_reports_an_unusable_config_where_label_studio_shows_it(client: FlaskClient) -> None:
    """Label Studio shows no more of a failed request than its status line."""
    body = recorded_requests("01", "/setup")[0]["body"]
    body["schema"] = body["schema"].replace("BrushLabels", "NumberLabels")
    answer = client.post("/setup", json=body)
    assert answer.status_code == 400
    assert 'no BrushLabels, BitmaskLabels or PolygonLabels tag with toName="image"' in answer.json["error"]
    assert 'no BrushLabels, BitmaskLabels or PolygonLabels tag with toName="image"' in answer.status
    assert "\n" not in answer.status


def test_a_click_of_a_control_that_the_config_does_not_know_is_an_error_in_the_status_line(client: FlaskClient) -> None:
    body = clicked_bodies("03")[0]
    body["params"]["context"]["result"][0]["from_name"] = "click_{{idx}}"
    answer = client.post("/predict", json=body)
    assert answer.status_code == 400
    assert 'no tag named "click_{{idx}}"' in answer.json["error"]
    assert 'no tag named "click_{{idx}}"' in answer.status


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_values_that_json_has_not_refuse_no_request(client: FlaskClient, path: str) -> None:
    body = recorded_requests("90" if path == "/webhook" else "01", path)[0]["body"]
    body = clicked_bodies("03")[0] if path == "/predict" else body
    raw = json.dumps(body | {"extra": ["@", "\ud800"]}).replace('"@"', "NaN").encode()
    answer = client.post(path, data=raw, content_type="application/json")
    assert answer.status_code in (200, 201)
    assert path != "/predict" or answer.json["results"][0]["result"]


def test_what_label_studio_calls_itself_is_noted_if_its_config_can_be_used(
    annotator: Annotator, tmp_path: Path
) -> None:
    service = Service(annotator, names=ToldNames(tmp_path))
    client = build_app(Settings(), Readiness.of(service)).test_client()
    body = recorded_requests("01", "/setup")[0]["body"]
    for hostname in ("https://ls.example/", None, 3, ["http://a"]):
        assert client.post("/setup", json=body | {"hostname": hostname}).status_code == 200
    assert client.post("/setup", json=body | {"hostname": "http://b", "schema": "<View/>"}).status_code == 400
    assert service.names.names() == ["https://ls.example"]


def test_setup_tells_of_a_brush_that_takes_the_place_of_the_smart_tool(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The recorded project has a brush without smart="false"."""
    caplog.set_level(logging.INFO)
    body = recorded_requests("01", "/setup")[0]["body"]
    (warning,) = client.post("/setup", json=body).json["warnings"]
    assert 'BrushLabels tag "tag" lacks the attribute smart="false"' in warning
    assert warning in caplog.text
    body["schema"] = body["schema"].replace("<BrushLabels", '<BrushLabels smart="false"')
    assert client.post("/setup", json=body).json["warnings"] == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [("proxy-1.a:b_c", True), ("", False), ("x" * 65, False), ("two words", False), ("a\tb", False), ("ß", False)],
)
def test_a_request_id_is_taken_over_if_it_is_sane(client: FlaskClient, given: str, kept: bool) -> None:
    answered = client.get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert (answered == given) == kept
    assert answered.isalnum() or kept


def test_status_lines_stay_ascii_and_log_lines_stay_lines(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    body = clicked_bodies("03")[0]
    body["params"]["context"]["result"][0]["value"]["keypointlabels"] = ["Лыжа\r\nX-Evil: 1"]
    answer = client.post("/predict", json=body)
    assert answer.status_code == 400
    assert "Лыжа" in answer.json["error"]
    assert answer.status.isascii()
    assert "\r" not in answer.status
    assert "X-Evil" not in answer.headers
    assert all(record.message.count("\n") == 0 for record in caplog.records)


def test_an_opened_task_is_warmed_and_stores_nothing(
    client: FlaskClient, annotator: Annotator, predictor: DiscPredictor
) -> None:
    assert client.post("/predict", json=opened_task()).json == {"results": []}
    deadline = time.monotonic() + 5
    while annotator.cache_stats()["features"].entries == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(predictor.encoded) == 1


def test_an_opened_task_without_a_usable_image_is_answered_all_the_same(client: FlaskClient) -> None:
    body = opened_task()
    body["tasks"][0]["data"] = {"text": "no image"}
    assert client.post("/predict", json=body).json == {"results": []}
    body["label_config"] = "<View/>"
    assert client.post("/predict", json=body).json == {"results": []}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"tasks": 1}'])
@pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook"])
def test_bad_bodies_are_refused_with_a_sentence(client: FlaskClient, path: str, data: bytes) -> None:
    answer = client.post(path, data=data, content_type="application/json")
    if path != "/predict" and data.startswith(b'{"'):
        return  # a webhook or setup without tasks is their normal form
    assert answer.status_code == 400
    assert len(answer.json["error"]) > 10


def test_unknown_routes_and_methods(client: FlaskClient) -> None:
    assert client.get("/nothing").json == {"error": "Not Found"}
    assert client.get("/predict").status_code == 405


def test_switched_off_it_learns_nothing_and_says_so(client: FlaskClient) -> None:
    for request in recorded_requests("90", "/webhook"):
        answer = client.post("/webhook", json=request["body"])
        assert answer.status_code == 201
        assert answer.json["status"] == "ok"
        assert "job" not in answer.json
        training = request["body"]["action"] == "START_TRAINING"
        assert answer.json["result"] == (SWITCHED_OFF if training else None)
    assert client.get("/training?project=1").json == {"error": SWITCHED_OFF}
    assert client.delete("/training?project=1").status_code == 400


@pytest.fixture
def learning(annotator: Annotator, tmp_path: Path) -> FlaskClient:
    """A server that learns, without its background work."""
    rules = {"automatic": True, "after_objects": 20, "quiet_seconds": 60.0}
    training = Training(AnnotationStore(tmp_path), Jobs(tmp_path), **rules)  # type: ignore[arg-type]
    return build_app(Settings(), Readiness.of(Service(annotator)), training).test_client()


def test_what_label_studio_tells_is_kept_and_start_training_is_queued(learning: FlaskClient) -> None:
    for request in recorded_requests("90", "/webhook"):
        answer = learning.post("/webhook", json=request["body"])
        assert answer.status_code == 201
        assert answer.json["status"] == "ok"
        training = request["body"]["action"] == "START_TRAINING"
        assert (answer.json["result"] or "").startswith("training 1 of project 1 is queued") == training
    report = learning.get("/training?project=1").json
    assert [job["state"] for job in report["jobs"]] == ["queued"]
    assert (report["version"], report["starts_by_itself_after"]) == ("discs-1", 20)
    assert learning.get("/status").json["training"] == [job | {"picture": None} for job in report["jobs"]]
    assert learning.delete("/training?project=1").json["job"]["state"] == "cancelled"
    assert "no training to cancel" in learning.delete("/training?project=1").json["error"]


def test_refusals_that_are_expected_take_one_line_of_the_log(
    annotator: Annotator, learning: FlaskClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = {"automatic": True, "after_objects": 20, "quiet_seconds": 60.0, "is_known": lambda project: False}
    training = Training(AnnotationStore(tmp_path), Jobs(tmp_path), **rules)  # type: ignore[arg-type]
    strict = build_app(Settings(), Readiness.of(Service(annotator)), training).test_client()
    off = create_app(Settings(), annotator).test_client()
    answers = [
        strict.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 7}}),
        learning.delete("/training?project=7"),
        learning.get("/training/picture?project=7&number=1"),
        off.get("/training?project=7"),
    ]
    assert [answer.status_code for answer in answers] == [400] * 4
    assert [record.exc_info for record in caplog.records if record.levelname == "WARNING"] == [None] * 4


def test_a_trainings_picture_is_shown(learning: FlaskClient, tmp_path: Path) -> None:
    for _ in range(2):
        learning.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 7}})
        learning.delete("/training?project=7")
    Image.new("RGB", (8, 8)).save(tmp_path / "jobs" / "7" / "0001.png")
    (job,) = learning.get("/status").json["training"]
    assert (job["number"], job["picture"]) == (2, 1)
    answer = learning.get("/training/picture?project=7&number=1")
    assert (answer.content_type, answer.data[:4]) == ("image/png", b"\x89PNG")
    for address, why in {
        "project=7&number=2": "training 2 of project 7 has left no picture",
        f"project=7&number=-{'9' * 400}": "has left no picture",
        "project=8&number=1": "training 1 of project 8 has left no picture",
        "project=7&number=../1": "name a training's number",
        "number=1": "name a project's id",
    }.items():
        answer = learning.get(f"/training/picture?{address}")
        assert answer.status_code == 400
        assert why in answer.json["error"]


def test_webhooks_and_reports_need_no_model(tmp_path: Path) -> None:
    rules = {"automatic": True, "after_objects": 20, "quiet_seconds": 60.0}
    training = Training(AnnotationStore(tmp_path), Jobs(tmp_path), **rules)  # type: ignore[arg-type]
    client = build_app(Settings(), Readiness(Future()), training).test_client()
    created = next(
        one["body"] for one in recorded_requests("90", "/webhook") if one["body"]["action"] == "ANNOTATION_CREATED"
    )
    assert client.post("/webhook", json=created).status_code == 201
    assert client.get("/training?project=1").json["version"] is None
    assert training._store.apply_pending() == 1


def test_a_training_is_asked_for_by_its_project(learning: FlaskClient) -> None:
    for address in ("/training", "/training?project=", "/training?project=x"):
        assert learning.get(address).json == {"error": "name a project's id, as in /training?project=1"}
    answer = learning.post("/webhook", json={"action": "START_TRAINING"})
    assert answer.json == {"error": '"project" must be an object with an id'}


class BrokenImages(FlatImages):
    def load(self, reference: ImageReference) -> DecodedImage:
        raise ImageError("tried GET http://ls/a.png: status 401; set LABEL_STUDIO_API_KEY")


class BrokenPredictor(DiscPredictor):
    def encode(self, image: NDArray[np.uint8]) -> DiscFeatures:
        raise RuntimeError("CUDA error at 0xdeadbeef")


def test_an_image_that_cannot_be_had(make_annotator: MakeAnnotator, caplog: pytest.LogCaptureFixture) -> None:
    client = create_app(Settings(), make_annotator(images=BrokenImages())).test_client()
    answer = client.post("/predict", json=clicked_bodies("03")[0])
    assert answer.status_code == 400
    assert "set LABEL_STUDIO_API_KEY" in answer.json["error"]
    assert "set LABEL_STUDIO_API_KEY" in caplog.text


def test_our_own_mistakes_reach_the_log_and_not_the_client(
    make_annotator: MakeAnnotator, caplog: pytest.LogCaptureFixture
) -> None:
    client = create_app(Settings(), make_annotator(predictor=BrokenPredictor())).test_client()
    answer = client.post("/predict", json=clicked_bodies("03")[0])
    assert answer.status_code == 500
    assert "deadbeef" not in answer.text
    assert "Traceback" not in answer.text
    assert "deadbeef" in caplog.text
    assert answer.headers["X-Request-ID"] in answer.json["error"]
    assert answer.headers["X-Request-ID"] in caplog.text


def test_no_secret_and_no_body_is_logged(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    setup = recorded_requests("01", "/setup")[0]["body"] | {"access_token": "hidden-token"}
    client.post("/setup", json=setup, query_string={"token": "hidden-query"})
    body = clicked_bodies("03")[0]
    body["params"] |= {"login": "hidden-login", "password": "hidden-password"}
    body["tasks"][0]["meta"] = "hidden-body"
    client.post("/predict", json=body, headers={"Authorization": "Basic hidden"})
    client.post("/predict", data=b'{"hidden": "body"', content_type="application/json")
    assert "hidden" not in caplog.text


def test_one_line_per_request(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.post("/predict", json=clicked_bodies("04")[1])
    (line,) = [record.message for record in caplog.records if record.name == "backend.requests"]
    for part in ("route=/predict", "status=200", "task=3", "clicks=2", "encode_ms=", "click_ms=", "mask_ms="):
        assert part in line


def test_basic_authorization(make_annotator: MakeAnnotator) -> None:
    settings = Settings(basic_auth_user="me", basic_auth_pass="päss:word")
    client = create_app(settings, make_annotator()).test_client()
    assert client.get("/health").status_code == 200
    for path in ("/", "/versions", "/metrics"):
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic")
        assert client.get(path, auth=("me", "wrong")).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.get(path, auth=("me", "päss:word")).status_code == 200
    assert client.post("/predict", json=opened_task()).status_code == 401


def test_metrics(client: FlaskClient) -> None:
    client.post("/predict", json=clicked_bodies("03")[0])
    text = client.get("/metrics").text
    for line in (
        'skipclick_requests_total{route="/predict",status="200"} 1.0',
        'skipclick_stage_seconds_count{stage="encode"} 1.0',
        'skipclick_cache_entries{cache="features"} 1.0',
        'skipclick_cache_bytes{cache="memo"} 77425.0',
        'skipclick_cache_misses_total{cache="features"} 1.0',
    ):
        assert line in text


def test_two_apps_count_for_themselves(make_annotator: MakeAnnotator) -> None:
    one, other = (create_app(Settings(), make_annotator()).test_client() for _ in range(2))
    one.get("/health")
    assert 'route="/health"' in one.get("/metrics").text
    assert 'route="/health"' not in other.get("/metrics").text


def test_health_setup_and_opening_are_prompt_while_an_image_is_encoded(make_annotator: MakeAnnotator) -> None:
    slow = HeldPredictor()
    app = create_app(Settings(), make_annotator(predictor=slow))
    setup = recorded_requests("01", "/setup")[0]["body"]
    with ThreadPoolExecutor(1) as pool:
        click = pool.submit(app.test_client().post, "/predict", json=clicked_bodies("03")[0])
        assert slow.inside.wait(5)
        client = app.test_client()
        client.get("/health")
        begin = time.perf_counter()
        assert client.get("/health").status_code == 200
        assert client.post("/setup", json=setup).status_code == 200
        assert client.post("/predict", json=opened_task()).status_code == 200
        assert time.perf_counter() - begin < 0.1
        slow.go_on.set()
        assert click.result(10).status_code == 200


def test_too_many_predictions_leave_threads_for_the_rest(make_annotator: MakeAnnotator) -> None:
    slow = HeldPredictor()
    annotator = make_annotator(predictor=slow)
    app = create_app(Settings(threads=4), annotator)
    body = clicked_bodies("03")[0]
    with ThreadPoolExecutor(2) as pool:
        clicks = [pool.submit(app.test_client().post, "/predict", json=body) for _ in range(2)]
        while sum(map(len, annotator._waiting.values())) < 2:
            time.sleep(0.001)
        refused = app.test_client().post("/predict", json=body)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert app.test_client().get("/health").status_code == 200
        assert app.test_client().post("/predict", json=opened_task()).status_code == 200
        slow.go_on.set()
        assert [click.result(10).status_code for click in clicks] == [200, 200]
    assert app.test_client().post("/predict", json=body).status_code == 200


def test_two_fast_clicks_at_once(client: FlaskClient, predictor: DiscPredictor) -> None:
    """Recording 27: the second click comes before the first is answered. Both get the mask of their own clicks."""
    first, second = clicked_bodies("27")
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda body: client.application.test_client().post("/predict", json=body), (first, second))
        )
    rles = [answer.json["results"][0]["result"][0]["value"]["rle"] for answer in answers]
    again = [client.post("/predict", json=body) for body in (first, second)]
    assert rles == [answer.json["results"][0]["result"][0]["value"]["rle"] for answer in again]
    assert rles[0] != rles[1]
    assert len(predictor.encoded) == 1


def test_only_a_refusal_that_nobody_meant_logs_where_it_comes_from(
    make_annotator: MakeAnnotator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shape of NumPy's or a strict zip is a ValueError as well, and no word about the request."""
    annotator = make_annotator()
    client = create_app(Settings(), annotator).test_client()
    assert client.post("/predict", data=b"{").status_code == 400
    assert [record.exc_info for record in caplog.records if "refused" in record.message] == [None]
    caplog.clear()
    monkeypatch.setattr(annotator, "annotate", lambda *_: list(zip("a", "", strict=True)))
    assert client.post("/predict", json=clicked_bodies("03")[0]).status_code == 400
    [record] = [record for record in caplog.records if "refused" in record.message]
    assert (record.levelname, bool(record.exc_info)) == ("WARNING", True)
