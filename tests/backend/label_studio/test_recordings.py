"""Protects the way of a click through the app: replays every recorded scenario of the real Label Studio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray

from skipclick import brush_rle
from tests.support.fakes import DiscPredictor, FlatImages
from tests.support.recorded import RECORDINGS, clicked_bodies, recorded_requests

NAMES = sorted(path.name[:2] for path in RECORDINGS.glob("*.json"))


def clicks_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in body["params"]["context"]["result"] if "is_positive" in item]


def region(client: FlaskClient, body: dict[str, Any]) -> dict[str, Any]:
    """The one region that a body is answered with, checked for all that the editor needs of it."""
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200
    (result,) = answer.json["results"]
    assert result["model_version"] == "discs-1"
    (found,) = result["result"]
    newest = body["params"]["context"]["result"][-1]
    assert found["type"] == "brushlabels"
    assert (found["from_name"], found["to_name"]) == ("tag", "image")
    assert found["value"]["brushlabels"] == newest["value"][newest["type"]]
    assert found["original_width"] == newest["original_width"]
    assert found["original_height"] == newest["original_height"]
    assert found["image_rotation"] == newest["image_rotation"]
    assert 0.5 < found["score"] == result["score"] <= 1
    assert found["readonly"] is False
    assert len(found["id"]) >= 22
    return found


def mask_of(found: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask of a region; decoding fails unless it has the size that the browser shows."""
    size = found["original_height"], found["original_width"]
    return brush_rle.decode(found["value"]["rle"], *size) > 0


def at(mask: NDArray[np.bool_], x: float, y: float) -> bool:
    """The mask at a point in percent."""
    return bool(mask[int(y / 100 * mask.shape[0]), int(x / 100 * mask.shape[1])])


def masks(client: FlaskClient, name: str) -> list[NDArray[np.bool_]]:
    """The answers to a recording's clicks."""
    return [mask_of(region(client, body)) for body in clicked_bodies(name)]


def test_all_38_scenarios_are_here() -> None:
    assert len(NAMES) == 38


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_request_is_answered_in_form(name: str, client: FlaskClient, images: FlatImages) -> None:
    images.sizes["/data/upload/1/de36a8f0-exif6.jpg"] = (120, 160)
    for recorded in recorded_requests(name):
        answer = client.open(recorded["path"], method=recorded["method"], json=recorded["body"])
        assert answer.status_code in (200, 201), answer.text
        if recorded["path"] == "/setup":
            assert answer.json["model_version"] == "discs-1"
        elif recorded["path"] == "/versions":
            assert answer.json == {"versions": ["discs-1"]}
        elif recorded["path"] == "/health":
            assert answer.json["status"] == "UP"
        elif recorded["path"] == "/webhook":
            assert answer.json["status"] == "ok"
        elif recorded["body"]["params"]["context"] is None:
            assert answer.json == {"results": []}  # an empty result would be stored as a prediction
        else:
            assert len(answer.json["results"]) == 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"15", "16", "37"}))
def test_masks_follow_the_signs_of_all_clicks(name: str, client: FlaskClient, images: FlatImages) -> None:
    images.sizes["/data/upload/1/de36a8f0-exif6.jpg"] = (120, 160)
    for body in clicked_bodies(name):
        clicks = clicks_of(body)
        if not any(click["is_positive"] for click in clicks):
            continue
        mask = mask_of(region(client, body))
        newest = clicks[-1]
        assert at(mask, newest["value"]["x"], newest["value"]["y"]) is newest["is_positive"]
        if all(click["is_positive"] for click in clicks):
            assert all(at(mask, click["value"]["x"], click["value"]["y"]) for click in clicks)


def test_04_more_clicks_refine_the_mask_before(client: FlaskClient, predictor: DiscPredictor) -> None:
    first, second, third = masks(client, "04")
    assert (first & second).sum() == first.sum() < second.sum() < third.sum()
    assert [len(clicks) for clicks in predictor.calls] == [1, 2, 3]  # nothing was computed twice


def test_05_a_negative_click_cuts(client: FlaskClient) -> None:
    before, after = masks(client, "05")
    assert at(after, 30, 50)
    assert not at(after, 38, 60)
    assert after.sum() < before.sum()


def test_06_the_second_object_starts_afresh(client: FlaskClient) -> None:
    _, second = masks(client, "06")
    assert at(second, 75, 60)
    assert not at(second, 30, 50)


def test_07_the_label_is_that_of_the_newest_click(client: FlaskClient) -> None:
    regions = [region(client, body) for body in clicked_bodies("07")]
    assert [found["value"]["brushlabels"] for found in regions] == [["Ski"], ["Helmet"], ["Ski"]]
    assert not at(mask_of(regions[1]), 30, 50)
    assert at(mask_of(regions[2]), 30, 50)
    assert at(mask_of(regions[2]), 40, 60)


def test_08_undone_clicks_are_gone(client: FlaskClient) -> None:
    *_, last = masks(client, "08")
    assert at(last, 20, 40)
    assert not at(last, 40, 60)


def test_11_a_negative_click_inside_an_accepted_mask_corrects_it(client: FlaskClient) -> None:
    body = clicked_bodies("11")[-1]
    (accepted,) = [one for one in body["tasks"][0]["drafts"][0]["result"] if at(mask_of(one), 28, 45)]
    (found,) = client.post("/predict", json=body).json["results"][0]["result"]
    assert found["id"] == accepted["id"]
    assert not at(mask_of(found), 28, 45)
    assert (mask_of(found) <= mask_of(accepted)).all()
    body["tasks"][0]["drafts"] = []
    assert client.post("/predict", json=body).json["results"][0]["result"] == []


def test_15_a_rectangle_is_a_prompt_and_the_newest_counts(client: FlaskClient) -> None:
    first, click, second = masks(client, "15")
    assert at(first, 32, 50)
    assert at(first, 14, 18)  # the box's area is where the prediction starts
    assert not at(first, 8, 50)
    assert at(click, 75, 20)
    assert not at(click, 32, 50)
    assert at(second, 76, 60)
    assert not at(second, 20, 50)


def test_16_a_negative_first_click_gives_no_mask(client: FlaskClient, predictor: DiscPredictor) -> None:
    (body,) = clicked_bodies("16")
    assert client.post("/predict", json=body).json["results"] == [
        {"result": [], "score": 0.0, "model_version": "discs-1"}
    ]
    assert predictor.calls == []


def test_17_a_context_without_clicks_is_answered_with_no_mask(client: FlaskClient) -> None:
    bodies = [request["body"] for request in recorded_requests("17", "/predict")]
    (empty,) = [body for body in bodies if body["params"]["context"] == {"result": []}]
    assert client.post("/predict", json=empty).json["results"][0]["result"] == []


def test_19_a_restored_click_has_the_sign_of_the_draft(client: FlaskClient) -> None:
    """The context lost it, the draft that came along did not."""
    first, second = clicked_bodies("19")
    mask = mask_of(region(client, second))
    assert at(mask, 30, 50)
    assert at(mask, 40, 60)
    first["params"]["context"]["result"][0]["is_positive"] = False
    second["tasks"][0]["drafts"][0]["result"][0]["is_positive"] = False
    mask = mask_of(region(client, second))
    assert not at(mask, 30, 50)
    assert at(mask, 40, 60)


def test_19_a_restored_click_whose_draft_is_gone_keeps_the_sign_it_came_with(client: FlaskClient) -> None:
    for positive in (True, False):
        first, second = clicked_bodies("19")
        first["params"]["context"]["result"][0] |= {"is_positive": positive, "id": f"click-{positive}"}
        second["params"]["context"]["result"][0]["id"] = f"click-{positive}"
        second["tasks"][0]["drafts"] = []
        client.post("/predict", json=first)
        assert at(mask_of(region(client, second)), 30, 50) is positive


def test_30_a_dragged_click_counts_where_it_is_now(client: FlaskClient) -> None:
    _, dragged = masks(client, "30")
    assert at(dragged, 60, 70)
    assert not at(dragged, 30, 50)


def test_33_the_mask_has_the_size_of_the_turned_image(client: FlaskClient, images: FlatImages) -> None:
    (body,) = clicked_bodies("33")
    refused = client.post("/predict", json=body)
    assert refused.status_code == 400
    assert "160 x 120" in refused.json["error"]
    assert "120 x 160" in refused.json["error"]


def test_33_turned_image(client: FlaskClient, images: FlatImages) -> None:
    images.sizes["/data/upload/1/de36a8f0-exif6.jpg"] = (120, 160)
    (mask,) = masks(client, "33")
    assert mask.shape == (160, 120)


def accepted(body: dict[str, Any], answer: dict[str, Any], keypoints: list[dict[str, Any]]) -> None:
    """Put into a body the draft that Label Studio saves five seconds after an accept on the canvas."""
    body["tasks"][0]["drafts"] = [{"id": 1, "user": "a@b", "result": [*keypoints, answer], "annotation": None}]


def test_35_clicks_of_an_object_accepted_on_the_canvas_are_left_out(client: FlaskClient) -> None:
    first, second = clicked_bodies("35")
    old = first["params"]["context"]["result"]
    answer = region(client, first)
    accepted(second, answer, old)
    mask = mask_of(region(client, second))
    assert at(mask, 75, 70)
    assert not at(mask, 30, 40)


def test_35_until_the_draft_is_saved_the_clicks_count_together(client: FlaskClient) -> None:
    _, second = masks(client, "35")
    assert at(second, 75, 70)
    assert at(second, 30, 40)


def test_09_an_undone_accept_brings_the_clicks_back_though_the_draft_is_older(client: FlaskClient) -> None:
    """Accepting in the bottom bar deletes the clicks, so the draft has the region without them."""
    first, second = clicked_bodies("09")
    accepted(second, region(client, first), [])
    mask = mask_of(region(client, second))
    assert at(mask, 30, 50)
    assert at(mask, 40, 60)


def test_37_a_plain_keypoint_is_no_click(client: FlaskClient) -> None:
    (mask,) = masks(client, "37")
    assert at(mask, 30, 50)
    assert not at(mask, 80, 20)


def test_90_retrieved_predictions_store_nothing_and_encode_nothing(
    client: FlaskClient, predictor: DiscPredictor
) -> None:
    for request in recorded_requests("90", "/predict"):
        assert client.post("/predict", json=request["body"]).json == {"results": []}
    assert predictor.encoded == []


def test_the_same_request_gives_the_same_mask_under_a_new_id(client: FlaskClient) -> None:
    body = clicked_bodies("04")[2]
    first, second = region(client, body), region(client, body)
    assert first["value"] == second["value"]
    assert first["id"] != second["id"]
