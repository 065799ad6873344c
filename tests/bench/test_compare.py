"""The comparison says "worse" where a model got worse, and only there: CI stops on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import bootstrap

from bench.compare import (
    bootstrap_intervals,
    check_comparable,
    compare,
    comparison_report,
    side_by_side,
    side_by_side_table,
)
from bench.noc import main
from skipclick import Click
from skipclick.evaluation.evaluate import Rules
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results, read_results, write_results

RULES = Rules().to_dict()


def reached_at(num_clicks: int) -> list[float]:
    """IoUs of an object that jumps to 96 % with this click."""
    return [0.5] * (num_clicks - 1) + [0.96]


def measurement(nocs: Mapping[str, Sequence[int]], dataset: str = "GrabCut", seed: int | None = None) -> Measurement:
    """One data set: for each photo the NoC of its objects, which are numbered from 1."""
    objects = [
        ObjectResult(image, number, None, reached_at(count), [Click(0, 0)] * count, 1.0, [1.0] * count)
        for image, counts in nocs.items()
        for number, count in enumerate(counts, 1)
    ]
    return Measurement(dataset, "DIR", None, seed, objects, [])


def results(*measurements: Measurement, model: str = "bundled", rules: Mapping[str, object] = RULES) -> Results:
    run = ModelRun(model, "version", None, "cpu", "float32", list(measurements))
    return Results([], "2026-01-01T00:00:00+00:00", {}, dict(rules), [run])


def photos(*nocs: int) -> dict[str, list[int]]:
    """A photo with one object for each NoC."""
    return {f"photo{index}": [count] for index, count in enumerate(nocs)}


def test_equal_results_show_no_difference() -> None:
    same = results(measurement(photos(1, 5, 20)))
    found = compare(same, same)
    assert [one.interval for one in found.differences] == [(0.0, 0.0)] * 3
    assert not found.changes
    assert not found.regressions(tolerance=0.0)


def test_worse_everywhere_is_a_regression_beyond_the_tolerance_only() -> None:
    found = compare(results(measurement(photos(1, 5, 9))), results(measurement(photos(3, 7, 11))))
    assert [(one.percent, one.change, one.interval) for one in found.differences[:2]] == [
        (85, 2.0, (2.0, 2.0)),
        (90, 2.0, (2.0, 2.0)),
    ]
    assert [one.percent for one in found.regressions(tolerance=1.9)] == [85, 90]
    assert not found.regressions(tolerance=2.0)
    assert not compare(results(measurement(photos(3, 7, 11))), results(measurement(photos(1, 5, 9)))).regressions(0.0)


def test_a_run_with_zoom_can_be_held_against_one_without() -> None:
    """Also against files from before there was any."""
    old = results(measurement(photos(3, 5)), rules={name: value for name, value in RULES.items() if name != "zoom"})
    for zoom in (True, False):
        found = compare(old, results(measurement(photos(2, 4)), rules=RULES | {"zoom": zoom}))
        assert found.differences[0].change == -1


def test_one_unlucky_object_is_no_regression() -> None:
    """It moves the mean by 1.9 clicks, but says nothing about photos in general."""
    found = compare(results(measurement(photos(*[1] * 10))), results(measurement(photos(20, *[1] * 9))))
    assert found.differences[0].change == pytest.approx(1.9)
    assert found.differences[0].interval[0] == 0.0
    assert not found.regressions(tolerance=0.5)


def test_the_objects_of_a_photo_are_no_independent_witnesses() -> None:
    """Fifty objects got worse, but they all lie in one of three photos."""
    old = {"a": [1] * 50, "b": [1] * 50, "c": [1] * 50}
    found = compare(results(measurement(old)), results(measurement(old | {"a": [4] * 50})))
    assert (found.differences[0].num_objects, found.differences[0].num_images) == (150, 3)
    assert found.differences[0].interval[0] == 0.0
    assert not found.regressions(tolerance=0.0)


def test_a_change_at_95_percent_alone_does_not_stop_ci() -> None:
    old, new = (results(measurement(photos(2, 2, 2))) for _ in range(2))
    slower = [replace(one, ious=[0.5, *[0.92] * 18]) for one in new.runs[0].measurements[0].objects]
    new = results(replace(new.runs[0].measurements[0], objects=slower))
    assert [one.is_worse(0.0) for one in compare(old, new).differences] == [False, False, True]
    assert not compare(old, new).regressions(0.0)


def test_where_neither_85_nor_90_was_measured_every_threshold_counts() -> None:
    rules = RULES | {"thresholds": [80]}
    found = compare(results(measurement(photos(1, 1)), rules=rules), results(measurement(photos(5, 5)), rules=rules))
    assert [one.percent for one in found.regressions(0.0)] == [80]


def test_models_of_one_run_are_held_against_the_first() -> None:
    ours, baseline = measurement(photos(1, 5, 9)), measurement(photos(3, 7, 11, 20))
    runs = [*results(ours).runs, *results(baseline, model="grabcut").runs]
    together = replace(results(ours), runs=runs)
    assert [(one.model, one.change, one.interval) for one in side_by_side(together)] == [("grabcut", -2, (-2, -2))] * 3
    assert "| GrabCut | `grabcut` | -2.00 (-2.00 to -2.00) |" in side_by_side_table(together)


def test_only_objects_of_both_files_count_and_the_others_are_named() -> None:
    old = measurement({"a": [3, 3], "b": [3]})
    found = compare(results(old), results(measurement({"a": [3], "c": [20]})))
    assert found.unpaired == [
        "GrabCut: a #2, only in the old file",
        "GrabCut: b #1, only in the old file",
        "GrabCut: c #1, only in this run",
    ]
    assert (found.differences[0].num_objects, found.differences[0].change) == (1, 0.0)
    assert "c #1, only in this run" in comparison_report(found, 0.0)


def test_the_report_shows_the_ten_objects_that_changed_most() -> None:
    found = compare(results(measurement(photos(*[1] * 12))), results(measurement(photos(*range(1, 13)))))
    rows = [line for line in comparison_report(found, 0.0).splitlines() if " → " in line]
    assert len(rows) == 10
    assert "photo11 #1 | 1 → 12 | 1 → 12 | 1 → 12 |" in rows[0]
    assert "of 11 objects that changed" in comparison_report(found, 0.0)


def test_each_seed_of_jittered_clicks_is_paired_with_itself() -> None:
    old = [measurement(photos(1, 1), seed=0), measurement(photos(5, 5), seed=1)]
    new = [measurement(photos(2, 2), seed=0), measurement(photos(5, 5), seed=1)]
    found = compare(results(*old), results(*new))
    assert (found.differences[0].num_objects, found.differences[0].num_images) == (4, 2)
    assert found.differences[0].change == 0.5
    assert {change.seed for change in found.changes} == {0}


def test_a_single_model_is_compared_with_its_successor_whatever_the_names() -> None:
    old, new = results(measurement(photos(1)), model="a.pth"), results(measurement(photos(1)), model="b.pth")
    assert compare(old, new).differences[0].model == "a.pth → b.pth"


def test_several_models_are_paired_by_name() -> None:
    one, two = results(measurement(photos(1, 1))), results(measurement(photos(9, 9)), model="grabcut")
    both = replace(one, runs=[*one.runs, *two.runs])
    found = compare(both, replace(both, runs=both.runs[::-1]))
    assert {(difference.model, difference.change) for difference in found.differences} == {
        ("grabcut", 0.0),
        ("bundled", 0.0),
    }


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (results(measurement(photos(1)), rules=RULES | {"protocol": "serve"}), "protocol was paper and is serve"),
        (results(measurement(photos(1), dataset="DAVIS")), "measured GrabCut and this run DAVIS"),
        (results(measurement(photos(1)), rules=RULES | {"thresholds": [80]}), "no common IoU threshold"),
        (results(measurement({"other": [1]})), "no object in common"),
        (
            replace(results(), runs=results(model="x").runs + results(model="y").runs),
            "the old file has bundled and this run x, y",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(new: Results, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(results(measurement(photos(1))), new)


def test_a_run_can_be_refused_before_it_starts() -> None:
    old = results(measurement(photos(1)))
    assert check_comparable(old, RULES | {"thresholds": [90, 50]}, ["b.pth"], ["GrabCut"]) == [90]
    with pytest.raises(ValueError, match="give the same data sets"):
        check_comparable(old, RULES, ["b.pth"], ["GrabCut", "DAVIS"])


def test_intervals_agree_with_scipy_where_each_photo_has_one_object() -> None:
    values = np.random.default_rng(1).normal(0.3, 2.0, (60, 1))
    reference = bootstrap((values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    [(low, high)] = bootstrap_intervals(values, [str(index) for index in range(60)])
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.02)


def test_intervals_cover_the_true_mean_because_they_draw_photos() -> None:
    """Nine objects of a photo are alike here: intervals over objects are a third as wide and miss the mean often."""
    rng = np.random.default_rng(4)
    units = {"photos": [str(index // 9) for index in range(144)], "objects": [str(index) for index in range(144)]}
    covered = dict.fromkeys(units, 0)
    for _ in range(40):
        values = np.repeat(rng.normal(0.0, 1.0, 16), 9)[:, None] + rng.normal(0.0, 0.2, (144, 1))
        for unit, clusters in units.items():
            [(low, high)] = bootstrap_intervals(values, clusters)
            covered[unit] += low <= 0.0 <= high
    assert covered["photos"] >= 0.85 * 40
    assert covered["objects"] <= 0.75 * 40


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 4), st.integers(-19, 19)), min_size=1, max_size=12),
    shift=st.integers(-5, 5),
)
def test_intervals_move_with_the_values_and_stay_within_them(counts: list[tuple[int, int]], shift: int) -> None:
    clusters = [str(cluster) for cluster, _ in counts]
    values = np.array([[value] for _, value in counts], np.float64)
    [(low, high)] = bootstrap_intervals(values, clusters)
    assert values.min() <= low <= high <= values.max()
    assert bootstrap_intervals(values, clusters) == [(low, high)]
    assert bootstrap_intervals(values + shift, clusters) == [pytest.approx((low + shift, high + shift))]
    assert bootstrap_intervals(-values, clusters) == [pytest.approx((-high, -low))]


class FindsNothing:
    """A model, `--model tests.bench.test_compare:FindsNothing`, that answers every click with an empty mask."""

    version = "nothing"

    def encode(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        return image.shape[0], image.shape[1]

    def click(self, features: tuple[int, int], clicks: Sequence[Click], previous: object) -> NDArray[np.float32]:
        return np.zeros(features, np.float32)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A folder of two photos, a square in each."""
    for name, corner in (("a", 20), ("b", 60)):
        mask = np.zeros((120, 160), np.uint8)
        mask[corner : corner + 40, corner : corner + 50] = 1
        for part, picture in (("images", 60 + 120 * mask), ("masks", mask)):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "set" / part / f"{name}.png"), picture)
    return tmp_path / "set"


def with_ious(path: Path, ious: list[float]) -> None:
    """Rewrite a result file as if every object had gone so."""
    content = read_results(path)
    run = content.runs[0]
    objects = [replace(one, ious=ious) for one in run.measurements[0].objects]
    run = replace(run, measurements=[replace(run.measurements[0], objects=objects)])
    write_results(path, replace(content, runs=[run]))


def test_the_command_exits_1_where_noc_got_worse_and_2_where_it_cannot_compare(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "tests.bench.test_compare:FindsNothing"
    command = ["--model", model, "--dataset", f"folder={squares}"]
    old = tmp_path / "old.json"
    assert main([*command, "--output", str(old)]) == 0
    assert main([*command, "--compare", str(old)]) == 0
    assert "Worse by more than 0 clicks: nowhere." in capsys.readouterr().out

    with_ious(old, [0.97])
    assert main([*command, "--compare", str(old), "--tolerance", "5"]) == 1
    assert f"Worse by more than 5 clicks: folder NoC@85 ({model}), folder NoC@90 ({model})." in capsys.readouterr().out
    assert main([*command, "--compare", str(old), "--tolerance", "19"]) == 0

    capsys.readouterr()
    assert main([*command, "--clicks", "jitter", "--compare", str(old)]) == 2
    assert "clicks was center and is jitter" in capsys.readouterr().err
