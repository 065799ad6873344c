"""Protects how regions are joined to objects: in time that grows with their number, whatever refers to whatever."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipclick import bitmask
from skipclick.evaluation.datasets.label_studio import AnnotatedObject, Annotation, Reason, read_annotation
from skipclick.evaluation.datasets.left_out import UnusableError
from skipclick.masks import BoxMask
from tests.support.annotation_bodies import annotation, drawn, region

MASK = drawn(0, 0, 1, 1)
NAMES = [f"r{index}" for index in range(7)]


def objects(parents: dict[str, str | None]) -> list[AnnotatedObject]:
    result = [region(name, MASK, parentID=parent) for name, parent in parents.items()]
    return list(read(result).objects)


def read(result: object) -> Annotation:
    return read_annotation(annotation(1, 5, result), lambda to_name, index: "a.png")


def top(name: str, parents: dict[str, str | None]) -> str:
    """By the definition: up to where there is no parent; of a circle the smallest."""
    seen = [name]
    while (parent := parents[seen[-1]]) in parents:
        if parent in seen:
            return min(seen[seen.index(parent) :])
        seen.append(parent)
    return seen[-1]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([*NAMES, "missing", None]), min_size=1))
def test_each_region_belongs_to_the_top_of_its_parents(parents: dict[str, str | None]) -> None:
    expected: dict[str, int] = {}
    for name in parents:
        expected[top(name, parents)] = expected.get(top(name, parents), 0) + 1
    assert {one.region: len(one.pieces) for one in objects(parents)} == expected


@pytest.mark.parametrize("shape", ["chain", "chain from its end", "circle", "star", "one id"])
def test_joining_takes_time_in_proportion_to_the_regions(shape: str) -> None:
    """20,000 regions: 400 million steps where each looks at each, 8 billion where each walks every chain anew."""
    count = 20_000
    names = [f"{index:05}" for index in range(count)]
    parents: list[str | None] = [None, *names[:-1]]
    if shape == "circle":
        parents[0] = names[-1]
    if shape == "star":
        parents = [None, *[names[0]] * (count - 1)]
    pairs = list(zip(names, parents, strict=True))
    one_region = region("", MASK)
    result = [one_region | {"id": name, "parentID": up} for name, up in pairs[:: -1 if "end" in shape else 1]]
    if shape == "one id":
        result = [one | {"id": "r", "value": one["value"] | {"rle": [index % 256]}} for index, one in enumerate(result)]
    begin = time.process_time()
    found = read(result).objects
    assert time.process_time() - begin < 5
    assert [len(one.pieces) for one in found] == ([1] * 256 if shape == "one id" else [count])


def test_only_regions_of_one_label_and_image_are_one_object() -> None:
    result = [
        region("a", MASK),
        region("b", MASK, "Helmet", parentID="a"),
        region("c", MASK, parentID="b"),
        region("d", MASK, parentID="a", to_name="other"),
        region("e", MASK, parentID="a", item_index=1),
        region("f", MASK, parentID="a"),
    ]
    assert [(one.region, len(one.pieces)) for one in read(result).objects] == [
        ("a", 2),
        ("b", 1),
        ("c", 1),
        ("d", 1),
        ("e", 1),
    ]


def test_numbers_are_ids_too() -> None:
    result = [region("a", MASK) | {"id": 7}, region("b", np.flipud(MASK), parentID=7)]
    (one,) = read(result).objects
    assert (one.region, len(one.pieces)) == ("7", 2)


def read_one(kind: str, value: dict[str, object], size: tuple[int, int] = (20, 30)) -> AnnotatedObject:
    given = {"id": "a", "type": f"{kind}labels", "to_name": "image", "original_height": size[0]}
    (one,) = read([given | {"original_width": size[1], "value": value | {f"{kind}labels": ["Ski"]}}]).objects
    assert one.label == "Ski"
    return one


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("polygon", {"points": [[1, 1], [2, 2]]}, Reason.UNDECODABLE),
        ("polygon", {"points": [[1, 1], [2, 2], [3, "x"]]}, Reason.UNDECODABLE),
        ("polygon", {"points": [[1, 1], [2, 2], [float("nan"), 1]]}, Reason.UNDECODABLE),
        ("polygon", {"points": None}, Reason.UNDECODABLE),
        ("polygon", {"points": [[-9, -9], [-8, -9], [-8, -8]]}, Reason.EMPTY),
        ("bitmask", {"imageDataURL": None}, Reason.UNDECODABLE),
        ("bitmask", {"imageDataURL": "data:image/png;base64,iVBORw0KGgo="}, Reason.UNDECODABLE),
        ("bitmask", {"imageDataURL": bitmask.encode(BoxMask.of(np.ones((3, 3), bool)))}, Reason.WRONG_SIZE),
        ("bitmask", {"imageDataURL": bitmask.encode(BoxMask.of(np.zeros((20, 30), bool)))}, Reason.EMPTY),
    ],
)
def test_a_mask_that_is_none_says_why(kind: str, value: dict[str, object], why: Reason) -> None:
    with pytest.raises(UnusableError) as caught:
        read_one(kind, value).mask(10_000)
    assert caught.value.reason is why


def test_a_polygon_covers_the_pixels_whose_centres_lie_in_it() -> None:
    mask = read_one("polygon", {"points": [[10, 10], [50, 10], [50, 50], [10, 50]], "closed": True}).mask(10_000)
    expected = np.zeros((20, 30), bool)
    expected[2:10, 3:15] = True
    np.testing.assert_array_equal(mask, expected)
