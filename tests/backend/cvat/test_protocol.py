"""Protects what CVAT sends and reads: prompts as it writes them, functions as it needs them, sentences for the rest."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.cvat.protocol import (
    InteractionError,
    Prompts,
    describe_function,
    function_name,
    read_interaction,
)
from backend.prompts import Box

PICTURE = bytes(range(256)) * 3
TEXT = base64.b64encode(PICTURE).decode()


def body(**changes: Any) -> bytes:
    return json.dumps({"image": TEXT, "pos_points": [[3.5, 4]], "neg_points": [], "obj_bbox": []} | changes).encode()


def test_a_click_as_the_server_writes_it() -> None:
    interaction = read_interaction(body(neg_points=[[1, 2.25]], obj_bbox=[[1, 2], [30, 40]]), 10)
    assert interaction.picture == PICTURE
    assert interaction.prompts == Prompts(((3.5, 4),), ((1, 2.25),), ((1, 2), (30, 40)))


@pytest.mark.parametrize("changes", [{"obj_bbox": None}, {"text_prompts": []}, {"threshold": 0.3}])
def test_what_other_clients_and_versions_send(changes: dict[str, Any]) -> None:
    assert read_interaction(body(**changes), 10).prompts == Prompts(((3.5, 4),))


def test_base64_in_lines_is_the_same_picture() -> None:
    lines = re.sub("(.{76})", r"\1\r\n", TEXT)
    assert read_interaction(body(image=lines), 10).picture == PICTURE


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": None}, "has no picture"),
        ({"image": 5}, "has no picture"),
        ({"image": "no base64!"}, "is not base64"),
        ({"image": "ü"}, "is not base64"),
        ({"pos_points": 3}, '"pos_points" must be a list'),
        ({"pos_points": [[1]]}, '"pos_points" contains something'),
        ({"neg_points": [[1, True]]}, '"neg_points" contains something'),
        ({"neg_points": ["12"]}, '"neg_points" contains something'),
        ({"pos_points": [[1e300, 1]]}, '"pos_points" contains something'),
        ({"pos_points": [[1, 1]] * 11}, "11 points, more than REQUEST_MAX_CLICKS=10"),
        ({"obj_bbox": [[1, 2]]}, '"obj_bbox" must be two corners'),
        ({"obj_bbox": [[1, 2], [3, None]]}, '"obj_bbox" contains something'),
        ({"text_prompts": ["cat"]}, "points and boxes, but not text"),
    ],
)
def test_what_cannot_be_answered_is_told_to_the_annotator(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InteractionError, match=re.escape(sentence)):
        read_interaction(body(**changes), 10)


@pytest.mark.parametrize("raw", [b"", b"[]", b"nonsense", b'{"pos_points": [[NaN, 1]]}'])
def test_what_cvat_never_sends(raw: bytes) -> None:
    with pytest.raises(InteractionError):
        read_interaction(raw, 10)


COORDINATES = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=5), st.integers(1, 50), st.integers(1, 50))
def test_every_click_hits_a_pixel_of_the_picture(points: list[tuple[float, float]], height: int, width: int) -> None:
    clicks = Prompts(tuple(points), tuple(points)).clicks((height, width))
    assert len({click.id for click in clicks}) == len(clicks) == 2 * len(points)
    assert all(0 <= click.x < width and 0 <= click.y < height for click in clicks)


def test_a_point_hits_the_pixel_that_it_lies_in() -> None:
    (click,) = Prompts(((2.99, 3.0),)).clicks((10, 10))
    assert (click.x, click.y, click.positive) == (2, 3, True)


def test_a_box_may_be_drawn_from_any_corner_and_over_the_edge() -> None:
    assert Prompts(corners=((30, 2), (-5, 99))).box((40, 20)) == Box(0, 2, 20, 38)
    assert Prompts(corners=((5, 2), (8, 9))).box((40, 20)) == Box(5, 2, 3, 7)
    assert Prompts().box((40, 20)) is None


@pytest.mark.parametrize("corners", [((5, 5), (5, 9)), ((30, 1), (50, 9)), ((-9, -9), (-1, -1))])
def test_a_box_without_pixels_is_refused(corners: Any) -> None:
    with pytest.raises(InteractionError, match="draw it again"):
        Prompts(corners=corners).box((40, 20))


@pytest.mark.parametrize("project", [None, 12])
def test_a_function_has_all_that_cvat_needs(project: int | None) -> None:
    """A missing key hides all models; an unknown type or an interface below 2, this one; of "startswith_box" the word
    "false" means yes too; -1 for negative points forbids them."""
    name = function_name(project)
    described = json.loads(json.dumps(describe_function(name, "tiny", ready=True, port=9090)))
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", described["metadata"]["name"])
    assert described["metadata"]["name"] == name
    annotations = described["metadata"]["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())
    assert annotations["type"] == "interactor"
    assert int(annotations["version"]) >= 2
    assert json.loads(annotations["spec"]) == []
    assert int(annotations["min_pos_points"]) == 1
    assert int(annotations["min_neg_points"]) == 0
    assert "startswith_box" not in annotations
    assert "tiny" in described["spec"]["description"]
    assert described["status"] == {"state": "ready", "httpPort": 9090}
