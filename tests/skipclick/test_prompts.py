"""Protects what the network sees of clicks: scaling, padding, disks (golden disks are in test_parity.py)."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipclick.prompts import Click, click_points, disk_map, prompt_maps, scale_clicks

coordinates = st.floats(0, 40, width=32)


def brute_force_disks(points: list[tuple[float, float]], height: int, width: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    result = np.zeros((height, width), np.float32)
    for row, column in points:
        inside = (rows - np.float32(row)) ** 2 + (columns - np.float32(column)) ** 2 <= np.float32(radius**2)
        result[inside] = 1
    return result


@given(
    points=st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=4),
    radius=st.sampled_from([0.0, 1.0, 2.5, 5.0]),
)
def test_disks_equal_a_direct_drawing(points: list[tuple[float, float]], radius: float) -> None:
    drawn = disk_map(torch.tensor([points]), 32, 28, radius)
    np.testing.assert_array_equal(drawn[0, 0].numpy(), brute_force_disks(points, 32, 28, radius))


def test_a_whole_disk_has_81_pixels() -> None:
    assert disk_map(torch.tensor([[[20.0, 20.0]]]), 41, 41, 5.0).sum() == 81


def test_padding_draws_nothing_but_one_negative_coordinate_still_draws() -> None:
    assert disk_map(torch.tensor([[[-1.0, -1.0]]]), 20, 20, 5.0).sum() == 0
    assert disk_map(torch.tensor([[[-3.0, 5.0]]]), 20, 20, 5.0).sum() > 0


def test_points_are_rows_and_columns_padded_to_the_longest() -> None:
    first = [Click(1, 2), Click(3, 4), Click(5, 6, positive=False)]
    positives, negatives = click_points([first, [Click(7, 8)]])
    assert positives.tolist() == [[[2, 1], [4, 3]], [[8, 7], [-1, -1]]]
    assert negatives.tolist() == [[[6, 5]], [[-1, -1]]]


def test_clicks_scale_without_a_half_pixel_shift() -> None:
    (click,) = scale_clicks([Click(100, 30, positive=False)], image_size=(60, 200), resolution=(120, 50))
    assert click == Click(25, 60, positive=False)


def test_channels_are_previous_positive_negative() -> None:
    previous = torch.full((1, 1, 20, 20), 0.25)
    maps = prompt_maps(previous, torch.tensor([[[4.0, 4.0]]]), torch.tensor([[[15.0, 15.0]]]), radius=2.0)
    assert maps.shape == (1, 3, 20, 20)
    assert (maps[:, 0] == 0.25).all()
    assert maps[0, 1, 4, 4] == 1
    assert maps[0, 1, 15, 15] == 0
    assert maps[0, 2, 15, 15] == 1
