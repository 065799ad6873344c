"""Protects the door for CVAT: its exact calls, one encode per picture, answers that depend on the prompts alone."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cvat_sdk.masks import decode_mask
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image
from werkzeug.test import TestResponse

from backend.annotator import Annotator
from backend.cvat.protocol import FUNCTION
from backend.factory import Service
from backend.images.loader import build_images
from backend.label_studio.auth import build_auth
from backend.readiness import Readiness
from backend.settings import Settings
from backend.web.app import build_app
from tests.support.cvat_browser import shown_masks
from tests.support.fakes import RADIUS, DiscFeatures, DiscPredictor

SETTINGS = Settings(cvat="on", host="127.0.0.1")
SIZE = 120, 160
Points = Sequence[Sequence[float]]

# As CVAT's server sends them to Nuclio's dashboard.
ALWAYS = {"x-nuclio-project-name": "cvat", "x-nuclio-function-namespace": "nuclio", "X-Nuclio-Invoke-Timeout": "120s"}
INVOKE = {**ALWAYS, "x-nuclio-function-name": FUNCTION, "x-nuclio-path": "/"}


def picture(seed: int = 0, size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **({"format": "JPEG"} | options))
    return file.getvalue()


def clicked(content: bytes, positive: Points, negative: Points = (), **changes: Any) -> dict[str, Any]:
    """A request's body."""
    text = base64.b64encode(content).decode()
    return {"image": text, "pos_points": list(positive), "neg_points": list(negative), "obj_bbox": []} | changes


def invoke(client: FlaskClient, body: dict[str, Any], **headers: str) -> TestResponse:
    return client.post("/api/function_invocations", json=body, headers={**INVOKE, **headers})


def mask_of(answer: TestResponse, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """The one mask that the browser shows."""
    assert answer.status_code == 200, answer.text
    (mask,) = shown_masks(answer.json, size)
    return mask


@pytest.fixture(name="annotator")
def annotator_of_sent_pictures(make_annotator: Callable[..., Annotator]) -> Annotator:
    return make_annotator(images=build_images(SETTINGS, build_auth(SETTINGS)))


@pytest.fixture(name="client")
def client_of_cvat(annotator: Annotator) -> FlaskClient:
    return build_app(SETTINGS, Readiness.of(Service(annotator))).test_client()


def test_the_door_is_closed_unless_it_is_opened(annotator: Annotator) -> None:
    client = build_app(Settings(), Readiness.of(Service(annotator))).test_client()
    assert client.get("/api/functions").status_code == 404
    assert client.post("/", json=clicked(picture(), [(1, 1)])).status_code == 405
    assert client.get("/").status_code == 200


def test_cvat_lists_the_function_and_asks_for_it_before_each_click(client: FlaskClient) -> None:
    listed = client.get("/api/functions", headers=ALWAYS).json
    assert list(listed) == [FUNCTION]
    assert client.get(f"/api/functions/{FUNCTION}", headers=ALWAYS).json == listed[FUNCTION]
    assert listed[FUNCTION]["status"] == {"state": "ready", "httpPort": SETTINGS.port}
    assert "discs-1" in listed[FUNCTION]["spec"]["description"]


def test_a_function_that_is_not_offered(client: FlaskClient) -> None:
    answers = [
        client.get("/api/functions/sam", headers=ALWAYS),
        invoke(client, clicked(picture(), [(1, 1)]), **{"x-nuclio-function-name": "skipclick-project-7"}),
    ]
    for answer in answers:
        assert answer.status_code == 404
        assert "has no function" in answer.json["error"]


def test_functions_are_listed_while_the_model_is_loading() -> None:
    """CVAT shows no model at all when the list fails."""
    loading: Future[Service] = Future()
    client = build_app(SETTINGS, Readiness(loading)).test_client()
    assert client.get("/api/functions").json[FUNCTION]["status"]["state"] == "building"
    assert invoke(client, clicked(picture(), [(1, 1)])).status_code == 503


def test_clicks_give_masks_and_one_picture_is_encoded_once(client: FlaskClient, predictor: DiscPredictor) -> None:
    content = picture()
    first = mask_of(invoke(client, clicked(content, [(40.5, 50.2)])))
    assert first[50, 40]
    assert first.sum() == pytest.approx(np.pi * RADIUS**2, rel=0.1)
    second = mask_of(invoke(client, clicked(content, [(40.5, 50.2)], [(45, 50)])))
    assert not second[50, 45]
    third = mask_of(invoke(client, clicked(content, [(40.5, 50.2), (100, 80)], [(45, 50)])))
    assert third[80, 100]
    assert predictor.encoded == [SIZE]


def test_the_direct_way_is_the_same(client: FlaskClient) -> None:
    body = clicked(picture(), [(40, 50)])
    assert client.post("/", json=body).json == invoke(client, body).json


def test_the_same_picture_in_other_base64_is_the_same_picture(client: FlaskClient, predictor: DiscPredictor) -> None:
    content = picture()
    body = clicked(content, [(40, 50)])
    folded = body | {"image": re.sub("(.{76})", r"\1\n", body["image"])}
    assert mask_of(invoke(client, body)).tolist() == mask_of(invoke(client, folded)).tolist()
    assert len(predictor.encoded) == 1


def test_a_region_of_interest_is_a_picture_of_its_own(client: FlaskClient, predictor: DiscPredictor) -> None:
    """CVAT crops, and moves prompts and answers, so that this server never learns of it."""
    with Image.open(io.BytesIO(picture())) as whole:
        cropped = io.BytesIO()
        whole.crop((60, 40, 160, 120)).save(cropped, "JPEG")
    mask_of(invoke(client, clicked(picture(), [(100, 80)])))
    inner = mask_of(invoke(client, clicked(cropped.getvalue(), [(40, 40)])), (80, 100))
    assert inner[40, 40]
    assert predictor.encoded == [SIZE, (80, 100)]


def test_the_picture_counts_as_it_is_shown(client: FlaskClient, predictor: DiscPredictor) -> None:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    mask_of(invoke(client, clicked(picture(exif=exif), [(100, 150)])), (160, 120))
    assert predictor.encoded == [(160, 120)]


def test_points_outside_count_at_the_edge(client: FlaskClient) -> None:
    content = picture()
    inside, outside = ([[159, 119]], [[160.0, 500.0]])
    assert invoke(client, clicked(content, inside)).json == invoke(client, clicked(content, outside)).json


def test_a_box_is_answered_alone_and_with_clicks(client: FlaskClient) -> None:
    content = picture()
    box = {"obj_bbox": [[20, 30], [80, 90]]}
    alone = mask_of(invoke(client, clicked(content, [], **box)))
    assert alone[60, 50]
    more = mask_of(invoke(client, clicked(content, [(120, 100)], [(50, 60)], **box)))
    assert more[100, 120]
    assert not more[60, 50]


@pytest.mark.parametrize("form", ["shapes", "mask"])
def test_no_mask_is_an_empty_answer(annotator: Annotator, form: Any) -> None:
    settings = Settings(cvat="on", host="127.0.0.1", cvat_answer=form)
    client = build_app(settings, Readiness.of(Service(annotator))).test_client()
    for body in (clicked(picture(), []), clicked(picture(), [], [(3, 3)]), clicked(picture(), [(3, 3)], [(3, 3)])):
        answer = invoke(client, body)
        assert answer.status_code == 200
        assert shown_masks(answer.json, SIZE) == []


def test_servers_before_2_60_get_rows(annotator: Annotator, client: FlaskClient) -> None:
    settings = Settings(cvat="on", host="127.0.0.1", cvat_answer="mask")
    old = build_app(settings, Readiness.of(Service(annotator))).test_client()
    body = clicked(picture(), [(40, 50), (70, 60)], [(45, 50)])
    assert np.array_equal(mask_of(invoke(old, body)), mask_of(invoke(client, body)))


def test_the_same_prompts_give_the_same_mask_whatever_came_before(make_annotator: Callable[..., Annotator]) -> None:
    """A point is deleted, another is added, in any order; beside a server that has seen nothing."""

    def client() -> FlaskClient:
        annotator = make_annotator(images=build_images(SETTINGS, build_auth(SETTINGS)))
        return build_app(SETTINGS, Readiness.of(Service(annotator))).test_client()

    content, busy = picture(), client()
    a, b, c, n, m = (30, 40), (60, 50), (90, 60), (45, 50), (75, 60)
    histories: list[tuple[list[Any], list[Any]]] = [
        ([a], []), ([a, b], []), ([a, b], [n]), ([a, b, c], [n]), ([a, c], [n]), ([a, c], [m, n]), ([c], [m, n]),
        ([a, b], []), ([a, b, c], [m]),
    ]  # fmt: skip
    for positive, negative in histories:
        body = clicked(content, positive, negative)
        assert invoke(busy, body).json == invoke(client(), body).json


def test_eight_clicks_at_once_on_a_new_picture_encode_it_once(
    make_annotator: Callable[..., Annotator], predictor: DiscPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All eight wait for the one encode, which does not end before each of them has begun."""
    arrived = threading.Barrier(9)
    original = DiscPredictor.encode

    def encode(self: DiscPredictor, image: NDArray[np.uint8]) -> DiscFeatures:
        arrived.wait(60)
        return original(self, image)

    monkeypatch.setattr(DiscPredictor, "encode", encode)
    annotator = make_annotator(images=build_images(SETTINGS, build_auth(SETTINGS)))
    annotate = annotator.annotate

    def begun(*arguments: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(annotate, *arguments)
            arrived.wait(60)
            return waiting.result()

    monkeypatch.setattr(annotator, "annotate", begun)
    app = build_app(SETTINGS, Readiness.of(Service(annotator)))
    bodies = [clicked(picture(), [(10 * number + 15, 50)]) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: invoke(app.test_client(), body), bodies))
    for number, answer in enumerate(answers):
        assert mask_of(answer)[50, 10 * number + 15]
    assert predictor.encoded == [SIZE]


def test_a_known_picture_is_not_decoded_again(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    content = picture()
    invoke(client, clicked(content, [(40, 50)]))
    monkeypatch.setattr("backend.images.loader.decode_image", lambda *_: pytest.fail("decoded again"))
    mask_of(invoke(client, clicked(content, [(40, 50), (60, 60)])))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"GIF87b", "cannot be decoded as an image"), (picture()[:100], "cannot be decoded as an image")],
)
def test_a_picture_that_cannot_be_read_is_an_error_that_the_annotator_sees(
    client: FlaskClient, content: bytes, sentence: str
) -> None:
    answer = invoke(client, clicked(content, [(1, 1)]))
    assert answer.status_code == 400
    assert sentence in answer.json["error"]
    assert sentence in answer.status


def test_limits_of_the_server_hold_here_too(make_annotator: Callable[..., Annotator]) -> None:
    settings = Settings(cvat="on", host="127.0.0.1", image_max_pixels=1000, request_max_bytes=200_000)
    annotator = make_annotator(images=build_images(settings, build_auth(settings)))
    client = build_app(settings, Readiness.of(Service(annotator))).test_client()
    large = invoke(client, clicked(picture(), [(1, 1)]))
    assert large.status_code == 400
    assert "IMAGE_MAX_PIXELS=1000" in large.json["error"]
    assert invoke(client, clicked(bytes(200_000), [(1, 1)])).status_code == 413


def test_a_photo_of_12_megapixels_fits_the_default_limits(client: FlaskClient) -> None:
    content = picture(size=(3000, 4000), format="PNG", compress_level=0)
    assert len(content) > 36_000_000
    assert mask_of(invoke(client, clicked(content, [(2000, 1500)])), (3000, 4000))[1500, 2000]


def test_busy_servers_say_so(make_annotator: Callable[..., Annotator], monkeypatch: pytest.MonkeyPatch) -> None:
    """With THREADS=2 one prediction has a place; the second is refused while the first is encoded."""
    go_on, encoding = threading.Event(), threading.Event()
    original = DiscPredictor.encode

    def encode(self: DiscPredictor, image: NDArray[np.uint8]) -> DiscFeatures:
        encoding.set()
        assert go_on.wait(60)
        return original(self, image)

    monkeypatch.setattr(DiscPredictor, "encode", encode)
    settings = Settings(cvat="on", host="127.0.0.1", threads=2)
    annotator = make_annotator(images=build_images(settings, build_auth(settings)))
    app = build_app(settings, Readiness.of(Service(annotator)))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(invoke, app.test_client(), clicked(picture(), [(40, 50)]))
        assert encoding.wait(60)
        second = invoke(app.test_client(), clicked(picture(), [(60, 50)]))
        go_on.set()
        assert mask_of(first.result())[50, 40]
    assert second.status_code == 503
    assert second.headers["Retry-After"]


def test_a_password_is_asked_for_here_too(annotator: Annotator) -> None:
    settings = Settings(cvat="on", basic_auth_user="cvat", basic_auth_pass="secret")  # type: ignore[arg-type]
    client = build_app(settings, Readiness.of(Service(annotator))).test_client()
    assert client.get("/api/functions").status_code == 401
    assert client.get("/api/functions", auth=("cvat", "secret")).status_code == 200
    assert invoke(client, clicked(picture(), [(1, 1)])).status_code == 401


def test_run_lengths_are_plain_json_numbers(client: FlaskClient) -> None:
    (shape,) = json.loads(invoke(client, clicked(picture(), [(40, 50)])).data)["shapes"]
    assert shape["type"] == "mask"
    assert shape["attributes"] == []
    assert all(type(number) is int for number in shape["points"])
    decode_mask(shape["points"], image_width=160, image_height=120)


def test_a_picture_that_claims_gigabytes_is_refused_before_memory_is_taken(client: FlaskClient) -> None:
    for size in ((1, 1 << 20), (20_000, 20_000)):
        file = io.BytesIO()
        Image.new("1", size[::-1]).save(file, "PNG")
        answer = invoke(client, clicked(file.getvalue(), [], [(1, 1)]))
        assert answer.status_code == 400, answer.text[:100]
        assert "pixels" in answer.text
