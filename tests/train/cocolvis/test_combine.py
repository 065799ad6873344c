"""Protects the rules by which COCO and LVIS become one set: equal to the released converter on its golden values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from skipclick.masks import num_shared, overlap
from tests.support.parity_files import for_each_golden, load_golden, unpack_bits
from train.cocolvis.combine import combine, fill, without_duplicates, without_repeats
from train.cocolvis.hierarchy import Node, build_hierarchy
from train.cocolvis.layers import pack_layers
from train.cocolvis.overlap import box_intersections, box_ious, boxed, boxes


def as_json(nodes: list[Node], *, lone_as_none: bool) -> dict[str, Any]:
    """In the form of the golden files."""
    return {
        str(index): None
        if lone_as_none and node.alone
        else {"children": list(node.children), "parent": node.parent, "node_level": node.level}
        for index, node in enumerate(nodes)
    }


def golden_masks(packed: NDArray[np.uint8], shape: NDArray[np.int64]) -> NDArray[np.bool_]:
    return unpack_bits(packed, tuple(int(side) for side in shape))


@for_each_golden("golden_cocolvis*.npz")
def test_combined_photos_equal_the_released_ones(golden: Path) -> None:
    data = load_golden(golden)
    assert data["n"] > 0
    for name in (f"i{number}" for number in range(int(data["n"]))):
        ids = data[f"{name}_panoptic_ids"].astype(np.uint32)
        segments = json.loads(str(data[f"{name}_segments_json"]))
        combined = combine(
            ids,
            {segment["id"]: segment["category_id"] for segment in segments},
            {segment["category_id"] for segment in segments if segment["category_id"] < 200},  # 200, 201 are stuff
            json.loads(str(data[f"{name}_lvis_polygons_json"])),
        )
        expected = golden_masks(data[f"{name}_masks"], data[f"{name}_masks_shape"])
        np.testing.assert_array_equal([mask.full() for mask in combined.masks], expected, err_msg=name)
        assert len(combined.nodes) == data[f"{name}_num_instance_masks"]
        assert as_json(combined.nodes, lone_as_none=True) == json.loads(str(data[f"{name}_hierarchy_json"]))
        layers, places = pack_layers(combined.masks, ids.shape)
        assert places == [tuple(place) for place in data[f"{name}_mapping"].tolist()]
        np.testing.assert_array_equal(np.stack(layers, axis=-1), data[f"{name}_layers"], err_msg=name)


@for_each_golden("golden_hierarchy*.npz")
def test_hierarchies_and_layers_equal_the_released_ones(golden: Path) -> None:
    data = load_golden(golden)
    assert data["n"] > 0
    for name in (f"h{number}" for number in range(int(data["n"]))):
        whole = golden_masks(data[f"{name}_masks"], data[f"{name}_shape"])
        masks = [boxed(mask) for mask in whole]
        assert as_json(build_hierarchy(masks), lone_as_none=False) == json.loads(str(data[f"{name}_hierarchy_json"]))
        layers, places = pack_layers(masks, whole.shape[1:])
        assert places == [tuple(place) for place in data[f"{name}_mapping"].tolist()]
        np.testing.assert_array_equal(np.stack(layers, axis=-1), data[f"{name}_layers"], err_msg=name)


@for_each_golden("golden_hierarchy*.npz")
def test_a_layer_takes_255_masks_as_released(golden: Path) -> None:
    """300 masks that touch nowhere, every second one of them smaller."""
    data = load_golden(golden)
    whole = np.zeros((300, 30, 40), np.bool_)
    for number in range(300):
        whole[number, number // 20 * 2, number % 20 * 2 : number % 20 * 2 + 2 - number % 2] = True
    layers, places = pack_layers([boxed(mask) for mask in whole], (30, 40))
    assert places == [tuple(place) for place in data["many_mapping"].tolist()]
    assert len(layers) == data["many_nlayers"]


SIZE = (30, 40)
CORNERS = st.floats(-15, 55, allow_nan=False).map(lambda value: round(value, 2))
OUTLINES = st.lists(CORNERS, min_size=6, max_size=16).map(lambda values: values[: len(values) // 2 * 2])
MASKS = npst.arrays(np.bool_, SIZE, elements=st.booleans(), fill=st.just(False))
BLOCKS = st.builds(
    lambda top, left, height, width: block(top, left, top + height, left + width),
    *(st.integers(0, 25), st.integers(0, 35), st.integers(1, 12), st.integers(1, 12)),
)


def block(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


@given(st.lists(OUTLINES, min_size=1, max_size=3))
def test_filling_a_box_is_filling_the_photo(polygons: list[list[float]]) -> None:
    """Outlines may reach beyond the photo, as LVIS' do by a pixel."""
    whole = np.zeros(SIZE, np.int32)
    for polygon in polygons:
        cv2.fillPoly(whole, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
    np.testing.assert_array_equal(fill(polygons, SIZE).full(), whole == 1)


def test_holes_are_filled_and_pieces_belong_together() -> None:
    outer, inner, piece = [2, 2, 20, 2, 20, 20, 2, 20], [8, 8, 12, 8, 12, 12, 8, 12], [25, 5, 30, 5, 30, 9, 25, 9]
    expected = block(2, 2, 21, 21) | block(5, 25, 10, 31)
    np.testing.assert_array_equal(fill([outer, inner, piece], SIZE).full(), expected)


@pytest.mark.parametrize("polygon", [[], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, float("nan")], [1e9, 0.0]])
def test_an_outline_that_is_none_is_refused(polygon: list[float]) -> None:
    with pytest.raises(ValueError, match="not a list of coordinates"):
        fill([polygon], SIZE)


@given(MASKS | BLOCKS, MASKS | BLOCKS)
def test_boxes_lose_nothing(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    of_a, of_b = boxed(a), boxed(b)
    np.testing.assert_array_equal(of_a.full(), a)
    assert of_a.area == a.sum()
    assert num_shared(of_a, of_b) == (a & b).sum()
    if a.any() or b.any():
        assert overlap(of_a, of_b) == (a & b).sum() / (a | b).sum()


@given(BLOCKS, BLOCKS)
def test_boxes_are_compared_as_released(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    """For blocks, whose masks are their boxes, all follows from the masks' rows and columns."""
    of_a, of_b = boxes([boxed(a)]), boxes([boxed(b)])
    assert box_intersections(of_a, of_b).item() == (a & b).sum()
    expected = 1.0
    for axis in (1, 0):
        in_a, in_b = a.any(axis), b.any(axis)
        covered = np.flatnonzero(in_a | in_b)
        expected *= (in_a & in_b).sum() / (covered[-1] - covered[0] + 1)
    assert box_ious(of_a, of_b).item() == pytest.approx(expected, abs=1e-15)


@given(st.lists(BLOCKS, max_size=8), st.lists(BLOCKS, max_size=8))
def test_duplicates_are_those_that_pixels_say(a: list[NDArray[np.bool_]], b: list[NDArray[np.bool_]]) -> None:
    def twins(one: NDArray[np.bool_], other: NDArray[np.bool_], least: float) -> bool:
        of_boxes = box_ious(boxes([boxed(one)]), boxes([boxed(other)])).item()
        return of_boxes > 0.7 and bool((one & other).sum() / (one | other).sum() > least)

    kept = [mask.full() for mask in without_duplicates([boxed(mask) for mask in a], [boxed(mask) for mask in b])]
    assert_same(kept, [mask for mask in a if not any(twins(mask, other, 0.7) for other in b)])
    kept = [mask.full() for mask in without_repeats([boxed(mask) for mask in a])]
    assert_same(kept, [mask for at, mask in enumerate(a) if not any(twins(mask, one, 0.85) for one in a[at + 1 :])])


def assert_same(found: list[NDArray[np.bool_]], expected: list[NDArray[np.bool_]]) -> None:
    assert [mask.tobytes() for mask in found] == [mask.tobytes() for mask in expected]


@given(st.lists(BLOCKS, max_size=12))
def test_a_hierarchy_is_a_forest_of_parts(whole: list[NDArray[np.bool_]]) -> None:
    masks = [boxed(mask) for mask in whole]
    nodes = build_hierarchy(masks)
    for index, node in enumerate(nodes):
        assert [child for child, one in enumerate(nodes) if one.parent == index] == sorted(node.children)
        if node.parent is None:
            assert node.level == 0
            # No other mask holds it, save equals, of which one holds the other.
            holders = [k for k, mask in enumerate(whole) if k != index and mask.sum() > whole[index].sum()]
            assert all(num_shared(masks[k], masks[index]) <= 0.8 * masks[index].area for k in holders)
        else:
            assert node.level == nodes[node.parent].level + 1
            assert num_shared(masks[node.parent], masks[index]) > 0.8 * masks[index].area


@given(st.lists(BLOCKS, min_size=1, max_size=12))
def test_layers_give_every_mask_back(whole: list[NDArray[np.bool_]]) -> None:
    layers, places = pack_layers([boxed(mask) for mask in whole], SIZE)
    for mask, (layer, value) in zip(whole, places, strict=True):
        np.testing.assert_array_equal(layers[layer] == value, mask)
    assert all(layer.any() for layer in layers)


def test_a_photo_of_specks_has_nothing() -> None:
    ids = np.zeros(SIZE, np.uint32)
    ids[:5, :5] = 7
    combined = combine(ids, {0: 200, 7: 1}, {1}, [[[1, 1, 4, 1, 4, 4]]])
    assert combined.masks == []
    assert combined.nodes == []
    assert (combined.counts.coco_small, combined.counts.lvis_small) == (1, 1)
