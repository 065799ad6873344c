"""Protects the choice among the annotations of a task: one annotator cannot replace what the others drew."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from skipclick.evaluation.datasets.agreement import MAX_COMPARED, Sketched, agreements, in_order_of_choice, sketch

SIZE = (300, 400)


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


TRUE, OTHER = box(20, 20, 120, 180), box(180, 200, 260, 360)
NEAR = box(22, 18, 120, 182)  # the same object, drawn by somebody else
HALF = box(20, 20, 120, 100)


def drawn(
    number: int, annotator: int | None, *masks: NDArray[np.bool_], image: str = "a", ground_truth: bool = False
) -> Sketched:
    return Sketched(number, annotator, ground_truth, {image: [sketch(mask) for mask in masks]})


def chosen(*annotations: Sketched) -> int:
    return annotations[in_order_of_choice(annotations)[0]].id


def test_of_two_annotators_the_oldest_counts_whatever_the_other_adds() -> None:
    assert chosen(drawn(5, 1, HALF), drawn(3, 2, TRUE)) == 3
    assert chosen(drawn(3, 1, TRUE), drawn(4, 2, HALF), drawn(5, 2, HALF), drawn(6, 2, HALF)) == 3


def test_of_three_annotators_the_one_counts_that_the_others_agree_with() -> None:
    assert chosen(drawn(1, 1, HALF), drawn(2, 2, TRUE), drawn(3, 3, NEAR)) == 2
    assert chosen(drawn(1, 1, HALF), drawn(2, 2, TRUE), drawn(3, 2, TRUE)) == 1  # two voices of one person are one
    assert chosen(drawn(1, 1, TRUE), drawn(2, 2, HALF), drawn(3, 3, HALF)) == 2  # two who agree cannot be told apart
    assert chosen(drawn(4, 1, TRUE), drawn(2, 2, TRUE), drawn(3, 3, TRUE)) == 2  # all alike: the oldest


def test_the_ground_truth_counts_before_all() -> None:
    assert chosen(drawn(1, 1, TRUE), drawn(2, 2, TRUE), drawn(3, 3, HALF, ground_truth=True)) == 3


def test_unknown_annotators_are_one() -> None:
    """Nobody can say that they are several."""
    assert chosen(drawn(1, None, HALF), drawn(2, None, TRUE), drawn(3, None, TRUE)) == 1


def test_missing_and_extra_objects_are_disagreement() -> None:
    whole = drawn(2, 2, TRUE, OTHER)
    assert chosen(drawn(1, 1, TRUE), whole, drawn(3, 3, OTHER, NEAR)) == 2
    noise = [box(row, 0, row + 5, 5) for row in range(0, 290, 10)]
    assert chosen(drawn(1, 1, TRUE, OTHER, *noise), whole, drawn(3, 3, OTHER, NEAR)) == 2
    assert chosen(drawn(1, 1, TRUE, OTHER, image="elsewhere"), whole, drawn(3, 3, OTHER, NEAR)) == 2


@pytest.mark.parametrize("size", [(300, 400), (1000, 3000), (60, 90)])
def test_agreement_is_about_the_iou(size: tuple[int, int]) -> None:
    height, width = size
    first = box(height // 10, width // 10, height * 8 // 10, width * 6 // 10, size)
    second = box(height // 10, width // 10, height * 8 // 10, width * 8 // 10, size)
    iou = (first & second).sum() / (first | second).sum()
    found = agreements([drawn(1, 1, first), drawn(2, 2, first), drawn(3, 3, second)])
    assert found == pytest.approx([(1 + iou) / 2, (1 + iou) / 2, iou], abs=0.03)


def test_objects_smaller_than_a_cell_are_told_apart() -> None:
    whole, half = box(500, 500, 508, 508, (2000, 3000)), box(500, 500, 508, 504, (2000, 3000))
    assert chosen(drawn(1, 1, half), drawn(2, 2, whole), drawn(3, 3, whole)) == 2


def test_too_many_objects_decide_nothing() -> None:
    """Else an event would take minutes to apply; whoever draws them gains nothing by it."""
    many = [TRUE] * MAX_COMPARED
    assert agreements([drawn(1, 1, TRUE), drawn(2, 2, TRUE), drawn(3, 3, *many)]) == [0, 0, 0]
    assert chosen(drawn(1, 1, TRUE), drawn(2, 2, NEAR), drawn(3, 3, *many)) == 1
