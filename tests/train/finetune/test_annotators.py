"""Protects a head from being one annotator's alone: all take turns, and nobody teaches more than a share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.drawn_squares import fixed
from train.finetune.annotators import in_turns, largest_share, owners_of_objects, shares, weights_by_image
from train.finetune.examples import Example, load_images


def example(key: str, annotator: str) -> Example:
    image, target = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.int8)
    return Example(key, fixed(image), fixed(target), annotator)  # type: ignore[arg-type]


def examples(**counts: int) -> list[Example]:
    """So many of each annotator, each on an image of its own."""
    return [example(f"{name} {number}", name) for name, count in counts.items() for number in range(count)]


def test_annotators_take_turns() -> None:
    """Where only so many are measured or kept, one with many objects does not crowd out the others."""
    turns = in_turns(examples(a=4, b=1, c=2))
    assert [one.key for one in turns] == ["a 0", "b 0", "c 0", "a 1", "c 1", "a 2", "a 3"]
    one = examples(a=5)
    assert in_turns(one) == one


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"a": 9}, {"a": 1}),
        ({"a": 9, "b": 1}, {"a": 0.9, "b": 0.1}),  # of two nobody can tell which is one too many
        ({"a": 90, "b": 6, "c": 4}, {"a": 2 / 3, "b": 0.2, "c": 2 / 15}),
        ({"a": 6, "b": 80, "c": 6, "d": 8}, {"a": 0.15, "b": 0.5, "c": 0.15, "d": 0.2}),
        ({"a": 5, "b": 3, "c": 1, "d": 1}, {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.1}),
    ],
)
def test_nobody_teaches_more_than_the_largest_share(counts: dict[str, int], wanted: dict[str, float]) -> None:
    assert shares(examples(**counts)) == pytest.approx(wanted)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_weights_make_the_shares(counts: list[int]) -> None:
    given_ones = examples(**{f"a{number}": count for number, count in enumerate(counts)})
    wanted, weights = shares(given_ones), weights_by_image(given_ones)
    assert sum(wanted.values()) == pytest.approx(1)
    assert max(wanted.values()) <= largest_share(len(counts)) + 1e-9
    assert sum(weights.values()) == pytest.approx(len(given_ones))
    for name, share in wanted.items():
        drawn = sum(weights[one.key] for one in given_ones if one.annotator == name)
        assert drawn / len(given_ones) == pytest.approx(share)


def test_objects_of_one_image_may_have_several_owners() -> None:
    same = [example("same", "a"), example("other", "b"), example("same", "b")]
    owners = owners_of_objects(same)
    assert owners == {("same", 1): "a", ("same", 2): "b", ("other", 1): "b"}
    assert {(sample.name, number) for sample in load_images(same, []) for number in sample.targets} == set(owners)
