"""Clicks that correct an existing region.

A first click on a saved region of the click's label starts from that region's mask, and the answer carries its id: when
the annotator accepts it, the editor replaces the region. Until then the region stays as it is.

Saved regions come from the requesting user's draft, otherwise from an annotation, otherwise from a prediction, as Label
Studio sent them. If several lie under the click, the one drawn last is meant, which the annotator sees on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.label_studio.click_history import Decode, decode_few, is_mask_of
from backend.label_studio.protocol import Json, MaskRequest

FirstClick = Literal["off", "negative", "any"]
"""Which first clicks on a saved region correct it."""


@dataclass(frozen=True, eq=False)
class SavedRegion:
    """A region to correct."""

    id: str
    mask: NDArray[np.bool_]
    """Bool (H, W)."""
    items: tuple[Json, ...]
    """Everything saved under its id: the mask's own item first, then further labels, choices and texts."""


def corrected_region(request: MaskRequest, task: Json, decode: Decode, first_click: FirstClick) -> SavedRegion | None:
    """The region under the request's first click, if the click is to correct one."""
    if request.box is not None or not request.clicks or first_click == "off":
        return None
    first = request.clicks[0]
    if first.positive and first_click == "negative":
        return None
    decode = decode_few(request, decode)
    for result in _saved_results(task):
        for item in reversed(result):
            if not _may_be_replaced(item) or not is_mask_of(item, request):
                continue
            try:
                mask = decode(item, request.target.height, request.target.width) > 0
            except ValueError:
                continue  # of another size, or damaged: the editor does not show it
            if mask[first.y, first.x]:
                others = (one for one in result if one.get("id") == item["id"] and one is not item)
                return SavedRegion(item["id"], mask, (item, *others))
    return None


def _saved_results(task: Json) -> Iterator[Sequence[Json]]:
    """The saved result lists, those first that the annotator is most likely to see.

    A draft stands for what it began with: a region that it does not hold any more was deleted. So the annotation that
    it changes does not count, and no prediction does.
    """
    drafts = _objects(task, "drafts")
    changed = [draft.get("annotation") for draft in drafts if draft.get("annotation") is not None]
    annotations = [one for one in _objects(task, "annotations") if one.get("id") not in changed]
    predictions = [] if drafts else _objects(task, "predictions")
    for saved in (drafts, annotations, predictions):
        for one in reversed(saved):
            result = one.get("result")
            if isinstance(result, list):
                yield [item for item in result if isinstance(item, dict)]


def _objects(task: Json, name: str) -> list[Json]:
    found: Any = task.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _may_be_replaced(item: Json) -> bool:
    return isinstance(item.get("id"), str) and bool(item["id"]) and not item.get("readonly") and not item.get("locked")
