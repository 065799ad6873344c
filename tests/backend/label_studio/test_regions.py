"""Protects masks on their way into regions of each kind of tag, and back out of saved ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.label_interface import LabelInterface
from numpy.typing import NDArray

from backend.label_studio.protocol import RegionTarget
from backend.label_studio.regions import Output, mask_response, proposals_response, read_mask
from skipclick.evaluation.datasets.label_studio import read_annotation
from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.strokes import Stroke

HEIGHT, WIDTH = 60, 80
KINDS = ["brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels", "ellipselabels"]
DEFAULT = Output()
masks = arrays(np.bool_, (HEIGHT, WIDTH), elements=st.booleans(), fill=st.just(False)).filter(np.any)


def target(kind: str) -> RegionTarget:
    return RegionTarget(kind, "mask", "image", ("Ski",), WIDTH, HEIGHT)


def regions(kind: str, mask: NDArray[np.bool_], output: Output = DEFAULT) -> list[dict[str, Any]]:
    (answer,) = mask_response(target(kind), BoxMask.of(mask), 0.9, "v", output)["results"]
    found: list[dict[str, Any]] = answer["result"]
    return found


def two_parts_and_a_hole() -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:40, 10:50] = True
    mask[15:25, 20:30] = False
    mask[45:55, 60:70] = True
    return mask


@given(mask=masks)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_mask_comes_back(kind: str, mask: NDArray[np.bool_]) -> None:
    read = [read_mask(region, b"", HEIGHT, WIDTH) for region in regions(kind, mask, Output(polygon_min_iou=1))]
    np.testing.assert_array_equal(np.any(read, axis=0), mask)


@given(mask=masks, points=st.lists(st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)), max_size=5))
@pytest.mark.parametrize("kind", KINDS[:3])
def test_clicked_and_painted_pixels_stay_on_their_side(
    kind: str, mask: NDArray[np.bool_], points: list[tuple[int, int]]
) -> None:
    """Polygons may lose the rest: here up to a half."""
    painted = np.zeros_like(mask)
    painted[20:23, 30:60] = True
    marks = [*(Click(x + 0.7, y, bool(mask[y, x])) for y, x in points), Stroke(painted, True)]
    (answer,) = mask_response(target(kind), BoxMask.of(mask), 0.9, "v", Output(polygon_min_iou=0.5), None, marks)[
        "results"
    ]
    read = np.any([read_mask(region, b"", HEIGHT, WIDTH) for region in answer["result"]], axis=0)
    for y, x in points:
        assert read[y, x] == mask[y, x]
    np.testing.assert_array_equal(read[painted], mask[painted])


@pytest.mark.parametrize("kind", KINDS[:3])
def test_what_is_answered_is_one_object_when_it_is_learnt_from(kind: str) -> None:
    mask = two_parts_and_a_hole()
    read = read_annotation({"id": 1, "result": regions(kind, mask)}, lambda *_: "photo.jpg")
    (one,) = read.objects
    assert one.label == "Ski"
    np.testing.assert_array_equal(one.mask(1 << 20), mask)


@pytest.mark.parametrize("kind", KINDS)
def test_label_studios_own_check_of_predictions_accepts_it(kind: str) -> None:
    name = {
        "brush": "Brush",
        "bitmask": "Bitmask",
        "polygon": "Polygon",
        "rectangle": "Rectangle",
        "ellipse": "Ellipse",
    }
    tag = f"{name[kind.removesuffix('labels')]}Labels"
    config = f"""<View><Image name="image" value="$image"/>
      <{tag} name="mask" toName="image"><Label value="Ski"/></{tag}></View>"""
    found = regions(kind, two_parts_and_a_hole())
    assert LabelInterface(config).validate_prediction({"result": found, "score": 0.9}, return_errors=True) == []


def test_a_polygons_parts_hang_together_and_its_ids_are_new() -> None:
    first, second = regions("polygonlabels", two_parts_and_a_hole())
    assert second["parentID"] == first["id"] != second["id"]
    assert "parentID" not in first
    assert regions("polygonlabels", two_parts_and_a_hole())[0]["id"] != first["id"]


def test_points_of_polygons_are_in_percent_and_limited() -> None:
    mask = np.ones((HEIGHT, WIDTH), bool)
    (region,) = regions("polygonlabels", mask)
    assert sorted(region["value"]["points"]) == [[0, 0], [0, 100], [100, 0], [100, 100]]
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    (region,) = regions("polygonlabels", (x - 40) ** 2 + (y - 30) ** 2 < 600, Output(1, 1, polygon_max_points=5))
    assert len(region["value"]["points"]) <= 5


def test_a_rectangle_is_the_box_around_the_mask() -> None:
    (region,) = regions("rectanglelabels", two_parts_and_a_hole())
    value = region["value"]
    assert value["rectanglelabels"] == ["Ski"]
    expected = {"x": 12.5, "y": 100 * 5 / 60, "width": 75, "height": 100 * 50 / 60, "rotation": 0}
    assert {name: value[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("radii", "rotation"), list(itertools.product([(25, 10), (20, 20)], [0, 30, 90, 150])))
def test_of_an_ellipse_it_is_that_ellipse(radii: tuple[int, int], rotation: int) -> None:
    y, x = np.mgrid[0.5:HEIGHT, 0.5:WIDTH]
    angle = np.radians(rotation)
    along = (x - 40) * np.cos(angle) + (y - 30) * np.sin(angle)
    across = (y - 30) * np.cos(angle) - (x - 40) * np.sin(angle)
    (region,) = regions("ellipselabels", (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1)
    value = region["value"]
    assert (value["x"], value["y"]) == pytest.approx((50, 50), abs=0.5)
    assert (value["radiusX"] * WIDTH / 100, value["radiusY"] * HEIGHT / 100) == pytest.approx(radii, abs=0.5)
    if radii[0] != radii[1]:
        assert (value["rotation"] - rotation + 90) % 180 == pytest.approx(90, abs=2)


def test_a_single_pixel_is_a_region_of_each_kind() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3, 4] = True
    for kind in KINDS:
        (region,) = regions(kind, mask)
        assert all(np.isfinite(one) for one in region["value"].values() if isinstance(one, float))


@pytest.mark.parametrize("value", [{}, {"rle": [1, 2]}, {"imageDataURL": "x"}, {"points": [[1, 2]]}, {"x": 1}])
@pytest.mark.parametrize("kind", ["brushlabels", "bitmasklabels", "polygonlabels", "keypointlabels"])
def test_a_region_without_a_mask_of_this_size_is_refused(kind: str, value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_mask({"type": kind, "value": value}, b"", HEIGHT, WIDTH)


def test_proposals_are_one_prediction_that_label_studio_takes() -> None:
    """By its own check of predictions: all masks in one, each with its label, score and id, which stay the same."""
    config = """<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image"><Label value="Ski"/>
        </BrushLabels><PolygonLabels name="outline" toName="image"><Label value="Boot"/></PolygonLabels></View>"""
    outline = RegionTarget("polygonlabels", "outline", "image", ("Boot",), WIDTH, HEIGHT)
    mask = BoxMask.of(two_parts_and_a_hole())
    given = [(target("brushlabels"), mask, 0.9), (outline, mask, 0.8)]
    answer = proposals_response("1/7", given, "v1")
    (prediction,) = answer["results"]
    assert prediction["score"] == pytest.approx(0.85)
    assert LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
    brush, first, second = prediction["result"]
    assert (brush["value"]["brushlabels"], brush["score"]) == (["Ski"], 0.9)
    assert first["value"]["polygonlabels"] == second["value"]["polygonlabels"] == ["Boot"]
    assert second["parentID"] == first["id"]
    assert len({brush["id"], first["id"], second["id"]}) == 3
    assert proposals_response("1/7", given, "v1") == answer
    for name, version in (("1/8", "v1"), ("1/7", "v2")):
        assert proposals_response(name, given, version)["results"][0]["result"][0]["id"] != brush["id"]
