"""The tables say what was measured: means, averages over classes and seeds, and what cannot be set side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.published import TABLES, WSESEG_CLASSES
from bench.tables import (
    class_table,
    dataset_table,
    metric_values,
    overview_table,
    paper_table,
    report,
    size_table,
)
from skipclick import Click
from skipclick.evaluation.datasets import LAYOUTS
from skipclick.evaluation.datasets.winter_sports import WSESEG_FOLDERS
from skipclick.evaluation.evaluate import Rules
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results, SkippedPhoto

RULES = Rules().to_dict()


def measurement(
    dataset: str, nocs: Sequence[int], categories: Sequence[str | None] | None = None, seed: int | None = None
) -> Measurement:
    """A data set whose objects jump from 50 % to 96 % IoU with these clicks."""
    objects = [
        ObjectResult(
            f"photo{index}", 1, category, [0.5] * (count - 1) + [0.96], [Click(0, 0)] * count, 10.0, [2.0] * count
        )
        for index, (count, category) in enumerate(zip(nocs, categories or [None] * len(nocs), strict=True))
    ]
    return Measurement(dataset, "DIR", (320, 320), seed, objects, [])


def run(name: str, *measurements: Measurement) -> ModelRun:
    return ModelRun(name, f"{name}-1", "ab" * 32, "cpu", "float32", list(measurements))


def results(*runs: ModelRun, rules: dict[str, object] = RULES) -> Results:
    return Results([], "2026-01-01T00:00:00+00:00", {}, rules, list(runs))


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table below its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_holds_noc_failures_and_iou() -> None:
    [row] = rows(dataset_table(results(run("tiny", measurement("GrabCut", [1, 2, 20]))), "GrabCut"))
    assert row == ["`tiny`", *["7.67"] * 3, *["1"] * 3, *["33.3"] * 3, "65.3", "80.7", "80.7", "80.7"]


def test_objects_are_told_apart_by_the_size_of_their_crop() -> None:
    """With a margin of 1.4: an extent of 0.2 takes a crop of 0.28, one of 0.3 of 0.42."""
    measured = measurement("DAVIS", [2, 4, 5, 9])
    extents = [0.2, 0.2, 0.3, 0.9]
    objects = [replace(one, extent=part, crops=1) for one, part in zip(measured.objects, extents, strict=True)]
    serve = RULES | {"protocol": "serve", "zoom": True}
    found = results(run("a", replace(measured, objects=objects)), rules=serve)
    assert [row[1:3] + row[-1:] for row in rows(size_table(found, "DAVIS"))] == [
        ["below a third", "2", "1.00"],
        ["below a half", "1", "1.00"],
        ["the rest", "1", "1.00"],
    ]
    assert rows(size_table(found, "DAVIS"))[0][3] == "3.00"
    assert "| below a third |" in report(found)
    assert "| below a third |" not in report(results(run("a", measured)))


def test_the_best_of_several_models_is_bold_and_equals_share_it() -> None:
    measured = results(run("a", measurement("DAVIS", [2, 2])), run("b", measurement("DAVIS", [1, 3])))
    assert [row[1] for row in rows(dataset_table(measured, "DAVIS"))] == ["**2.00**", "**2.00**"]
    measured = results(run("a", measurement("DAVIS", [2, 2])), run("b", measurement("DAVIS", [3, 3])))
    assert [row[1] for row in rows(dataset_table(measured, "DAVIS"))] == ["**2.00**", "3.00"]


def test_classes_count_the_same_whatever_their_size() -> None:
    """The paper's average over WSESeg is that of ten values, not of 7,452 objects."""
    measured = results(run("a", measurement("WSESeg", [2, 2, 2, 10], ["skis", "skis", "skis", "goggles"])))
    assert metric_values(measured.runs[0], RULES, "WSESeg", "NoC@85") == [6.0]
    assert rows(class_table(measured, "WSESeg", "NoC@85")) == [["`a`", "2.00", "10.00", "6.00"]]
    assert "skis | goggles | average" in report(measured)


def test_seeds_give_a_mean_and_a_spread() -> None:
    measured = results(run("a", measurement("GrabCut", [2, 2], seed=0), measurement("GrabCut", [4, 4], seed=1)))
    assert rows(dataset_table(measured, "GrabCut"))[0][1] == f"3.00 ± {math.sqrt(2):.2f}"


def test_several_models_and_data_sets_stand_side_by_side() -> None:
    measured = results(
        run("a", measurement("GrabCut", [1]), measurement("DAVIS", [4])),
        run("b", measurement("GrabCut", [2]), measurement("DAVIS", [3])),
    )
    assert rows(overview_table(measured)) == [
        ["`a`", *["**1.00**"] * 3, *["4.00"] * 3],
        ["`b`", *["2.00"] * 3, *["**3.00**"] * 3],
    ]
    assert overview_table(measured) in report(measured)


def test_the_report_names_how_it_was_measured_and_what_was_broken() -> None:
    broken = Measurement(
        "DAVIS", "DIR", None, None, measurement("DAVIS", [1]).objects, [SkippedPhoto("007", "no mask")]
    )
    text = report(results(run("tiny", broken)))
    assert "- `tiny`: tiny-1, cpu, float32, SHA-256 abababababab" in text
    assert "protocol paper" in text
    assert "Not measured, 1 photos:\n\n- DAVIS: 1 × no mask, for example 007 (no mask)" in text
    assert "| DAVIS | `tiny` | 10.0 | 10.0 | 2.0 | 2.0 |" in text


def test_ours_stands_behind_the_published_row_it_belongs_to() -> None:
    runs = [run("sam:x", measurement("SHSeg", [2] * 534)), run("mine", measurement("SHSeg", [1] * 534))]
    text = paper_table(results(*runs), 3, {"sam:x": "SAM", "mine": None})
    assert [row[0] for row in rows(text)][:3] == ["SAM, published", "`sam:x`", "HQ-SAM, published"]
    assert rows(text)[0][1:] == ["3.95", "7.46"]
    assert rows(text)[1] == ["`sam:x`", "2.00", "2.00"]
    assert rows(text)[-1] == ["`mine`", "1.00", "1.00"]
    assert "Methods without a model given: HQ-SAM, SAM + Schön et al.," in text
    assert "not comparable" not in text


def test_a_table_by_class_has_the_papers_order_and_both_figures() -> None:
    measured = measurement("WSESeg", [2, 2, 4], ["flickr_bobsleighs", "flickr_bobsleighs", "flickr_snowboards"])
    *_, row = rows(paper_table(results(run("a", measured)), 1, {}))
    assert row == ["`a`", "2.00 / 2.00", *["– / –"] * 8, "4.00 / 4.00", "3.00 / 3.00"]


def test_what_a_table_lacks_is_said() -> None:
    davis = replace(measurement("DAVIS", [2] * 208), resolution=LAYOUTS["DAVIS"].resolution)
    text = paper_table(results(run("a", davis)), 4, {"a": "Baseline"})
    assert "DAVIS: 208 objects here, 345 published; these figures are not comparable." in text
    assert "Data sets not given: GrabCut, Berkeley, SBD, HQSeg-44k" in text
    assert "Methods without a model given: + Frozen Backbone, " in text
    assert "mirrored" not in text
    assert "published figures at" not in text
    other = run("a", replace(measurement("SHSeg", [2]), resolution=(448, 448)))
    changed = paper_table(results(other, rules=RULES | {"flip": False, "start": "box"}), 3, {"a": "SAM + Schön et al."})
    assert "SHSeg: measured at 448 × 448 pixels, SkipClick's published figures at 896 × 896." in changed
    assert "average with the mirrored photo, and these do not" in changed
    assert "begin with nothing, and these with --start" in changed
    assert "al.." not in changed
    served = RULES | {"protocol": "serve"}
    assert "these do not" in paper_table(results(run("a", measurement("SHSeg", [2])), rules=served), 3, {})


@pytest.mark.parametrize("number", TABLES)
def test_a_table_is_whole_and_of_known_data_sets(number: int) -> None:
    table = TABLES[number]
    assert set(table.datasets) <= set(LAYOUTS)
    for cells in table.rows.values():
        assert [cell.count("/") + 1 for cell in cells] == [len(column.metrics) for column in table.columns]


@pytest.mark.parametrize(
    ("number", "method"), [(number, method) for number in (1, 2) for method in TABLES[number].rows]
)
def test_the_ten_classes_have_the_published_average(number: int, method: str) -> None:
    """A typing mistake in one of the ten would show."""
    figures = [[float(one) for one in cell.split("/")] for cell in TABLES[number].rows[method]]
    means = [statistics.fmean(column) for column in zip(*figures[:-1], strict=True)]
    assert means == pytest.approx(figures[-1], abs=0.011)


def test_classes_of_the_tables_are_those_of_the_data_set() -> None:
    assert set(WSESEG_CLASSES.values()) == set(WSESEG_FOLDERS)
