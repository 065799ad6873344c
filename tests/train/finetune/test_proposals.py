"""Protects what a project is told of proposals: hits have the label, precision and recall are what they say, and labels
go from accepted masks to the prototypes."""

from __future__ import annotations

import numpy as np
import pytest

from skipclick import Predictor
from skipclick.masks import BoxMask
from skipclick.proposals import Proposal, Prototypes
from tests.support.drawn_squares import fixed
from tests.support.small_models import bundled_at_160_pixels
from train.finetune import Example
from train.finetune import proposals as module
from train.finetune.examples import load_images
from train.finetune.proposals import measured_proposals, prototypes_of

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def disk(key: str, label: str, column: int, called: str | None = None) -> Example:
    """A disk of a colour on gray."""
    y, x = np.ogrid[:120, :160]
    inside = (x - column) ** 2 + (y - 60) ** 2 <= 35**2
    image = np.full((120, 160, 3), 128, np.uint8)
    image[inside] = COLOURS[label]
    return Example(key, fixed(image), fixed(inside.astype(np.int8)), label=called or label)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(bundled_at_160_pixels(), keep_taps=True)


@pytest.fixture(scope="module")
def accepted(predictor: Predictor) -> Prototypes:
    return prototypes_of(predictor, [disk("a", "red", 50), disk("b", "blue", 100), disk("c", "red", 110)], 3)


def test_prototypes_have_the_labels_of_accepted_masks(predictor: Predictor, accepted: Prototypes) -> None:
    assert {label: len(rows) for label, rows in accepted.vectors.items()} == {"blue": 1, "red": 2}
    few = prototypes_of(predictor, [disk("a", "red", 50), disk("b", "blue", 100)], 1)
    assert list(few.vectors) == ["red"]


def test_what_cannot_be_read_is_no_prototype(predictor: Predictor) -> None:
    empty = Example("b", fixed(np.zeros((9, 9, 3), np.uint8)), fixed(np.zeros((9, 9), np.int8)), label="none")  # type: ignore[arg-type]
    assert list(prototypes_of(predictor, [disk("a", "red", 50), empty], 5).vectors) == ["red"]


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> list[list[Proposal]]:
    """What is proposed on one photo after the other."""
    answers: list[list[Proposal]] = []
    monkeypatch.setattr(module, "propose", lambda *_: answers.pop(0))
    return answers


def proposal(like: Example, label: str, shift: int = 0) -> Proposal:
    """The object of an example, moved by some columns."""
    return Proposal(BoxMask.of(np.roll(like.target() == 1, shift, axis=1)), label, 0.9, 0.9)


def test_a_hit_has_the_place_and_the_label(
    predictor: Predictor, accepted: Prototypes, proposed: list[list[Proposal]]
) -> None:
    one, two, three = disk("x", "red", 50), disk("y", "blue", 50), disk("z", "blue", 110)
    proposed[:] = [[proposal(one, "red", 4), proposal(one, "red", 60)], [proposal(two, "red")], []]
    report = measured_proposals(predictor, accepted, list(load_images([one, two, three], [])), [one, two, three])
    assert (report.num_images, report.num_objects, report.num_proposals, report.num_hits) == (3, 3, 3, 1)
    assert report.precision == report.recall == pytest.approx(1 / 3)
    assert report.seconds > 0
    assert report.figures == {"objects": 3, "proposals": 3, "precision": report.precision, "recall": report.recall}
    assert not report.helps


@pytest.mark.parametrize(("hits", "misses", "helps"), [(2, 0, False), (3, 0, True), (3, 3, True), (3, 4, False)])
def test_proposals_help_where_enough_are_right(
    predictor: Predictor, accepted: Prototypes, proposed: list[list[Proposal]], hits: int, misses: int, helps: bool
) -> None:
    examples = [disk(f"photo {number}", "red", 50) for number in range(hits + misses)]
    proposed[:] = [[proposal(one, "red", 0 if place < hits else 60)] for place, one in enumerate(examples)]
    report = measured_proposals(predictor, accepted, list(load_images(examples, [])), examples)
    assert (report.num_hits, report.helps) == (hits, helps)


def test_where_nothing_is_proposed_there_is_no_precision(predictor: Predictor) -> None:
    examples = [disk("x", "red", 50)]
    report = measured_proposals(predictor, Prototypes({}), list(load_images(examples, [])), examples)
    assert (report.precision, report.recall, report.helps) == (None, 0, False)
    assert "precision" not in report.figures
