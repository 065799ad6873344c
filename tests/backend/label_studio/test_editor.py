"""Protects the bodies that measurements and the doctor send: they say what Label Studio's editor says."""

from __future__ import annotations

import pytest

from backend.label_studio.editor import SmartTool
from backend.label_studio.labeling_config import EXAMPLE, ConfigError
from backend.label_studio.protocol import mask_request, read_predict
from skipclick import Click
from tests.support.recorded import clicked_bodies

TASK = {"id": 3, "data": {"image": "/data/upload/1/a.jpg"}}
RECTANGLES = EXAMPLE.replace("KeyPointLabels", "RectangleLabels")


def test_a_body_says_what_label_studios_does() -> None:
    clicks = (Click(0, 0), Click(159, 119, positive=False), Click(40, 60))
    body = SmartTool.of(EXAMPLE).predict_body(TASK, (120, 160), clicks)
    asked = mask_request(read_predict(body), lambda task, keypoint: None)
    assert asked is not None
    assert [(click.x, click.y, click.positive) for click in asked.clicks] == [
        (click.x, click.y, click.positive) for click in clicks
    ]
    assert (asked.target.width, asked.target.height, asked.image.url) == (160, 120, "/data/upload/1/a.jpg")
    recorded = clicked_bodies("03")[0]
    item, real = body["params"]["context"]["result"][0], recorded["params"]["context"]["result"][0]
    assert item.keys() == real.keys()
    assert item["value"].keys() == real["value"].keys()
    assert body["params"].keys() == recorded["params"].keys()


def test_a_rectangle_tool_sends_half_the_image_around_a_click() -> None:
    body = SmartTool.of(RECTANGLES).predict_body(TASK, (120, 160), [Click(79.5, 59.5)])
    (item,) = body["params"]["context"]["result"]
    assert (item["type"], item["value"]["rectanglelabels"]) == ("rectanglelabels", ["Object"])
    assert [item["value"][side] for side in ("x", "y", "width", "height")] == [25, 25, 50, 50]
    assert mask_request(read_predict(body), lambda task, keypoint: None) is not None


def test_a_config_without_a_smart_tool_is_refused() -> None:
    with pytest.raises(ConfigError, match='smart="true"'):
        SmartTool.of(EXAMPLE.replace('smart="true"', 'smart="false"'))
