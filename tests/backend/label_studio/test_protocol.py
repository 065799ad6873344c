"""Protects the reading of requests beyond what was recorded: strange, broken and very large ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_studio.click_history import SignMemory, without_accepted_clicks
from backend.label_studio.labeling_config import ConfigError
from backend.label_studio.protocol import (
    MaskRequest,
    ProtocolError,
    mask_request,
    read_json,
    read_predict,
    region_rle,
)
from backend.label_studio.regions import mask_response, read_mask
from skipclick import brush_rle
from skipclick.masks import BoxMask
from tests.support.recorded import clicked_bodies

MASK = BoxMask.of(np.eye(120, 160, dtype=bool))


def asked(body: dict[str, Any], memory: SignMemory | None = None) -> MaskRequest:
    request = mask_request(read_predict(body), (memory or SignMemory()).recall)
    assert request is not None
    return request


def context(body: dict[str, Any]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = body["params"]["context"]["result"]
    return result


def test_the_module_needs_neither_flask_nor_torch() -> None:
    code = (
        "import sys, backend.label_studio.protocol\n"
        "sys.exit(bool({'flask', 'torch', 'skipclick'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RLES = st.lists(st.integers(0, 255), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | RLES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rle", "a", 'b"rle', "]"]) | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_any_json_is_read_and_masks_can_be_had_back(value: Any, indent: int | None, compact: bool) -> None:
    separators = (",", ":") if compact else None
    raw = json.dumps({"body": value}, indent=indent, separators=separators).encode()

    def restored(value: Any, like: Any) -> Any:
        if isinstance(value, str) and isinstance(like, list):
            first, last = value.split(":")
            return json.loads(b"[%s]" % raw[int(first) : int(last)])
        if isinstance(value, dict):
            return {key: restored(inner, like[key]) for key, inner in value.items()}
        if isinstance(value, list):
            return [restored(inner, other) for inner, other in zip(value, like, strict=True)]
        return value

    assert restored(read_json(raw)["body"], value) == value


def test_a_body_of_megabytes_is_read_without_its_masks() -> None:
    rle = list(range(256)) * 160
    region = {"id": "a", "type": "brushlabels", "value": {"format": "rle", "rle": rle}}
    body = clicked_bodies("03")[0]
    body["tasks"][0]["annotations"] = [{"result": [region] * 30}]
    raw = json.dumps(body).encode()
    assert len(raw) > 5_000_000

    def best(read: Any) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            read(raw)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert best(read_json) < best(json.loads) / 10
    found = read_json(raw)["tasks"][0]["annotations"][0]["result"][7]
    assert region_rle(found, raw) == rle


@pytest.mark.parametrize("raw", [b"", b"no", b"{", b'{"rle": [1', b"\xff\xfe", b'{"a": 1}}'])
def test_a_body_that_is_no_json(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        read_json(raw)


@pytest.mark.parametrize("rle", [None, "x", "0:2", "9:1", ["x"], {}, 3, [None]])
def test_a_region_without_readable_rle(rle: Any) -> None:
    assert region_rle({"value": {"rle": rle}}, b"ab") == []
    assert region_rle({}, b"") == []


@pytest.mark.parametrize("body", [None, [], 3, {}, {"tasks": None}, {"tasks": [1]}])
def test_bodies_that_label_studio_never_sends(body: Any) -> None:
    with pytest.raises(ProtocolError):
        read_predict(body)


@pytest.mark.parametrize("given", [None, {}, []])
def test_without_a_result_in_the_context_nobody_clicked(given: Any) -> None:
    assert read_predict({"tasks": [{}], "params": {"context": given}}).context is None
    assert read_predict({"tasks": []}).context is None


@given(st.floats(-10, 110), st.floats(-10, 110))
def test_clicks_are_pixels_of_the_shown_image(x: float, y: float) -> None:
    body = clicked_bodies("03")[0]
    context(body)[0]["value"] |= {"x": x, "y": y}
    (click,) = asked(body).clicks
    assert 0 <= click.x < 160
    assert 0 <= click.y < 120
    if 0 <= x < 100 and 0 <= y < 100:
        assert click.x <= x * 1.6 < click.x + 1
        assert click.y <= y * 1.2 < click.y + 1


@pytest.mark.parametrize("value", [None, "50", float("nan"), float("inf"), True])
def test_a_click_without_a_place(value: Any) -> None:
    body = clicked_bodies("03")[0]
    context(body)[0]["value"]["x"] = value
    with pytest.raises(ProtocolError, match='lacks the number "x"'):
        asked(body)


@pytest.mark.parametrize("size", [None, 0, -1, "160"])
def test_a_click_without_the_size_of_the_image(size: Any) -> None:
    body = clicked_bodies("03")[0]
    context(body)[0]["original_width"] = size
    with pytest.raises(ProtocolError, match="original_width"):
        asked(body)


def test_foreign_items_are_ignored() -> None:
    body = clicked_bodies("04")[1]
    click = context(body)[0]
    foreign: list[Any] = [
        click | {"type": "choices", "value": {"choices": ["x"]}},  # a per-region control, with the click's id
        click | {"id": "f1", "from_name": "unknown"},
        click | {"id": "f2", "from_name": "tag3"},  # a keypoint of a rectangle tag
        click | {"id": "f3", "to_name": "other"},
        {"id": "f4", "type": "brushlabels", "from_name": "tag", "to_name": "image", "value": {"rle": "1"}},
        click | {"id": "f5", "value": {"rle": [1], "keypointlabels": ["Ski"]}},  # seen in recording 29
        {},
        None,
        "x",
    ]
    body["params"]["context"]["result"] = [*foreign, *context(body), *foreign]
    assert [click.id for click in asked(body).clicks] == ["k1gg5WWqE1", "HA0UaWwxk3"]


def test_only_clicks_of_the_newest_label_count() -> None:
    body = clicked_bodies("04")[2]
    context(body)[1]["value"]["keypointlabels"] = ["Helmet"]
    found = asked(body)
    assert [click.id for click in found.clicks] == ["k1gg5WWqE1", "7FYFLQaxJ_"]
    assert found.target.labels == ("Ski",)


def test_rotation_page_and_sizes_are_echoed() -> None:
    body = clicked_bodies("03")[0]
    body["label_config"] = body["label_config"].replace('value="$image"', 'valueList="$image"')
    body["tasks"][0]["data"]["image"] = ["/0.png", "/1.png"]
    context(body)[0] |= {"item_index": 1, "image_rotation": 90}
    found = asked(body)
    assert found.image.url == "/1.png"
    region = mask_response(found.target, MASK, 0.9, "v")["results"][0]["result"][0]
    assert region["item_index"] == 1
    assert region["image_rotation"] == 90
    assert (region["original_width"], region["original_height"]) == (160, 120)


def test_a_page_counts_for_itself() -> None:
    body = clicked_bodies("04")[1]
    body["label_config"] = body["label_config"].replace('value="$image"', 'valueList="$image"')
    body["tasks"][0]["data"]["image"] = ["/0.png", "/1.png"]
    for page, item in enumerate(context(body)):
        item["item_index"] = page
    assert [click.id for click in asked(body).clicks] == ["HA0UaWwxk3"]


def test_clicks_on_several_tasks_are_refused() -> None:
    body = clicked_bodies("03")[0]
    body["tasks"] *= 2
    with pytest.raises(ProtocolError, match="one task"):
        asked(body)


def test_credentials_of_the_project_reach_the_image_and_no_log() -> None:
    body = clicked_bodies("03")[0]
    body["params"] |= {"login": "me", "password": "secret"}
    found = asked(body)
    assert (found.image.login, found.image.password) == ("me", "secret")
    assert "secret" not in repr(found)
    assert "secret" not in repr(read_predict(body))


def test_only_unsigned_keypoints_are_all_positive() -> None:
    body = clicked_bodies("37")[0]
    del context(body)[1]
    assert [click.positive for click in asked(body).clicks] == [True]


def test_signs_come_from_annotations_too() -> None:
    """Clicks that were submitted with their object come back without signs when the annotation is reopened."""
    body = clicked_bodies("19")[1]
    task = body["tasks"][0]
    task["annotations"] = task.pop("drafts")
    task["annotations"][0]["result"][0]["is_positive"] = False
    assert [click.positive for click in asked(body).clicks] == [False, True]


def test_signs_are_remembered_per_task_and_forgotten_in_order() -> None:
    memory = SignMemory(capacity=2)
    clicks = asked(clicked_bodies("04")[2]).clicks
    memory.remember("1/1", clicks)
    assert memory.recall("1/1", clicks[0].id) is None
    assert memory.recall("1/1", clicks[2].id) is True
    assert memory.recall("1/2", clicks[2].id) is None


def leftover_body(*, keypoints: int, label: str = "Ski", mask_at: int = 0) -> dict[str, Any]:
    """Three clicks, of which the draft holds the first `keypoints`, followed by a mask around one of them."""
    body = clicked_bodies("04")[2]
    found = asked(body)
    mask = brush_rle.decode(clicked_rle(found, mask_at), 120, 160)
    draft = [dict(item) for item in context(body)[:keypoints]]
    region = {
        "id": "r",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]},
    }
    body["tasks"][0]["drafts"] = [{"result": [*draft, region]}]
    return body


def clicked_rle(request: MaskRequest, index: int) -> list[int]:
    mask = np.zeros((120, 160), bool)
    click = request.clicks[index]
    mask[click.y - 3 : click.y + 4, click.x - 3 : click.x + 4] = True
    return brush_rle.encode(mask)


def left(body: dict[str, Any]) -> list[int]:
    """Which of the three clicks are left, through the bytes that came over the wire."""
    raw = json.dumps(body).encode()
    body = read_json(raw)
    before = asked(body)
    after = without_accepted_clicks(before, body["tasks"][0], lambda region, *size: read_mask(region, raw, *size))
    return [before.clicks.index(click) for click in after.clicks]


def test_clicks_in_front_of_their_mask_are_left_over() -> None:
    assert left(leftover_body(keypoints=1)) == [1, 2]
    assert left(leftover_body(keypoints=2)) == [2]
    assert left(leftover_body(keypoints=2, mask_at=1)) == [2]


def test_the_newest_click_always_stays() -> None:
    assert left(leftover_body(keypoints=3)) == [2]


def test_a_mask_of_another_label_or_place_leaves_the_clicks_alone() -> None:
    assert left(leftover_body(keypoints=1, label="Helmet")) == [0, 1, 2]
    assert left(leftover_body(keypoints=1, mask_at=2)) == [0, 1, 2]
    assert left(leftover_body(keypoints=0)) == [0, 1, 2]


def test_a_mask_in_front_of_a_click_is_not_its_mask() -> None:
    """A click that was made inside an accepted mask (with ctrl) is pending, not left over."""
    body = leftover_body(keypoints=1)
    body["tasks"][0]["drafts"][0]["result"].reverse()
    assert left(body) == [0, 1, 2]


def test_a_damaged_mask_accounts_for_nothing() -> None:
    body = leftover_body(keypoints=1)
    body["tasks"][0]["drafts"][0]["result"][-1]["value"]["rle"] = [1, 2, 3]
    assert left(body) == [0, 1, 2]
    body["tasks"][0]["drafts"] = [None, {"result": None}, {"result": [None, 3]}]
    assert left(body) == [0, 1, 2]


# --- the sign of a click


@pytest.mark.parametrize(
    ("beside", "inside", "positive"),
    [
        (True, None, True),
        (False, None, False),
        (None, True, True),
        (None, False, False),
        (False, True, False),  # the released editor's field counts first
        (True, False, True),
        (0, None, False),
        (1, None, True),
        (0.0, None, False),
        (None, 0, False),
        ("false", None, False),
        (" True ", None, True),
        (None, "0", False),
        (None, None, True),
    ],
)
def test_the_sign_stands_beside_the_value_or_in_it(beside: Any, inside: Any, positive: bool) -> None:
    body = clicked_bodies("03")[0]
    item = context(body)[0]
    item["is_positive"] = beside
    item["value"]["positive"] = inside
    assert [click.positive for click in asked(body).clicks] == [positive]


@pytest.mark.parametrize("sign", ["", "no", 2, -1, [], {}, [True], "negative"])
@pytest.mark.parametrize("field", ["is_positive", "value.positive"])
def test_a_sign_that_cannot_be_read_is_refused(sign: Any, field: str) -> None:
    body = clicked_bodies("03")[0]
    item = context(body)[0]
    del item["is_positive"]
    (item["value"] if field == "value.positive" else item)[field.removeprefix("value.")] = sign
    with pytest.raises(ProtocolError, match=f'"{field}" of a keypointlabels item must be true or false'):
        asked(body)


def test_signs_in_the_value_count_beside_others_and_come_back_from_drafts() -> None:
    body = clicked_bodies("05")[1]
    second = context(body)[1]
    del second["is_positive"]
    second["value"]["positive"] = False
    assert [click.positive for click in asked(body).clicks] == [True, False]
    body["tasks"][0]["drafts"] = [{"result": [json.loads(json.dumps(second))]}]
    del second["value"]["positive"]
    assert [click.positive for click in asked(body).clicks] == [True, False]


def test_clicks_without_ids_keep_their_own_signs() -> None:
    body = clicked_bodies("05")[1]
    for item in context(body):
        del item["id"]
    assert [click.positive for click in asked(body).clicks] == [True, False]


# --- which control, which labels, which image


def labelled(config: str, *clicks: tuple[str, list[str]], data: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recorded click, once for each pair of a tag's name and labels."""
    body = clicked_bodies("03")[0]
    (item,) = context(body)
    value = {"x": 25, "y": 31.25, "width": 0.3}
    body["label_config"] = f"<View>{config}</View>"
    body["tasks"][0]["data"] = data or {"image": "/a.png"}
    body["params"]["context"]["result"] = [
        item
        | {"id": f"k{number}", "from_name": name, "to_name": name.replace("click", "page") if "_" in name else "image"}
        | {"value": value | {"labels": labels, "keypointlabels": labels}}
        for number, (name, labels) in enumerate(clicks)
    ]
    return body


TWO_MASKS = (
    '<Image name="image" value="$image"/>'
    '<BrushLabels name="m1" toName="image"><Label value="Tree"/><Label value="Both"/></BrushLabels>'
    '<BrushLabels name="m2" toName="image" choice="multiple"><Label value="Ski" alias="s"/><Label value="Red"/>'
    "</BrushLabels>"
    '<KeyPointLabels name="click" toName="image" smart="true" choice="multiple"><Label value="Ski"/>'
    '<Label value="Red"/><Label value="Tree"/><Label value="Other"/></KeyPointLabels>'
)


@pytest.mark.parametrize(
    ("labels", "name", "answered"),
    [(["Tree"], "m1", ["Tree"]), (["Ski"], "m2", ["s"]), (["Red", "Ski"], "m2", ["Red", "s"])],
)
def test_the_mask_goes_to_the_tag_that_has_the_labels(labels: list[str], name: str, answered: list[str]) -> None:
    found = asked(labelled(TWO_MASKS, ("click", labels)))
    region = mask_response(found.target, MASK, 0.9, "v")["results"][0]["result"][0]
    assert (region["from_name"], region["value"]["brushlabels"]) == (name, answered)


@pytest.mark.parametrize("labels", [["Other"], ["Tree", "Red"], []])
def test_a_click_whose_labels_no_mask_tag_has_is_refused(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="label"):
        asked(labelled(TWO_MASKS, ("click", labels)))


def test_clicks_are_of_one_object_if_their_first_label_is_the_same() -> None:
    """So the editor groups them; what is answered are the newest click's labels."""
    body = labelled(TWO_MASKS, ("click", ["Red"]), ("click", ["Ski"]), ("click", ["Red", "Ski"]))
    found = asked(body)
    assert [click.id for click in found.clicks] == ["k0", "k2"]
    assert found.target.labels == ("Red", "s")


PAGES = (
    '<Repeater on="$document" indexFlag="{{idx}}" mode="pagination">'
    '<Image name="page_{{idx}}" value="$document[{{idx}}].page"/>'
    '<BrushLabels name="mask_{{idx}}" toName="page_{{idx}}" smart="false"><Label value="Object"/></BrushLabels>'
    '<KeyPointLabels name="click_{{idx}}" toName="page_{{idx}}" smart="true"><Label value="Object"/></KeyPointLabels>'
    "</Repeater>"
)


def test_a_click_on_a_page_of_a_repeater() -> None:
    data = {"document": [{"page": "/0.png"}, {"page": "/1.png"}]}
    found = asked(labelled(PAGES, ("click_0", ["Object"]), ("click_1", ["Object"]), data=data))
    assert (found.target.from_name, found.target.to_name, found.image.url) == ("mask_1", "page_1", "/1.png")
    assert [click.id for click in found.clicks] == ["k1"]
    with pytest.raises(ProtocolError, match='no tag named "click_2"; its tags for clicks: click_0, click_1'):
        asked(labelled(PAGES, ("click_2", ["Object"]), data=data))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"from_name": "gone"}, 'no tag named "gone"; its tags for clicks: tag2, tag3'),
        ({"from_name": None}, 'no tag named "None"'),
        ({"from_name": "tag"}, '"tag" is a tag of another kind (brushlabels)'),
        ({"from_name": "tag3"}, 'the RectangleLabels tag "tag3" does not create items of type "keypointlabels"'),
        ({"to_name": "other"}, 'the KeyPointLabels tag "tag2" is for the image "image", not for "other"'),
        ({"type": "polygonlabels"}, 'does not create items of type "polygonlabels"'),
        ({"type": "ellipse", "from_name": "image"}, "takes clicks of KeyPointLabels and RectangleLabels tags"),
        ({"value": {"x": 1, "y": 2}}, 'lacks the list "keypointlabels"'),
        ({"value": None}, 'lacks the list "keypointlabels"'),
    ],
)
def test_a_click_that_cannot_be_used_is_an_error_and_not_no_mask(changes: dict[str, Any], why: str) -> None:
    body = clicked_bodies("03")[0]
    context(body)[0].update(changes)
    with pytest.raises(ProtocolError, match=re.escape(why)):
        asked(body)


def test_what_is_no_click_asks_for_nothing() -> None:
    body = clicked_bodies("03")[0]
    click = context(body)[0]
    del click["is_positive"]
    mask = {"type": "brushlabels", "value": {"rle": [1], "brushlabels": ["Ski"]}}
    copy_of_mask = {"value": {"rle": [1], "keypointlabels": ["Ski"]}}
    choice = {"type": "choices", "value": {"choices": ["x"]}, "from_name": "unknown"}
    for result in ([], [click | mask], [click | copy_of_mask], [click | choice], [{}]):
        body["params"]["context"]["result"] = result
        assert mask_request(read_predict(body), SignMemory().recall) is None


def test_strange_values_in_unrelated_fields_refuse_no_click() -> None:
    body = clicked_bodies("03")[0]
    body["tasks"][0] |= {"meta": "@", "comment": "\ud800"}
    body["tasks"][0]["annotations"] = [{"result": [{"type": "brushlabels", "value": {"rle": [1, 2, 3]}}]}]
    raw = json.dumps(body).replace('"@"', "[NaN, -Infinity, 1e999]").encode()
    found = read_json(raw)
    assert len(asked(found).clicks) == 1
    assert region_rle(found["tasks"][0]["annotations"][0]["result"][0], raw) == [1, 2, 3]
