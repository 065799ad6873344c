"""Protects that no kind of request takes all threads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.places import places


@given(st.integers(3, 1024))
def test_threads_are_left_when_every_place_is_taken(threads: int) -> None:
    shares = places(threads)
    assert threads - shares.predictions - shares.learning >= 1  # for /health
    assert 1 <= shares.fetching <= shares.predictions
    assert shares.fetching < shares.predictions or shares.predictions == 1
    assert 1 <= shares.warming <= shares.predictions


def test_most_threads_predict_by_default() -> None:
    assert places(48).predictions == 40
    assert places(48).fetching == 30
