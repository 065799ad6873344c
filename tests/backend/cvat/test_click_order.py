"""Protects the order of CVAT's clicks: it depends on the two lists alone, and keeps the order within each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.cvat.click_order import canonical_order


@given(st.lists(st.integers(1), max_size=8), st.lists(st.integers(max_value=-1), max_size=8))
def test_nothing_is_lost_and_each_sign_keeps_its_order(positive: list[int], negative: list[int]) -> None:
    order = canonical_order(positive, negative)
    assert [one for one in order if one > 0] == positive
    assert [one for one in order if one < 0] == negative
    assert not positive or order[0] == positive[0]


def test_an_object_begins_with_a_positive_click() -> None:
    assert canonical_order(["p1", "p2", "p3"], ["n1"]) == ("p1", "n1", "p2", "p3")
