"""The figures show what was measured, and the gallery's masks are those that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from bench.plots import (
    GalleryEntry,
    choose_objects,
    gallery_figure,
    miou_figure,
    noc_figure,
    radar_figure,
    replay_objects,
    save_plots,
)
from bench.published import TABLES, WSESEG_CLASSES
from skipclick import Click, Predictor
from skipclick.evaluation.datasets import EvaluationSet, open_dataset
from skipclick.evaluation.evaluate import Rules, evaluate
from skipclick.evaluation.results import Measurement, ModelRun, ObjectResult, Results
from skipclick.metrics import mask_iou
from tests.support.small_models import bundled

CHECK_SET = Path(__file__).resolve().parents[2] / "skipclick" / "evaluation" / "check_set"
RULES = Rules()


def measurement(
    dataset: str, nocs: Sequence[int], categories: Sequence[str | None] | None = None, seed: int | None = None
) -> Measurement:
    """A data set whose objects jump from 50 % to 96 % IoU with these clicks."""
    objects = [
        ObjectResult(f"photo{index}", 1, category, [0.5] * (n - 1) + [0.96], [Click(0, 0)] * n, 1.0, [1.0] * n)
        for index, (n, category) in enumerate(zip(nocs, categories or [None] * len(nocs), strict=True))
    ]
    return Measurement(dataset, "DIR", None, seed, objects, [])


def results(*runs: Sequence[Measurement], rules: Rules = RULES) -> Results:
    named = [ModelRun(name, name, None, "cpu", "float32", list(run)) for name, run in zip("abc", runs, strict=False)]
    return Results([], "2026-01-01T00:00:00+00:00", {}, rules.to_dict(), named)


@pytest.fixture(scope="module")
def checked() -> EvaluationSet:
    """The first photo of the check set, three objects."""
    return open_dataset("folder", CHECK_SET, limit=1)


def test_the_curve_is_the_mean_iou_after_each_click() -> None:
    figure = miou_figure(results([measurement("GrabCut", [1, 2, 20])]))
    [line] = figure.axes[0].get_lines()
    assert np.asarray(line.get_xdata()).tolist() == list(range(1, 21))
    expected = [100 * (0.96 + 0.5 + 0.5) / 3, *[100 * (0.96 + 0.96 + 0.5) / 3] * 18, 96]
    assert np.asarray(line.get_ydata()) == pytest.approx(expected)
    assert figure.axes[0].get_title() == "GrabCut (3 objects)"


def test_seeds_are_drawn_as_a_band_around_their_mean() -> None:
    figure = miou_figure(results([measurement("GrabCut", [1], seed=0), measurement("GrabCut", [20], seed=1)]))
    [axes] = figure.axes
    assert np.asarray(axes.get_lines()[0].get_ydata())[0] == pytest.approx(73.0)
    [band] = axes.collections
    first = band.get_paths()[0].vertices
    assert {50.0, 96.0} <= set(np.round(np.asarray(first)[:, 1], 6))


def test_each_data_set_has_a_panel_and_each_model_a_line() -> None:
    sets = [measurement(name, [1, 2]) for name in ("GrabCut", "Berkeley", "DAVIS", "SBD")]
    figure = miou_figure(results(sets, sets))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [f"{one.dataset} (2 objects)" for one in sets]
    assert all(len(axes.get_lines()) == 2 for axes in shown)
    assert len({axes.get_lines()[0].get_color() for axes in shown}) == 1  # a model keeps its colour


def test_the_histogram_counts_every_object_once_and_failures_last() -> None:
    figure = noc_figure(results([measurement("GrabCut", [1, 1, 3, 20])]), 90)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[:3] == [50.0, 0.0, 25.0]
    assert heights[-1] == 25.0
    assert sum(heights) == pytest.approx(100)
    assert figure.axes[0].get_xticklabels()[-1].get_text() == "≥20"


def test_the_gallery_shows_the_worst_and_the_median() -> None:
    nocs = [3, 1, 20, 2, 18, 4, 5, 19, 17, 6, 7, 8]
    chosen = choose_objects(measurement("GrabCut", nocs).objects, cap=20)
    assert [nocs[int(one.image.removeprefix("photo"))] for one in chosen["worst"]] == [20, 19, 18, 17]
    assert [nocs[int(one.image.removeprefix("photo"))] for one in chosen["median"]] == [8, 7, 6, 5]
    assert [len(few) for few in choose_objects(measurement("GrabCut", [5, 6]).objects, 20).values()] == [2, 2]


@pytest.mark.parametrize("rules", [Rules(num_clicks=3), Rules(num_clicks=3, protocol="serve", threshold=0.5)])
def test_a_replayed_mask_is_the_one_that_was_scored(checked: EvaluationSet, rules: Rules) -> None:
    model = Predictor(bundled(), (160, 160))
    sample = checked.load(0)
    measured = list(evaluate(model, [sample], rules))
    for entry in replay_objects(model, checked, measured, rules):
        scored = entry.result.ious[entry.num_clicks - 1]
        # The objects were clicked in one batch then and one by one now: last bits may differ.
        assert mask_iou(entry.mask, sample.targets[entry.result.object_id]) == pytest.approx(scored, abs=2e-3)


def test_the_gallery_marks_each_click_on_its_pixel(checked: EvaluationSet) -> None:
    sample = checked.load(0)
    clicks = [Click(120, 300), Click(30, 40, positive=False), Click(1, 1)]
    result = ObjectResult(sample.name, 1, None, [0.5, 0.92, 0.93], clicks, 1.0, [1.0] * 3)
    figure = gallery_figure([GalleryEntry(sample, result, 2, sample.targets[1] == 1)])
    photo, prediction, truth = figure.axes
    marks = [(line.get_xdata(), line.get_ydata(), line.get_marker()) for line in photo.get_lines()]
    assert [(np.asarray(x).item(), np.asarray(y).item(), marker) for x, y, marker in marks] == [
        (120, 300, "o"),
        (30, 40, "X"),
    ]
    assert [axes.get_title() for axes in (photo, prediction, truth)] == [
        f"{sample.name} #1",
        "2 clicks, IoU 92 %",
        "ground truth",
    ]
    height, width = sample.image.shape[:2]
    assert photo.get_images()[0].get_extent() == [-0.5, width - 0.5, height - 0.5, -0.5]


@pytest.mark.slow
def test_all_figures_are_written_as_pdf_and_png(checked: EvaluationSet, tmp_path: Path) -> None:
    rules = Rules(num_clicks=2)
    model = Predictor(bundled(), (96, 96))
    measured = list(evaluate(model, [checked.load(0)], rules))
    run = [Measurement("folder", str(CHECK_SET), None, None, measured, [])]
    paths = save_plots(results(run, rules=rules), tmp_path / "new" / "plots", lambda *_: model, lambda _: checked)
    names = ["miou", "noc", "gallery-folder-a-worst", "gallery-folder-a-median"]
    assert sorted(path.name for path in paths) == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    assert sorted((tmp_path / "new" / "plots").iterdir()) == sorted(paths)
    for path in paths:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
        else:
            assert imread(path).std() > 0.05  # not empty


def test_the_radar_has_a_spoke_per_class_and_the_published_methods_of_wseseg() -> None:
    classes = list(WSESEG_CLASSES.values())
    figure = radar_figure(results([measurement("WSESeg", list(range(1, 11)), classes)]), "WSESeg", 85)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(WSESEG_CLASSES)
    ours, *published = axes.get_lines()
    assert np.asarray(ours.get_ydata()).tolist() == [*range(1, 11), 1]  # and back to the first
    assert [line.get_label() for line in published] == [f"{method}, published" for method in TABLES[2].rows]
    assert np.asarray(published[0].get_ydata())[:2].tolist() == [3.38, 3.59]
    at_90 = radar_figure(results([measurement("WSESeg", [2] * 10, classes)]), "WSESeg", 90)
    assert len(at_90.axes[0].get_lines()) == 1
