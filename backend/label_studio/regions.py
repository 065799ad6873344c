"""Masks as regions of Label Studio, in the form of their tag, and saved regions as masks. No I/O.

| tag             | value of the region          | what is lost                                       |
|-----------------|------------------------------|----------------------------------------------------|
| BrushLabels     | run lengths                  | nothing                                            |
| BitmaskLabels   | a PNG                        | nothing                                            |
| PolygonLabels   | a polygon of each part;      | detail, down to an IoU of `Output.polygon_min_iou` |
|                 | bridges to holes             |                                                    |
| RectangleLabels | the box around the mask      | all but the box                                    |
| EllipseLabels   | the ellipse of equal moments | all but the ellipse                                |
"""

from __future__ import annotations

import base64
import itertools
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.label_studio.corrections import FirstClick, SavedRegion
from backend.label_studio.protocol import Json, MaskRequest, ProtocolError, RegionTarget, region_rle
from backend.prompts import StartMask
from skipclick import bitmask, brush_rle, polygons
from skipclick.cleaning import marked_pixels
from skipclick.evaluation.datasets.label_studio import mask_shape, region_piece
from skipclick.masks import BoxMask
from skipclick.prompts import Click
from skipclick.strokes import Stroke

Marks = Sequence[Click | Stroke]
"""What annotators clicked and painted."""


@dataclass(frozen=True)
class Output:
    """How masks are returned; see the settings of these names."""

    mask_min_part: float = 0.001
    polygon_min_iou: float = polygons.MIN_IOU
    polygon_max_points: int | None = None
    correct_regions: FirstClick = "negative"


def mask_response(
    target: RegionTarget,
    mask: BoxMask,
    score: float,
    model_version: str,
    output: Output = Output(),
    corrected: SavedRegion | None = None,
    marks: Marks = (),
) -> dict[str, Any]:
    """The answer with a mask: one region, or one for each part of a polygon, all but the first as its children.

    Ids are random, of 128 bits: when a suggestion is accepted, its id replaces a region of that id in the annotation.
    So the first region has the id of the one that is `corrected`, together with everything else saved under that id,
    since that is replaced too. Polygons are simplified so that `marks` stay on their side. Raises `KeyError` for a kind
    of tag that cannot hold a mask.
    """
    regions = _regions(target, mask, score, output, lambda: secrets.token_urlsafe(16), marks)
    if corrected is not None:
        regions = _in_place_of(corrected, regions)
    return {"results": [{"result": regions, "score": score, "model_version": model_version}]}


def proposals_response(
    name: str, proposals: Sequence[tuple[RegionTarget, BoxMask, float]], model_version: str, output: Output = Output()
) -> dict[str, Any]:
    """The answer with proposed masks, at least one, each with its score: one prediction, whose score is their mean.

    Ids are derived from `name`, the task's, so that equal requests get equal answers.
    """
    numbers = itertools.count()

    def new_id() -> str:
        digest = sha256(f"{name} {model_version} {next(numbers)}".encode()).digest()
        return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()

    regions = [region for target, mask, score in proposals for region in _regions(target, mask, score, output, new_id)]
    mean = sum(score for *_, score in proposals) / len(proposals)
    return {"results": [{"result": regions, "score": mean, "model_version": model_version}]}


def _regions(
    target: RegionTarget,
    mask: BoxMask,
    score: float,
    output: Output,
    new_id: Callable[[], str],
    marks: Marks = (),
) -> list[dict[str, Any]]:
    """A mask as regions of its tag."""
    regions: list[dict[str, Any]] = []
    for value in _WRITERS[target.kind](mask, output, marks):
        region: dict[str, Any] = {
            "id": new_id(),
            "type": target.kind,
            "from_name": target.from_name,
            "to_name": target.to_name,
            "original_width": target.width,
            "original_height": target.height,
            "image_rotation": target.image_rotation,
            "score": score,
            "readonly": False,
            "value": {**value, target.kind: list(target.labels)},
        }
        if target.item_index is not None:
            region["item_index"] = target.item_index
        if regions:
            region["parentID"] = regions[0]["id"]
        regions.append(region)
    return regions


def _in_place_of(corrected: SavedRegion, regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first region with the saved one's id and everything else saved under it; the others as its children."""
    first, *others = regions
    saved = [_in_its_place(item, first) for item in corrected.items]
    return [*saved, *(other | {"parentID": saved[0]["id"]} for other in others)]


def _in_its_place(saved: Json, region: Json) -> dict[str, Any]:
    """A saved item with the mask of another region; choices and texts stay as they are."""
    value = saved.get("value")
    if not isinstance(value, dict) or not _MASK_FIELDS & value.keys():
        return dict(saved)
    kept = {name: one for name, one in value.items() if name not in _MASK_FIELDS}
    mask = {name: one for name, one in region["value"].items() if name in _MASK_FIELDS}
    return {**saved, "score": region["score"], "value": {**kept, **mask}}


def read_mask(region: Json, raw: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask, bool (H, W), of a saved brush, bitmask or polygon region on a photo of this size.

    raw: the body that the region came in, see `protocol.read_json`. Raises `ValueError` if it has no mask, or one of
    another size.
    """
    if mask_shape(region) is None:
        raise ValueError("the region has no mask")
    return replace(region_piece(region, lambda one: region_rle(one, raw)), size=(height, width)).mask()


def marks_of(request: MaskRequest) -> list[Click | Stroke]:
    """What the mask must agree with: clicks, and after the last click of a stroke the stroke itself."""
    marks: list[Click | Stroke] = []
    for mark_id, clicks in groupby(request.clicks, lambda click: click.id):
        marks += [Click(click.x, click.y, click.positive) for click in clicks]
        if mark_id in request.strokes:
            marks.append(request.strokes[mark_id])
    return marks


def read_start(url: str, height: int, width: int) -> StartMask:
    """The mask of a PNG's data URL that clicks on a photo of this size correct. Raises `ProtocolError`."""
    try:
        return StartMask.of(bitmask.decode(url, height, width))
    except ValueError as error:
        raise ProtocolError(f'"params.context.start" is not a mask of this photo: {error}') from None


def _brush(mask: BoxMask, output: Output, marks: Marks) -> list[dict[str, Any]]:
    return [{"format": "rle", "rle": brush_rle.encode(mask)}]


def _bitmask(mask: BoxMask, output: Output, marks: Marks) -> list[dict[str, Any]]:
    return [{"imageDataURL": bitmask.encode(mask)}]


def _polygons(mask: BoxMask, output: Output, marks: Marks) -> list[dict[str, Any]]:
    held = marked_pixels(marks, mask.size)
    outline = polygons.outline(mask, output.polygon_min_iou, output.polygon_max_points, held)
    to_percent = (100 / mask.size[1], 100 / mask.size[0])
    rings = (polygon.with_bridges() * to_percent for polygon in outline.polygons)
    return [{"points": np.clip(ring, 0, 100).tolist(), "closed": True} for ring in rings]


def _rectangle(mask: BoxMask, output: Output, marks: Marks) -> list[dict[str, Any]]:
    (top, left, bottom, right), (height, width) = mask.box, mask.size
    place = {"x": left / width, "y": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
    return [{name: 100 * share for name, share in place.items()} | {"rotation": 0}]


def _ellipse(mask: BoxMask, output: Output, marks: Marks) -> list[dict[str, Any]]:
    """The ellipse with the mask's centre and second moments, which for an elliptical mask is the ellipse itself."""
    height, width = mask.size
    y, x = (index + 0.5 for index in np.nonzero(mask.pixels))
    spread = np.cov(np.stack([x, y]), bias=True) + np.eye(2) / 12  # a pixel is an area, not a point
    variances, axes = np.linalg.eigh(spread)
    radii = 2 * np.sqrt(variances)
    angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))  # of the longer axis
    return [
        {
            "x": 100 * (mask.box[1] + float(x.mean())) / width,
            "y": 100 * (mask.box[0] + float(y.mean())) / height,
            "radiusX": 100 * float(radii[1]) / width,
            "radiusY": 100 * float(radii[0]) / height,
            "rotation": angle % 180,
        }
    ]


_MASK_FIELDS = {"format", "rle", "imageDataURL", "points", "closed"}

_WRITERS: Mapping[str, Callable[[BoxMask, Output, Marks], list[dict[str, Any]]]] = {
    "brushlabels": _brush,
    "bitmasklabels": _bitmask,
    "polygonlabels": _polygons,
    "rectanglelabels": _rectangle,
    "ellipselabels": _ellipse,
}
"""Functions that return the values of a mask's regions, without labels, by kind of tag."""
