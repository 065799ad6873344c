"""Protects what annotators rely on: their clicks hold, and cleaning takes away specks and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from skipclick.cleaning import clean
from skipclick.masks import BoxMask
from skipclick.prompts import Click

SIZE = (18, 23)
masks = arrays(np.bool_, SIZE)
clicks = st.lists(st.builds(Click, st.floats(0, SIZE[1]), st.floats(0, SIZE[0]), st.booleans()), max_size=6)
shares = st.floats(0, 0.5)


def pixel(click: Click) -> tuple[int, int]:
    return min(int(click.y), SIZE[0] - 1), min(int(click.x), SIZE[1] - 1)


@given(mask=masks, clicks=clicks, smallest=shares)
def test_every_clicked_pixel_has_its_sign(mask: NDArray[np.bool_], clicks: list[Click], smallest: float) -> None:
    cleaned = clean(BoxMask.of(mask), clicks, smallest).full()
    for place, sign in {pixel(click): click.positive for click in clicks}.items():
        assert cleaned[place] == sign


@given(mask=masks, clicks=clicks, smallest=shares)
def test_cleaning_twice_is_cleaning_once(mask: NDArray[np.bool_], clicks: list[Click], smallest: float) -> None:
    once = clean(BoxMask.of(mask), clicks, smallest)
    share_of_the_same_area = smallest * np.count_nonzero(mask) / max(1, np.count_nonzero(once.pixels))
    np.testing.assert_array_equal(clean(once, clicks, min(share_of_the_same_area, smallest)).full(), once.full())


@given(mask=masks, clicks=clicks)
def test_without_a_smallest_part_a_mask_that_holds_its_clicks_stays_as_it_is(
    mask: NDArray[np.bool_], clicks: list[Click]
) -> None:
    for click in clicks:
        mask[pixel(click)] = click.positive
    np.testing.assert_array_equal(clean(BoxMask.of(mask), clicks, 0).full(), mask)


def test_specks_go_and_holes_close_but_for_those_with_a_click() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:60, 10:60] = True
    mask[20:23, 20:23] = mask[40:43, 40:43] = False
    mask[80:83, 80:83] = mask[80:83, 10:13] = True
    cleaned = clean(BoxMask.of(mask), [Click(81, 81), Click(41, 41, positive=False)], 0.01).full()
    expected = mask.copy()
    expected[20:23, 20:23] = True
    expected[80:83, 10:13] = False
    np.testing.assert_array_equal(cleaned, expected)


def test_the_largest_part_stays_however_small_it_is() -> None:
    mask = np.eye(9, dtype=bool)[::2, ::2] * False
    mask[0, 0] = mask[2, 2] = mask[4, 4] = True
    assert clean(BoxMask.of(mask), [], 0.9).full().sum() == 1


def test_a_click_that_the_network_ignored_changes_its_surroundings_and_no_more() -> None:
    mask = np.zeros((400, 600), bool)
    mask[100:200, 100:200] = True
    cleaned = clean(BoxMask.of(mask), [Click(300.5, 300.5), Click(301.5, 300.5, positive=False)], 0.001).full()
    assert cleaned[300, 300]
    assert not cleaned[300, 301]
    changed = np.argwhere(cleaned != mask)
    assert np.abs(changed - (300, 300)).max() <= 2
