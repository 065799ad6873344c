"""Protects strokes: the few clicks that stand for one, and masks that hold what was painted."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skipclick import strokes
from skipclick.cleaning import clean
from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.strokes import MAX_CLICKS, Stroke

HEIGHT, WIDTH = 120, 160


def line(*points: tuple[int, int], thickness: int = 7) -> NDArray[np.bool_]:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.polylines(canvas, [np.array(points, np.int32)], isClosed=False, color=1, thickness=thickness)
    return canvas > 0


def test_a_line_is_clicked_at_both_ends_and_in_between() -> None:
    clicks = Stroke(line((20, 60), (140, 60)), positive=True).clicks()
    assert [click.positive for click in clicks] == [True] * MAX_CLICKS
    assert all(58 <= click.y <= 62 for click in clicks)
    columns = sorted(click.x for click in clicks)
    assert columns[0] < 25
    assert columns[-1] > 135
    assert min(np.diff(columns)) >= HEIGHT / 10


def test_a_dot_is_one_click_in_its_middle() -> None:
    assert Stroke(line((50, 40), (50, 40), thickness=9), positive=False).clicks() == (Click(50, 40, positive=False),)


@pytest.mark.parametrize("corner", [(0, 0), (0, WIDTH - 1), (HEIGHT - 1, 0), (HEIGHT - 1, WIDTH - 1)])
def test_a_single_pixel_at_the_border_is_clicked(corner: tuple[int, int]) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[corner] = True
    assert Stroke(mask, positive=True).clicks() == (Click(corner[1], corner[0]),)


def test_nothing_painted_is_no_click() -> None:
    assert Stroke(np.zeros((HEIGHT, WIDTH), bool), positive=True).clicks() == ()


points = st.lists(st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)), min_size=1, max_size=6)


@given(points, st.integers(1, 30))
def test_clicks_lie_on_the_stroke_and_apart(path: list[tuple[int, int]], thickness: int) -> None:
    stroke = Stroke(line(*path, path[-1], thickness=thickness), positive=True)
    clicks = stroke.clicks()
    assert 1 <= len(clicks) <= MAX_CLICKS
    assert all(stroke.mask[int(click.y), int(click.x)] for click in clicks)
    places = np.array([(click.x, click.y) for click in clicks])
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))[np.triu_indices(len(clicks), 1)]
    assert not len(apart) or apart.min() >= HEIGHT / 10
    assert stroke.clicks() == clicks


@given(points, st.integers(1, 30), st.integers(50, 5000))
def test_of_large_strokes_squares_are_looked_at(path: list[tuple[int, int]], thickness: int, finest: int) -> None:
    stroke = Stroke(line(*path, path[-1], thickness=thickness), positive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strokes, "_MAX_BOX_PIXELS", finest)
        clicks = stroke.clicks()
    assert 1 <= len(clicks) <= MAX_CLICKS
    assert all(stroke.mask[int(click.y), int(click.x)] for click in clicks)


def test_a_stroke_over_a_whole_photo_takes_little_more_memory_than_the_photo() -> None:
    mask = np.ones((4000, 5000), bool)
    tracemalloc.start()
    try:
        clicks = Stroke(mask, positive=True).clicks()
        assert tracemalloc.get_traced_memory()[1] < 10 * mask.nbytes
    finally:
        tracemalloc.stop()
    assert 1990 <= clicks[0].x <= 3010  # along the middle of the longer side
    assert clicks[0].y == pytest.approx(2000, abs=5)


@given(points, points, st.booleans(), st.floats(0, 0.5))
def test_the_later_of_two_strokes_holds_everywhere_and_the_earlier_one_elsewhere(
    first: list[tuple[int, int]], second: list[tuple[int, int]], positive: bool, smallest: float
) -> None:
    earlier = Stroke(line(*first, first[-1]), positive)
    later = Stroke(line(*second, second[-1]), not positive)
    answer = np.zeros((HEIGHT, WIDTH), bool)
    answer[30:90, 40:120] = True
    marks = [*earlier.clicks(), earlier, *later.clicks(), later]
    mask = clean(BoxMask.of(answer), marks, smallest).full()
    assert (mask[later.mask] == (not positive)).all()
    assert (mask[earlier.mask & ~later.mask] == positive).all()


def test_a_click_on_a_stroke_takes_its_pixel_back() -> None:
    stroke, click = Stroke(line((20, 60), (140, 60)), positive=True), Click(80, 60, positive=False)
    mask = clean(BoxMask.of(np.zeros((HEIGHT, WIDTH), bool)), [*stroke.clicks(), stroke, click], 0.001).full()
    assert not mask[60, 80]
    assert mask[60, 30]
