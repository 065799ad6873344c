"""Protects what becomes of annotations: which regions are objects, which pieces belong together, and why others do not
count; and that no body, however strange, is an error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.label_studio.annotations import (
    Annotation,
    Event,
    Reason,
    UnusableError,
    event_project,
    read_event,
    read_task,
)
from backend.label_studio.labeling_config import parse_labeling_config
from backend.label_studio.protocol import read_json
from tests.support import annotation_bodies as bodies
from tests.support.annotation_bodies import drawn, region
from tests.support.recorded import recorded_requests

CONFIG = parse_labeling_config(bodies.CONFIG)
PIXELS = 1 << 20


def read(result: Any, **changes: Any) -> Annotation:
    (annotation,) = read_task(bodies.task(5, bodies.annotation(1, 5, result, **changes)), CONFIG)
    return annotation


def reason(piece: dict[str, Any], max_pixels: int = PIXELS) -> Reason:
    """Why a region is not learnt from."""
    (one,) = read([piece]).objects
    with pytest.raises(UnusableError) as caught:
        one.mask(max_pixels)
    return caught.value.reason


def with_rle(rle: Any) -> dict[str, Any]:
    return region("r", drawn(0, 0, 1, 1), value={"format": "rle", "rle": rle, "brushlabels": ["Ski"]})


def recorded_events(name: str) -> list[dict[str, Any]]:
    return [request["body"] for request in recorded_requests(name, "/webhook")]


def test_a_recorded_submit_gives_its_objects() -> None:
    (body,) = recorded_events("06")
    raw = json.dumps(body).encode()
    event = read_event(read_json(raw), raw)
    (annotation,) = event.saved
    assert event_project(body) == 1
    assert (annotation.id, annotation.task, annotation.updated_at) == (1, 5, "2026-11-20T09:48:49.896937+00:00")
    assert [(one.region, one.label, one.image) for one in annotation.objects] == [
        ("72c3483f37", "Ski", "/data/upload/1/660e36af-im04.png"),
        ("315f18451d", "Ski", "/data/upload/1/660e36af-im04.png"),
    ]
    assert [int(one.mask(PIXELS).sum()) for one in annotation.objects] == [1161, 1161]
    assert annotation == read_event(body).saved[0]  # whether RLEs were left in the raw body or not


def test_a_recorded_update_and_deletion() -> None:
    created, updated, removed = recorded_events("18")
    assert [len(read_event(body).saved[0].objects) for body in (created, updated)] == [1, 2]
    assert [one.label for one in read_event(updated).saved[0].objects] == ["Ski", "Helmet"]
    assert [read_event(body).saved[0].annotator for body in (created, updated)] == [1, 1]
    assert read_event(removed) == Event(deleted=(4,))


@pytest.mark.parametrize(
    ("completed_by", "annotator"),
    [(3, 3), ({"id": 3, "email": "a@example.com"}, 3), (None, None), ({}, None), ("3", None), (True, None), (-1, None)],
)
def test_who_made_an_annotation(completed_by: Any, annotator: int | None) -> None:
    """A number in webhooks and exports; in tasks as the editor gets them (recording 18) an object."""
    body = bodies.saved(bodies.annotation(1, 1, [], completed_by=completed_by))
    assert read_event(body).saved[0].annotator == annotator


def test_recorded_bulk_events() -> None:
    """Annotations made of predictions, and deletions of several: what Label Studio calls bulk."""
    created, removed, tasks = recorded_events("91")
    assert [created["action"], removed["action"], tasks["action"]] == [
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
        "TASKS_DELETED",
    ]
    event = read_event(created)
    assert len(event.saved) == 2
    for annotation, sent, task in zip(event.saved, created["annotation"], created["task"], strict=True):
        (one,) = annotation.objects
        assert (annotation.id, annotation.task, one.image) == (sent["id"], task["id"], task["data"]["image"])
        assert one.mask(PIXELS).sum() == 400
    assert read_event(removed).deleted == tuple(one["id"] for one in removed["annotations"])
    assert read_event(tasks).deleted_tasks == tuple(one["id"] for one in tasks["tasks"])
    assert {event_project(body) for body in (created, removed, tasks)} == {created["project"]["id"]}


@pytest.mark.parametrize("name", ["01", "17", "29", "90"])
def test_only_events_about_annotations_concern_the_store(name: str) -> None:
    expected = ("ANNOTATION_CREATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")
    for body in recorded_events(name):
        assert (event_project(body) is not None) == (body["action"] in expected)


def test_a_copy_of_the_mask_under_another_type_is_no_second_object() -> None:
    (body,) = recorded_events("29")
    types = [item["type"] for item in body["annotation"]["result"]]
    assert "keypointlabels" in types
    assert len(read_event(body).saved[0].objects) == 1


def test_an_annotation_with_keypoints_alone_has_no_region() -> None:
    (body,) = recorded_events("17")
    (annotation,) = read_event(body).saved
    assert annotation.objects == ()
    assert annotation.skipped == {Reason.NO_REGION: 1}


def test_pieces_of_one_object_are_one_mask() -> None:
    result = [
        region("a", drawn(0, 0, 5, 5)),
        region("b", drawn(10, 10, 15, 15), parentID="a"),
        region("c", drawn(20, 20, 25, 25), parentID="b"),
        region("d", drawn(0, 20, 5, 25)),
    ]
    objects = {one.region: one.mask(PIXELS) for one in read(result).objects}
    assert objects.keys() == {"a", "d"}
    assert np.array_equal(objects["a"], drawn(0, 0, 5, 5) | drawn(10, 10, 15, 15) | drawn(20, 20, 25, 25))
    assert np.array_equal(objects["d"], drawn(0, 20, 5, 25))


def test_what_hangs_below_an_object_of_another_label_is_an_object_of_its_own() -> None:
    result = [region("a", drawn(0, 0, 5, 5)), region("b", drawn(1, 1, 2, 2), "Helmet", parentID="a")]
    assert [(one.region, one.label) for one in read(result).objects] == [("a", "Ski"), ("b", "Helmet")]


def test_pieces_that_are_each_others_parents_are_one_object() -> None:
    chain = {"a": "b", "b": "c", "c": "b", "d": "missing", "e": "e"}
    result = [region(one, drawn(0, 0, 1, 1), parentID=parent) for one, parent in chain.items()]
    assert [(one.region, len(one.pieces)) for one in read(result).objects] == [("b", 3), ("d", 1), ("e", 1)]


def test_hand_drawn_edges_count_from_half_covered_on() -> None:
    alpha = np.array([[0, 127, 128, 255]], np.uint8)
    literal = f"{16:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "011" + f"{15:016b}"
    literal += "".join(f"{value:08b}" for value in np.repeat(alpha, 4))
    literal += "0" * (-len(literal) % 8)
    rle = [int(literal[bit : bit + 8], 2) for bit in range(0, len(literal), 8)]
    value = {"format": "rle", "rle": rle, "brushlabels": ["Ski"]}
    (one,) = read([region("r", drawn(0, 0, 1, 1), value=value, original_width=4, original_height=1)]).objects
    assert one.mask(PIXELS).tolist() == [[False, False, True, True]]


def test_each_reason() -> None:
    good = region("r", drawn(3, 3, 9, 9))
    assert read([good], was_cancelled=True).skipped == {Reason.CANCELLED: 1}
    assert read([]).skipped == {Reason.NO_REGION: 1}
    assert read([good | {"to_name": "elsewhere"}]).skipped == {Reason.NO_IMAGE: 1}
    assert reason(region("r", drawn(0, 0, 0, 0))) is Reason.EMPTY
    assert reason(good | {"original_width": 41}) is Reason.WRONG_SIZE
    assert reason(good | {"original_width": None}) is Reason.WRONG_SIZE
    assert reason(good, max_pixels=30 * 40 - 1) is Reason.TOO_LARGE
    assert reason(with_rle(good["value"]["rle"][:-9])) is Reason.UNDECODABLE
    assert reason(with_rle([])) is Reason.UNDECODABLE
    assert reason(with_rle(["a", "b"])) is Reason.UNDECODABLE
    assert reason(with_rle([-1] * 20)) is Reason.UNDECODABLE


def test_a_broken_piece_makes_the_object_unusable() -> None:
    """Its mask would lack something that the annotator meant."""
    broken = with_rle([1, 2, 3]) | {"id": "b", "parentID": "a"}
    (one,) = read([region("a", drawn(0, 0, 5, 5)), broken]).objects
    with pytest.raises(UnusableError):
        one.mask(PIXELS)


def test_a_huge_announced_size_allocates_nothing() -> None:
    assert reason(region("r", drawn(0, 0, 1, 1), original_width=10**9, original_height=10**9)) is Reason.TOO_LARGE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
GOOD = bodies.saved(bodies.annotation(1, 5, [region("a", drawn(0, 0, 5, 5)), region("b", drawn(1, 1, 2, 2))]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value but the inside of RLEs."""
    if isinstance(value, list) and path[-1:] == ("rle",):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@settings(deadline=None)
@given(place=st.sampled_from(places(GOOD)[1:]), junk=JSON)
def test_no_body_is_an_error(place: tuple[Any, ...], junk: Any) -> None:
    body = json.loads(json.dumps(GOOD))
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    event_project(body)
    for annotation in read_event(body).saved:
        for one in annotation.objects:
            with suppress(UnusableError):
                assert one.mask(PIXELS).any()


def test_the_image_is_found_as_the_editor_finds_it() -> None:
    """On a page of a Repeater, by an expression, in a reference with blanks around."""
    xml = (
        '<View><Repeater on="$pages"><Image name="page_{{idx}}" value="https://host/$dir/$pages[{{idx}}].name"/>'
        '<BrushLabels name="mask_{{idx}}" toName="page_{{idx}}"/></Repeater></View>'
    )
    result = [region("r", drawn(0, 0, 9, 9), from_name="mask_1", to_name="page_1")]
    task = bodies.task(5, bodies.annotation(1, 5, result))
    task["data"] = {"dir": "d", "pages": [{"name": "0.png"}, {"name": "1.png\n"}]}
    (annotation,) = read_task(task, parse_labeling_config(xml))
    assert [one.image for one in annotation.objects] == ["https://host/d/1.png"]
    task["data"]["pages"] = [0] * 100_000
    (annotation,) = read_task(task, parse_labeling_config(xml))
    assert annotation.skipped == {Reason.NO_IMAGE: 1}


def test_pieces_with_other_labels_are_objects_of_their_own() -> None:
    def labelled(region_id: str, *labels: str, **changes: Any) -> dict[str, Any]:
        found = region(region_id, drawn(0, 0, 9, 9), **changes)
        found["value"]["brushlabels"] = list(labels)
        return found

    result = [
        labelled("a", "Ski", "Red"),
        labelled("b", "Ski", "Red", parentID="a"),
        labelled("c", "Ski", parentID="a"),
    ]
    assert [(one.region, len(one.pieces)) for one in read(result).objects] == [("a", 2), ("c", 1)]
