"""Protects saved regions: a click corrects the one it is meant for, and nothing is replaced unasked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray

from backend.annotator import Annotator
from backend.label_studio.protocol import RegionTarget
from backend.label_studio.regions import mask_response, read_mask
from backend.settings import Settings
from backend.web.app import create_app
from skipclick.masks import BoxMask
from tests.support.annotation_bodies import drawn
from tests.support.recorded import clicked_bodies

HEIGHT, WIDTH = 120, 160
X, Y = 47, 60  # where recording 16 clicks
KINDS = {"brushlabels": "BrushLabels", "bitmasklabels": "BitmaskLabels", "polygonlabels": "PolygonLabels"}


def rectangle(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def saved(region_id: str, mask: NDArray[np.bool_], label: str = "Ski", kind: str = "brushlabels") -> dict[str, Any]:
    target = RegionTarget(kind, "tag", "image", (label,), WIDTH, HEIGHT)
    region: dict[str, Any] = mask_response(target, BoxMask.of(mask), 0.5, "v")["results"][0]["result"][0]
    return region | {"id": region_id, "readonly": False, "origin": "manual"}


def body_with(*regions: dict[str, Any], source: str = "drafts", positive: bool = False) -> dict[str, Any]:
    """A first click at (X, Y) in a task that holds these regions."""
    body = clicked_bodies("16")[0]
    body["params"]["context"]["result"][0]["is_positive"] = positive
    body["tasks"][0][source] = [{"id": 1, "result": list(regions)}]
    return body


def answer(client: FlaskClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = client.post("/predict", json=body)
    assert reply.status_code == 200, reply.json
    found: list[dict[str, Any]] = reply.json["results"][0]["result"]
    return found


def with_setting(make_annotator: Callable[..., Annotator], correct: str) -> FlaskClient:
    return create_app(Settings(correct_regions=correct), make_annotator()).test_client()


OBJECT = rectangle(30, 40, 100, 90)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["drafts", "annotations", "predictions"])
def test_a_negative_first_click_takes_away_from_the_region_that_it_falls_on(
    client: FlaskClient, source: str, kind: str
) -> None:
    body = body_with(saved("mine", OBJECT, kind=kind), source=source)
    body["label_config"] = body["label_config"].replace("BrushLabels", KINDS[kind])
    (found, *_) = answer(client, body)
    assert found["id"] == "mine"
    mask = read_mask(found, b"", HEIGHT, WIDTH)
    assert not mask[Y, X]
    assert mask[85, 95]
    assert not (mask & ~OBJECT).any() or kind == "polygonlabels"


def test_further_clicks_refine_the_same_region(client: FlaskClient) -> None:
    body = body_with(saved("mine", OBJECT))
    first = body["params"]["context"]["result"][0]
    second = first | {"id": "second", "is_positive": True, "value": first["value"] | {"x": 90, "y": 90}}
    body["params"]["context"]["result"].append(second)
    (found,) = answer(client, body)
    mask = read_mask(found, b"", HEIGHT, WIDTH)
    assert found["id"] == "mine"
    assert (mask[Y, X], mask[85, 95], mask[108, 144]) == (False, True, True)


def test_all_that_is_saved_of_a_region_comes_back_with_it(client: FlaskClient) -> None:
    """An accepted answer replaces the region with everything that hangs on it."""
    region = saved("mine", OBJECT) | {"parentID": "whole", "meta": {"text": ["a note"]}}
    copy = region | {"type": "keypointlabels", "from_name": "tag2"}
    copy["value"] = {**region["value"], "keypointlabels": ["Ski"]}
    choice = {"id": "mine", "type": "choices", "from_name": "worn", "to_name": "image", "value": {"choices": ["old"]}}
    found, found_choice, found_copy = answer(client, body_with(region, choice, copy))
    assert (found["parentID"], found["meta"], found_choice) == ("whole", {"text": ["a note"]}, choice)
    assert found_copy["value"]["rle"] == found["value"]["rle"] != region["value"]["rle"]
    assert found_copy["value"]["keypointlabels"] == ["Ski"]


def test_of_regions_on_each_other_the_one_on_top_is_corrected(client: FlaskClient) -> None:
    body = body_with(saved("below", OBJECT), saved("above", rectangle(40, 50, 60, 70)), saved("beside", ~OBJECT))
    assert answer(client, body)[0]["id"] == "above"


def test_the_draft_goes_before_the_annotation_that_it_changes(client: FlaskClient) -> None:
    body = body_with(saved("mine", rectangle(40, 50, 60, 70)))
    body["tasks"][0]["annotations"] = [{"id": 1, "result": [saved("mine", OBJECT)]}]
    (found,) = answer(client, body)
    assert not read_mask(found, b"", HEIGHT, WIDTH)[85, 95]


def test_a_region_that_the_draft_deleted_is_not_corrected(client: FlaskClient) -> None:
    body = body_with()
    body["tasks"][0]["drafts"][0]["annotation"] = 5
    body["tasks"][0]["annotations"] = [{"id": 5, "result": [saved("deleted", OBJECT)]}]
    assert answer(client, body) == []
    body["tasks"][0]["annotations"][0]["id"] = 6  # of another annotation, in which it still is
    assert answer(client, body)[0]["id"] == "deleted"
    body["tasks"][0]["annotations"] = []
    body["tasks"][0]["predictions"] = [{"id": 7, "result": [saved("deleted", OBJECT)]}]
    assert answer(client, body) == []
    body["tasks"][0]["drafts"] = []
    assert answer(client, body)[0]["id"] == "deleted"


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [saved("other label", OBJECT, "Helmet")],
        [saved("beside", ~OBJECT)],
        [saved("locked", OBJECT) | {"readonly": True}],
        [saved("locked", OBJECT) | {"locked": True}],
        [saved("other tag", OBJECT) | {"from_name": "tag9"}],
        [saved("other page", OBJECT) | {"item_index": 3}],
        [saved("", OBJECT)],
        [{**saved("x", OBJECT), "id": 3}],
        [saved("damaged", OBJECT) | {"value": {"rle": [1, 2, 3], "brushlabels": ["Ski"]}}],
        [saved("of another size", OBJECT) | {"value": saved("x", drawn(0, 0, 9, 9))["value"] | {"rle": [0] * 9}}],
    ],
)
def test_a_negative_first_click_on_anything_else_changes_nothing(
    client: FlaskClient, regions: list[dict[str, Any]]
) -> None:
    assert answer(client, body_with(*regions)) == []


@pytest.mark.parametrize(("correct", "corrects"), [("off", False), ("negative", False), ("any", True)])
def test_a_positive_first_click_corrects_only_where_it_is_set(
    make_annotator: Callable[..., Annotator], correct: str, corrects: bool
) -> None:
    client = with_setting(make_annotator, correct)
    (found,) = answer(client, body_with(saved("mine", OBJECT), positive=True))
    assert (found["id"] == "mine") == corrects
    assert read_mask(found, b"", HEIGHT, WIDTH)[85, 95] == corrects


def test_switched_off_a_negative_first_click_changes_nothing(make_annotator: Callable[..., Annotator]) -> None:
    assert answer(with_setting(make_annotator, "off"), body_with(saved("mine", OBJECT))) == []


def test_a_negative_click_after_a_positive_one_begins_no_correction(client: FlaskClient) -> None:
    body = body_with(saved("mine", OBJECT))
    first = body["params"]["context"]["result"][0]
    positive = first | {"id": "first", "is_positive": True, "value": first["value"] | {"x": 90, "y": 90}}
    body["params"]["context"]["result"].insert(0, positive)
    (found,) = answer(client, body)
    assert found["id"] != "mine"


def test_the_same_click_on_another_mask_is_answered_by_that_mask(client: FlaskClient) -> None:
    """What is remembered of clicks must not stand in for those that began with another mask."""
    for mask in (OBJECT, rectangle(35, 45, 75, 85), OBJECT):
        (found,) = answer(client, body_with(saved("mine", mask)))
        assert not (read_mask(found, b"", HEIGHT, WIDTH) & ~mask).any()
        assert read_mask(found, b"", HEIGHT, WIDTH)[85, 95] == mask[85, 95]
