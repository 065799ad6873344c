"""Protects the choice of objects and starting clicks against the released sampler's tables and statistics."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.parity_files import for_each_golden, load_golden
from train.sampler import (
    NUM_SLOTS,
    SamplerConfig,
    border,
    border_width,
    count_probabilities,
    eroded,
    sample_object,
    sample_points,
    surviving_parents,
    with_stuff,
)
from train.scene import Scene, SceneObject, scene_of_masks

RELEASED = SamplerConfig()
NUM_DRAWS = 2000


def rectangle(rows: slice, columns: slice) -> NDArray[np.bool_]:
    mask = np.zeros((120, 140), np.bool_)
    mask[rows, columns] = True
    return mask


FIRST, SECOND = rectangle(slice(10, 50), slice(10, 60)), rectangle(slice(60, 100), slice(50, 120))
STRIP = rectangle(slice(115, 120), slice(0, 140))


@pytest.fixture
def scene() -> Scene:
    """Two objects of 2000 and 2800 pixels on 120 x 140, as in the golden histograms, and a strip to ignore."""
    return scene_of_masks([FIRST, SECOND], (120, 140), STRIP)


@for_each_golden("golden_sampler*.npz")
def test_count_probabilities_equal_the_released_tables(golden: Path) -> None:
    data = load_golden(golden)
    np.testing.assert_allclose(count_probabilities(NUM_SLOTS, 0.8), data["pos_probs_24"], rtol=1e-12)
    np.testing.assert_allclose(count_probabilities(NUM_SLOTS + 1, 0.8), data["neg_probs_25"], rtol=1e-12)
    np.testing.assert_allclose(count_probabilities(12, 0.7), data["default_pos_12_07"], rtol=1e-12)


@for_each_golden("golden_sampler*.npz")
def test_eroded_objects_and_borders_equal_the_released_ones(golden: Path) -> None:
    data = load_golden(golden)
    cases = sorted(name.removesuffix("_mask") for name in data if name.endswith("_mask"))
    assert cases
    for case in cases:
        mask = data[f"{case}_mask"].astype(bool)
        np.testing.assert_array_equal(eroded(mask), data[f"{case}_eroded"].astype(bool), err_msg=case)
        np.testing.assert_array_equal(border(mask), data[f"{case}_border"].astype(bool), err_msg=case)
        assert border_width(mask) == data[f"{case}_expand_r"]


@for_each_golden("golden_sampler*.npz")
def test_numbers_of_clicks_are_distributed_as_the_released_ones(golden: Path, scene: Scene) -> None:
    """Total variation between two samples of this size is about 0.05 for equal distributions."""
    data = load_golden(golden)
    scene = replace(scene, ignored=None)
    counts = {"pos": np.zeros(25), "neg": np.zeros(25)}
    rng = np.random.default_rng(0)
    for _ in range(NUM_DRAWS):
        points = sample_points(sample_object(scene, RELEASED, rng), RELEASED, rng)
        counts["pos"][(points.positives >= 0).all(axis=1).sum()] += 1
        counts["neg"][(points.negatives >= 0).all(axis=1).sum()] += 1
    for polarity, histogram in counts.items():
        expected = data[f"emp_hist_{polarity}"] / data[f"emp_hist_{polarity}"].sum()
        assert 0.5 * np.abs(histogram / NUM_DRAWS - expected).sum() < 0.07, polarity
        mean = (histogram * np.arange(25)).sum() / NUM_DRAWS
        assert mean == pytest.approx(float(data[f"emp_mean_{polarity}"]), abs=0.4)


def test_clicks_fall_where_they_should(scene: Scene) -> None:
    rng = np.random.default_rng(1)
    in_border = total = 0
    for _ in range(300):
        sample = sample_object(scene, RELEASED, rng)
        points = sample_points(sample, RELEASED, rng)
        target = sample.target == 1
        for row, column in points.positives[points.positives[:, 0] >= 0].astype(int):
            assert target[row, column]
        for row, column in points.negatives[points.negatives[:, 0] >= 0].astype(int):
            assert not target[row, column]
            in_border += bool(border(target)[row, column])
            total += 1
    assert in_border / total == pytest.approx(0.5 + 0.04, abs=0.08)  # half by choice, a few of the others by chance


def test_shares_of_merged_objects_and_ignored_pixels(scene: Scene) -> None:
    rng = np.random.default_rng(2)
    samples = [sample_object(scene, RELEASED, rng) for _ in range(NUM_DRAWS)]
    assert np.mean([len(sample.parts) == 2 for sample in samples]) == pytest.approx(0.15, abs=0.03)
    for sample in samples[:50]:
        assert (sample.target[STRIP] == -1).all()
        assert not sample.others[sample.target == 1].any()


def test_merged_objects_have_a_click_each(scene: Scene) -> None:
    config = replace(RELEASED, merge_prob=1.0)
    rng = np.random.default_rng(3)
    for _ in range(50):
        sample = sample_object(scene, config, rng)
        points = sample_points(sample, config, rng)
        clicked = points.positives[points.positives[:, 0] >= 0].astype(int)
        for part in (FIRST, SECOND):
            assert part[clicked[:, 0], clicked[:, 1]].any()


def test_small_objects_are_background(scene: Scene) -> None:
    rng = np.random.default_rng(4)
    sample = sample_object(scene, replace(RELEASED, min_object_area=2500, merge_prob=0.0), rng)
    np.testing.assert_array_equal(sample.target == 1, SECOND)
    nothing = sample_object(scene, replace(RELEASED, min_object_area=9999), rng)
    points = sample_points(nothing, RELEASED, rng)
    assert not nothing.parts
    assert (nothing.target <= 0).all()
    assert (points.positives == -1).all()


def test_a_single_central_click_lies_in_the_middle(scene: Scene) -> None:
    config = replace(RELEASED, single_centre_prob=1.0, merge_prob=0.0, min_object_area=2500)
    rng = np.random.default_rng(5)
    points = sample_points(sample_object(scene, config, rng), config, rng)
    assert (points.positives >= 0).all(axis=1).sum() == 1
    assert (points.negatives == -1).all()
    row, column = points.positives[0]
    assert 75 <= row <= 84
    assert 65 <= column <= 105


@for_each_golden("golden_hierarchy*.npz")
def test_removing_small_objects_leaves_the_released_tree(golden: Path) -> None:
    """Children of a removed parent move up to its parent, or become roots, and thereby targets."""
    data = load_golden(golden)
    for case in (f"h{i}" for i in range(int(data["n"]))):
        nodes = json.loads(str(data[f"{case}_hierarchy_json"]))
        scene = Scene(
            np.moveaxis(data[f"{case}_layers"], 2, 0),
            tuple(
                SceneObject(int(layer), int(value), nodes[str(index)]["parent"])
                for index, (layer, value) in enumerate(data[f"{case}_mapping"])
            ),
        )
        areas = scene.areas
        expected = json.loads(str(data[f"{case}_after_remove500_json"]))
        parents = surviving_parents(scene, [index for index, area in enumerate(areas) if area >= 500])
        assert parents == {int(index): node["parent"] for index, node in expected.items()}
        assert [areas[index] for index in parents] == [node["area"] for node in expected.values()]
        roots = [index for index, parent in parents.items() if parent is None]
        assert roots == data[f"{case}_roots_after_remove500"].tolist()
        assert (~scene.covered(range(len(areas)))).sum() == data[f"{case}_background_area"]
        targets = {
            sample_object(scene, SamplerConfig(min_object_area=500, merge_prob=0), np.random.default_rng(i))
            .target.astype(np.bool_)
            .tobytes()
            for i in range(100)
        }
        assert targets == {scene.mask(scene.objects[index]).tobytes() for index in roots}


PARENT, CHILD = rectangle(slice(20, 80), slice(20, 60)), rectangle(slice(30, 60), slice(22, 58))
FLAT, SMALL = rectangle(slice(20, 60), slice(80, 120)), rectangle(slice(100, 110), slice(20, 30))
SKY = rectangle(slice(0, 15), slice(0, 140))


def family() -> Scene:
    """A parent with a child, an object beside them, one too small to be asked for, and stuff."""
    scene = scene_of_masks([PARENT, CHILD, FLAT, SMALL, SKY], (120, 140))
    parent, child, flat, small, sky = scene.objects
    return replace(scene, objects=(parent, replace(child, parent=0), flat, small), stuff=(sky,))


@pytest.mark.slow
def test_ten_thousand_samples_keep_the_rules() -> None:
    """Each share is held against its rule within four standard deviations."""
    num_samples = 10_000
    rng = np.random.default_rng(0)
    names = {mask.tobytes(): name for name, mask in (("parent", PARENT), ("flat", FLAT), ("sky", SKY))}
    inner = {name: eroded(np.frombuffer(mask, np.bool_).reshape(120, 140)) for mask, name in names.items()}
    targets: Counter[tuple[str, bool]] = Counter()  # single targets: which, and was stuff there
    num_merged = num_stuff = num_full = num_deep = num_single_points = 0
    num_positives, num_negatives = np.zeros(25), np.zeros(25)
    for _ in range(num_samples):
        drawn = with_stuff(family(), RELEASED, rng)
        assert not drawn.stuff
        sample = sample_object(drawn, RELEASED, rng)
        points = sample_points(sample, RELEASED, rng)
        positives, negatives = (p[p[:, 0] >= 0].astype(int) for p in (points.positives, points.negatives))
        is_target = sample.target == 1
        assert is_target[positives[:, 0], positives[:, 1]].all()
        assert not is_target[negatives[:, 0], negatives[:, 1]].any()
        num_negatives[len(negatives)] += 1
        has_stuff = len(drawn.objects) == 5
        num_stuff += has_stuff
        if len(sample.parts) == 2:
            num_merged += 1
            continue
        num_positives[len(positives)] += 1
        name = names[sample.parts[0].tobytes()]  # KeyError: a child or a small object was the target
        targets[name, has_stuff] += 1
        num_single_points += 1
        deep = inner[name][positives[0, 0], positives[0, 1]]
        num_deep += deep
        num_full += inner[name].sum() / is_target.sum()

    def close(count: float, probability: float, of: float = num_samples) -> None:
        deviation = 4 * np.sqrt(probability * (1 - probability) / of)
        assert count / of == pytest.approx(probability, abs=deviation)

    close(num_stuff, 0.30)
    close(num_merged, 0.15)
    for has_stuff, roots in ((False, ("parent", "flat")), (True, ("parent", "flat", "sky"))):
        singles = sum(targets[name, has_stuff] for name in roots)
        for name in roots:
            close(targets[name, has_stuff], 1 / len(roots), singles)
    assert targets["sky", False] == 0
    close(num_deep, 0.9 + 0.1 * num_full / num_single_points, num_single_points)
    for count, probability in enumerate(count_probabilities(NUM_SLOTS, 0.8), start=1):
        close(num_positives[count], probability, num_single_points)
    for count, probability in enumerate(count_probabilities(NUM_SLOTS + 1, 0.8)):
        close(num_negatives[count], probability)


def test_negative_clicks_share_the_regions() -> None:
    rng = np.random.default_rng(6)
    regions = {"background": (1.0, 0.0, 0.0), "others": (0.0, 1.0, 0.0), "border": (0.0, 0.0, 1.0)}
    shares = {}
    for region, weights in regions.items():
        config = replace(RELEASED, negative_regions=weights, merge_prob=0.0, min_object_area=1500)
        where: list[bool] = []
        for _ in range(300):
            sample = sample_object(replace(family(), stuff=()), config, rng)
            found = sample_points(sample, config, rng).negatives
            rows, columns = found[found[:, 0] >= 0].astype(int).T
            other = FLAT if sample.parts[0][40, 40] else PARENT
            where += (border(sample.target == 1) if region == "border" else other)[rows, columns].tolist()
        shares[region] = np.mean(where)
    assert shares["others"] == shares["border"] == 1
    assert 0.05 < shares["background"] < 0.25, "anywhere outside the target"


def test_where_nothing_else_is_there_other_objects_are_the_background() -> None:
    """Released: so says the number of objects; of an object and its child the child hides the background."""
    alone = replace(family(), objects=family().objects[2:3], stuff=())
    with_child = replace(family(), objects=family().objects[:2], stuff=())
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(sample_object(alone, RELEASED, rng).others, ~FLAT)
    assert not sample_object(with_child, RELEASED, rng).others.any()


@pytest.mark.parametrize("small_as_others", [False, True])
def test_whether_small_objects_are_other_objects(small_as_others: bool) -> None:
    config = replace(RELEASED, small_as_others=small_as_others, merge_prob=0.0)
    scene = replace(family(), stuff=())
    others = [sample_object(scene, config, np.random.default_rng(i)).others for i in range(5)]
    assert {bool(other[SMALL].all()) for other in others} == {small_as_others}
    assert not any(other[SKY].any() for other in others), "stuff that was left out is background"


def test_more_than_two_objects_merge_where_asked() -> None:
    config = replace(RELEASED, merge_prob=1.0, max_merged=3, min_object_area=50)
    rng = np.random.default_rng(8)
    numbers = Counter(len(sample_object(family(), config, rng).parts) for _ in range(400))
    assert set(numbers) == {2, 3}
    assert numbers[2] == pytest.approx(200, abs=50)
