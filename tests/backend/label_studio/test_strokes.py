"""Protects strokes of a smart brush as prompts, and masks that a request begins with.

Label Studio 1.23 sends no stroke (tests/e2e/test_mask_tags.py); this server's page does, as the editor writes regions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray

from backend.annotator import Annotator
from backend.label_studio.regions import read_mask
from backend.settings import Settings
from backend.web import http as http_module
from backend.web import predict as predict_module
from backend.web.app import create_app
from skipclick import bitmask, brush_rle
from skipclick.masks import BoxMask
from tests.support.fakes import RADIUS
from tests.support.recorded import clicked_bodies

HEIGHT, WIDTH = 120, 160
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image" smart="{smart}"><Label value="Ski"/><Label value="Helmet"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Ski"/><Label value="Helmet"/></KeyPointLabels>
</View>"""


def rectangle(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


LINE = rectangle(10, 50, 150, 54)


def stroke(mask: NDArray[np.bool_], label: str = "Ski", **item: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    names = {"id": f"stroke-{mask.sum()}", "type": "brushlabels", "from_name": "tag", "to_name": "image"}
    value = {"format": "rle", "rle": brush_rle.encode(BoxMask.of(mask)), "brushlabels": [label]}
    return {**names, **size, "value": value, "origin": "manual"} | item


def click(x: int, y: int, positive: bool = True) -> dict[str, Any]:
    (item,) = clicked_bodies("03")[0]["params"]["context"]["result"]
    place = {"x": 100 * (x + 0.5) / WIDTH, "y": 100 * (y + 0.5) / HEIGHT}
    return item | {"id": f"click-{x}-{y}", "is_positive": positive, "value": item["value"] | place}


def body(*items: dict[str, Any], smart: str = "true", **context: Any) -> dict[str, Any]:
    given = clicked_bodies("03")[0]
    given["label_config"] = CONFIG.format(smart=smart)
    given["params"]["context"] = {"result": list(items), **context}
    return given


def answered(client: FlaskClient, given: dict[str, Any]) -> NDArray[np.bool_]:
    reply = client.post("/predict", json=given)
    assert reply.status_code == 200, reply.json
    (region,) = reply.json["results"][0]["result"]
    assert (region["type"], region["from_name"], region["value"]["brushlabels"]) == ("brushlabels", "tag", ["Ski"])
    return read_mask(region, b"", HEIGHT, WIDTH)


def test_a_stroke_is_clicked_along_its_length_and_held(client: FlaskClient) -> None:
    mask = answered(client, body(stroke(LINE)))
    assert mask[LINE].all()
    rows, columns = np.nonzero(mask & ~LINE)
    assert len(set((columns // 20).tolist())) >= 6, "the discs of several clicks"
    assert rows.min() < 45


def test_a_negative_stroke_takes_away_what_clicks_gave(client: FlaskClient) -> None:
    positive = click(80, 52)
    before = answered(client, body(positive))
    mask = answered(client, body(positive, stroke(LINE, is_positive=False)))
    assert before[52, 75]
    assert not mask[LINE].any()


def test_a_later_click_holds_on_a_stroke(client: FlaskClient) -> None:
    mask = answered(client, body(stroke(LINE), click(120, 52, positive=False)))
    assert not mask[52, 120]
    assert mask[52, 20]


def test_clicks_that_belong_to_another_label_are_not_its(client: FlaskClient) -> None:
    other = click(30, 20)
    other["value"] = other["value"] | {"keypointlabels": ["Helmet"], "labels": ["Helmet"]}
    mask = answered(client, body(other, stroke(LINE)))
    assert not mask[20, 30]


def test_a_region_of_a_brush_that_is_not_smart_is_no_stroke(client: FlaskClient) -> None:
    mask = answered(client, body(stroke(rectangle(0, 0, 20, 10)), click(80, 60), smart="false"))
    assert not mask[:10, :20].any()
    assert mask[60, 80]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"is_positive": "perhaps"}, '"is_positive" of a brushlabels item must be true or false'),
        ({"original_width": WIDTH + 1}, "a stroke cannot be read"),
        ({"value": {"rle": [1, 2, 3], "brushlabels": ["Ski"]}}, "a stroke cannot be read"),
        ({"value": {"rle": "text", "brushlabels": ["Ski"]}}, "a stroke cannot be read"),
        ({"value": {"rle": [], "brushlabels": [3]}}, "must be texts"),
    ],
)
def test_a_stroke_that_cannot_be_read_is_refused(client: FlaskClient, changes: dict[str, Any], sentence: str) -> None:
    reply = client.post("/predict", json=body(stroke(LINE, **changes)))
    assert reply.status_code == 400
    assert sentence in reply.json["error"]


def test_nothing_painted_is_no_mask(client: FlaskClient) -> None:
    reply = client.post("/predict", json=body(stroke(np.zeros((HEIGHT, WIDTH), bool))))
    assert (reply.status_code, reply.json["results"][0]["result"]) == (200, [])


def disc(x: int, y: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= RADIUS**2


START = rectangle(30, 40, 100, 90)
START_URL = bitmask.encode(BoxMask.of(START))


def test_a_mask_in_the_request_is_what_the_clicks_correct(client: FlaskClient) -> None:
    mask = answered(client, body(click(120, 60), start=START_URL))
    np.testing.assert_array_equal(mask, START | disc(120, 60))
    mask = answered(client, body(click(90, 60, positive=False), start=START_URL))
    assert not mask[60, 90]
    assert mask[START & ~disc(90, 60)].all()


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (bitmask.encode(BoxMask.of(START.T.copy())), "120 x 160 pixels, its image 160 x 120"),
        ("data:image/png;base64,AAAA", "not a PNG"),
        ("mask.png", "not a data URL"),
        (7, '"params.context.start" must be a text'),
    ],
)
def test_a_mask_to_start_from_that_does_not_fit_is_refused(client: FlaskClient, start: Any, sentence: str) -> None:
    reply = client.post("/predict", json=body(click(80, 60), start=start))
    assert reply.status_code == 400
    assert sentence in reply.json["error"]


def test_strokes_leave_memory_for_others(
    make_annotator: Callable[..., Annotator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may claim any size: nothing says that there is a photo of it."""
    monkeypatch.setattr(http_module, "_BODIES_PATIENCE", 0.05)
    monkeypatch.setattr(http_module, "MAX_MASK_PIXELS", HEIGHT * WIDTH)
    inside, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> NDArray[np.bool_]:
        inside.set()
        go_on.wait(10)
        return read_mask(*arguments)

    monkeypatch.setattr(predict_module, "read_mask", slow)
    client = create_app(Settings(image_max_pixels=HEIGHT * WIDTH), make_annotator()).test_client
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client().post, "/predict", json=body(stroke(LINE)))
        assert inside.wait(5)
        answer = client().post("/predict", json=body(stroke(LINE)))
        assert answer.status_code == 503
        assert "masks of other requests take all the memory" in answer.json["error"]
        go_on.set()
        assert first.result(10).status_code == 200
    assert client().post("/predict", json=body(stroke(LINE))).status_code == 200  # all of it was given back
