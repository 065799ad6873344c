"""Protects proposals: they never overlap, are the same whenever they are asked for, and have the label of what they are
like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from skipclick import Click, Predictor
from skipclick.evaluation.datasets import check_set
from skipclick.features import ImageFeatures
from skipclick.metrics import mask_iou
from skipclick.proposals import Proposal, ProposalRule, Prototypes, T, candidates, grid, pooled, propose
from tests.support.small_models import bundled_at_160_pixels

RED, BLUE = (220, 30, 30), (30, 30, 220)
COARSE = ProposalRule(side=4)
ANYTHING = ProposalRule(side=4, quality=0.2, similarity=-1.0, max_shared=0.9)
"""Keeps masks that overlap in most of their area."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(bundled_at_160_pixels(), keep_taps=True)


Disk = tuple[int, int, int, tuple[int, int, int]]


def disks(*given: Disk) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Disks (x, y, radius, colour) on gray, and where they are."""
    y, x = np.ogrid[:240, :320]
    image, masks = np.full((240, 320, 3), 128, np.uint8), []
    for column, row, radius, colour in given:
        masks.append((x - column) ** 2 + (y - row) ** 2 <= radius**2)
        image[masks[-1]] = colour
    return image, masks


@pytest.fixture(scope="module")
def accepted(predictor: Predictor) -> Prototypes:
    """A red and a blue disk."""
    image, (red, blue) = disks((80, 120, 50, RED), (240, 120, 50, BLUE))
    features = predictor.encode(image)
    return Prototypes.of([("red", pooled(features, red)), ("blue", pooled(features, blue))])


@pytest.fixture(scope="module")
def elsewhere(predictor: Predictor) -> tuple[ImageFeatures, NDArray[np.bool_], NDArray[np.bool_]]:
    """The same disks in other places."""
    image, (red, blue) = disks((240, 70, 45, RED), (70, 160, 45, BLUE))
    return predictor.encode(image), red, blue


def same(one: Sequence[Proposal], other: Sequence[Proposal]) -> bool:
    """Whether two answers are equal to the bit."""
    return [(p.label, p.quality, p.similarity, p.mask.box, p.mask.pixels.tobytes()) for p in one] == [
        (p.label, p.quality, p.similarity, p.mask.box, p.mask.pixels.tobytes()) for p in other
    ]


def test_what_is_like_an_accepted_object_is_proposed_with_its_label(
    predictor: Predictor, accepted: Prototypes, elsewhere: tuple[ImageFeatures, NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    features, red, blue = elsewhere
    found = {one.label: one for one in propose(predictor, features, accepted, COARSE)}
    assert set(found) == {"red", "blue"}
    assert mask_iou(found["red"].mask.full(), red) > 0.5 > mask_iou(found["red"].mask.full(), blue)
    assert mask_iou(found["blue"].mask.full(), blue) > 0.8
    assert all(one.quality >= COARSE.quality and one.similarity >= COARSE.similarity for one in found.values())


def test_what_is_like_nothing_accepted_is_not_proposed(
    predictor: Predictor, elsewhere: tuple[ImageFeatures, NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    features, *_ = elsewhere
    coins = check_set().photos[5].load()
    seen = predictor.encode(coins.image)
    vectors = [pooled(seen, target == 1) for target in coins.targets.values()]
    assert propose(predictor, features, Prototypes.of([("coin", one) for one in vectors]), COARSE) == []


@pytest.mark.parametrize("number", [0, 8])
def test_proposals_never_overlap(predictor: Predictor, accepted: Prototypes, number: int) -> None:
    photo = check_set().photos[number].load().image
    proposals = propose(predictor, predictor.encode(photo), accepted, ANYTHING)
    assert len(proposals) > 1
    covered = np.sum([one.mask.full() for one in proposals], axis=0)
    assert covered.shape == photo.shape[:2]
    assert covered.max() == 1
    assert all(one.mask.full().mean() > ANYTHING.min_area for one in proposals)


def test_the_best_comes_first(predictor: Predictor, accepted: Prototypes) -> None:
    features = predictor.encode(check_set().photos[0].load().image)
    qualities = [one.quality for one in propose(predictor, features, accepted, ANYTHING)]
    assert len(qualities) > 1
    assert qualities == sorted(qualities, reverse=True)


def test_the_same_photo_gives_the_same_bits(predictor: Predictor, accepted: Prototypes) -> None:
    photo = check_set().photos[3].load().image
    first, second = (propose(predictor, predictor.encode(photo), accepted, ANYTHING) for _ in range(2))
    assert first
    assert same(first, second)


def test_an_executor_gets_the_work_in_small_parts(predictor: Predictor, accepted: Prototypes) -> None:
    """So that a click waits for one part at most; and what ends a part ends the work."""
    features, calls = predictor.encode(check_set().photos[3].load().image), []

    def run(work: Callable[[], T], /) -> T:
        calls.append(work)
        return work()

    assert same(
        propose(predictor, features, accepted, ANYTHING), propose(predictor, features, accepted, ANYTHING, run=run)
    )
    assert len(calls) > 10

    def stopped(work: Callable[[], T], /) -> T:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        propose(predictor, features, accepted, run=stopped)


def test_batches_find_the_same_objects(
    predictor: Predictor, accepted: Prototypes, elsewhere: tuple[ImageFeatures, NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    features, *_ = elsewhere
    one_by_one, together = (propose(predictor, features, accepted, COARSE, batch=size) for size in (1, 16))
    for one, other in zip(one_by_one, together, strict=True):
        assert one.label == other.label
        assert mask_iou(one.mask.full(), other.mask.full()) > 0.8


def test_points_inside_what_was_found_are_not_clicked(
    predictor: Predictor, accepted: Prototypes, elsewhere: tuple[ImageFeatures, NDArray[np.bool_], NDArray[np.bool_]]
) -> None:
    features, *_ = elsewhere
    calls = []

    def run(work: Callable[[], T], /) -> T:
        calls.append(work)
        return work()

    proposals = propose(predictor, features, accepted, COARSE, run=run)
    clicks = len(calls) - len(proposals)
    assert 8 < clicks < 16


def test_the_grid_covers_a_photo_once() -> None:
    clicks = grid((120, 160), 4)
    assert (clicks[0].x, clicks[0].y, clicks[-1].x, clicks[-1].y) == (20, 15, 140, 105)
    assert len(set(clicks)) == 16
    assert all(click.positive for click in clicks)


def test_a_disk_is_most_like_itself_elsewhere(predictor: Predictor, accepted: Prototypes) -> None:
    image, (red,) = disks((200, 150, 40, RED))
    vector = pooled(predictor.encode(image), red)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert accepted.nearest(vector, 3)[0] == "red"


def test_quality_is_a_share_and_an_empty_mask_has_none(predictor: Predictor) -> None:
    features = predictor.encode(np.full((50, 70, 3), 90, np.uint8))
    for one in candidates(predictor, features, [Click(10, 10), Click(60, 40)]):
        assert 0 <= one.quality <= 1
        assert one.mask.any() or one.quality == 0


def test_features_without_taps_are_refused(predictor: Predictor) -> None:
    plain = Predictor(predictor.model).encode(np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="keep_taps=True"):
        pooled(plain, np.ones((40, 40), np.bool_))


def test_prototypes_are_the_nearest_ones_and_survive_a_file() -> None:
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    known = Prototypes.of([("ß label: x", east), ("", north), ("", north), ("", east)])
    assert known.nearest(east, 1)[1] == 1
    assert known.nearest(east, 3) == ("ß label: x", 1.0)  # the other label's mean is 1/3
    assert known.nearest(north, 2) == ("", 1.0)
    back = Prototypes.from_bytes(known.to_bytes())
    assert list(back.vectors) == list(known.vectors) == ["", "ß label: x"]
    assert all(np.array_equal(back.vectors[label], known.vectors[label]) for label in known.vectors)
    assert Prototypes.from_bytes(Prototypes({}).to_bytes()).vectors == {}
    with pytest.raises(ValueError, match="there are no accepted objects"):
        Prototypes({}).nearest(east, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half of it",
        save({"label:a": np.zeros((2, 3), np.float64)}),
        save({"label:a": np.zeros((0, 3), np.float32)}),
        save({"label:a": np.zeros(3, np.float32)}),
        save({"label:a": np.full((2, 3), np.nan, np.float32)}),
        save({"label:a": np.zeros((2, 3), np.float32), "label:b": np.zeros((2, 4), np.float32)}),
        save({"weights": np.zeros((2, 3), np.float32)}),
    ],
)
def test_damaged_prototypes_are_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(ValueError, match="these are not prototypes"):
        Prototypes.from_bytes(content)
