"""Protects the contract with Label Studio's next editor: made from its development branch, since no release has it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from PIL import Image

from tests.support.fakes import FlatImages
from tests.support.recorded import clicked_bodies

HEIGHT, WIDTH = 120, 160


def body(**context: Any) -> dict[str, Any]:
    """A request about a task of the recordings."""
    given = clicked_bodies("03")[0]
    given["params"]["context"] = context
    return given


def point(x: float, y: float, **value: Any) -> dict[str, Any]:
    return {"type": "keypointlabels", "value": {"x": x, "y": y, **value}}


def box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    return {"type": "rectanglelabels", "value": {"x": x, "y": y, "width": width, "height": height}}


def value(client: FlaskClient, given: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/predict", json=given)
    assert answer.status_code == 200, answer.json
    (result,) = answer.json["results"]
    (region,) = result["result"]
    found: dict[str, Any] = region["value"]
    return found


def mask(client: FlaskClient, *prompts: dict[str, Any]) -> NDArray[np.bool_]:
    """Red above 127, as the editor reads it."""
    prefix, _, text = value(client, body(result=list(prompts)))["imageDataURL"].partition(",")
    assert prefix == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    return np.asarray(pixels[:, :, 0] > 127)


def test_it_says_what_it_can_do(client: FlaskClient) -> None:
    can = value(client, body(event="capabilities"))
    assert can["prompts"] == ["point", "box"]
    assert {one["tag"]: one["output"] for one in can["targets"]} == {
        "BitmaskLabels": "mask",
        "RectangleLabels": "bbox",
        "PolygonLabels": "polygon",
        "VectorLabels": "polygon",
    }
    assert can["model_info"] == {"name": "SkipClick", "version": "discs-1"}


@pytest.mark.parametrize("event", ["prewarm", "release", "something new"])
def test_other_events_are_acknowledged(client: FlaskClient, event: str) -> None:
    assert value(client, body(event=event)) == {}


def test_points_have_the_sign_in_their_value_and_are_positive_without(client: FlaskClient) -> None:
    first = mask(client, point(30, 50))
    assert first[60, 48]
    both = mask(client, point(30, 50, positive=True), point(33, 50, positive=False))
    assert (both[60, 48], both[60, 52]) == (True, False)
    assert not mask(client, point(30, 50, positive=False)).any()


def test_a_box_is_where_the_mask_begins(client: FlaskClient) -> None:
    found = mask(client, box(10, 10, 40, 50))
    assert found[15, 20]
    assert not found[100, 140]


def test_the_picture_gives_the_size(client: FlaskClient, images: FlatImages) -> None:
    """Points are percent of it, and the answer is as large."""
    found = mask(client, point(100, 100))
    assert found[HEIGHT - 1, WIDTH - 1]


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (point(30, 50, positive="perhaps"), '"value.positive" of a point must be true or false'),
        ({"type": "keypointlabels", "value": {"x": 1}}, 'lacks the number "y"'),
        (
            {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": None, "height": 1}},
            'lacks the number "width"',
        ),
    ],
)
def test_errors_are_sentences_for_the_annotator(client: FlaskClient, prompt: dict[str, Any], complaint: str) -> None:
    answer = client.post("/predict", json=body(result=[prompt]))
    assert answer.status_code == 400
    assert complaint in answer.json["error"]


def test_too_many_points_are_refused(client: FlaskClient) -> None:
    answer = client.post("/predict", json=body(result=[point(30, 50)] * 101))
    assert answer.status_code == 400
    assert "REQUEST_MAX_CLICKS=100" in answer.json["error"]


def test_todays_editor_is_answered_as_ever(client: FlaskClient) -> None:
    (region,) = client.post("/predict", json=clicked_bodies("03")[0]).json["results"][0]["result"]
    assert region["type"] == "brushlabels"


@pytest.mark.parametrize("missing", ["id", "from_name", "original_width"])
def test_a_damaged_request_of_today_is_none_of_the_next_editor(client: FlaskClient, missing: str) -> None:
    given = clicked_bodies("03")[0]
    del given["params"]["context"]["result"][0][missing]
    answer = client.post("/predict", json=given).json
    assert "imageDataURL" not in str(answer)
