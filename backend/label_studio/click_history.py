"""What the editor's context does not tell about clicks: signs that it lost, and clicks of objects already accepted.

**Signs.** After a page reload the editor sends clicks without theirs. `SignMemory` keeps them by keypoint id: a memory,
but not a session, since the sign of a keypoint never changes, so it cannot matter who asks, or in which order.

**Accepted clicks.** The check mark in the bottom bar deletes the clicks of the accepted object; the one drawn on the
canvas keeps them, and the next object of that label arrives with the old clicks in front of its own. Nothing in the
context tells them apart from the first clicks of one growing object. The draft (or the annotation) does, as soon as it
has been saved, about five seconds after the change: it lists the old clicks, and after them the region that came of
them. A click that is still pending has no such region after it; after an undone accept the clicks are not in the draft
beside the region, because the bottom bar had deleted them.

Until the draft has been saved no request and no stored object knows of the accept, so the clicks count together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.label_studio.protocol import MAX_MASK_PIXELS, Json, MaskRequest, saved_results
from backend.prompts import SmartClick

Decode = Callable[[Json, int, int], NDArray[Any]]
"""(region, height, width) -> mask (H, W), non-zero where set; raises `ValueError` for one that does not fit."""

_MAX_MASKS = 200
"""Masks that are decoded for one request."""


class SignMemory:
    """The last `capacity` signs seen. Thread-safe."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._signs: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._lock = Lock()

    def remember(self, task: str, clicks: Iterable[SmartClick]) -> None:
        """Record the clicks of a task."""
        with self._lock:
            for click in clicks:
                self._signs[task, click.id] = click.positive
                self._signs.move_to_end((task, click.id))
            while len(self._signs) > self._capacity:
                self._signs.popitem(last=False)

    def recall(self, task: str, keypoint_id: str) -> bool | None:
        """The sign of a keypoint, None if it was not seen or has been forgotten."""
        with self._lock:
            return self._signs.get((task, keypoint_id))


def without_accepted_clicks(request: MaskRequest, task: Json, decode: Decode) -> MaskRequest:
    """The request without clicks that led to a region that was accepted since; the newest click always stays."""
    if len(request.clicks) < 2:
        return request
    decode = decode_few(request, decode)
    newest = request.clicks[-1]
    candidates = {click.id: click for click in request.clicks[:-1]}
    spent: set[str] = set()
    for result in saved_results(task):
        spent |= _spent(result, candidates, request, decode)
    clicks = tuple(click for click in request.clicks if click.id not in spent or click is newest)
    return replace(request, clicks=clicks)


def decode_few(request: MaskRequest, decode: Decode) -> Decode:
    """`decode` for as many masks as one request may decode; it refuses all further ones."""
    target = request.target
    left = iter(range(min(_MAX_MASKS, MAX_MASK_PIXELS // (target.height * target.width))))

    def decode_some(region: Json, height: int, width: int) -> NDArray[Any]:
        if next(left, None) is None:
            raise ValueError("enough masks were looked at")
        return decode(region, height, width)

    return decode_some


def _spent(result: Sequence[Json], candidates: dict[str, SmartClick], request: MaskRequest, decode: Decode) -> set[str]:
    """Ids of the candidates in `result` that precede a region of their label in which a positive one of them lies."""
    spent: set[str] = set()
    waiting: list[SmartClick] = []
    for item in result:
        if item.get("type") == "keypointlabels" and str(item.get("id")) in candidates:
            waiting.append(candidates[str(item["id"])])
        elif waiting and is_mask_of(item, request):
            mask = _decoded(item, request, decode)
            if mask is not None and any(click.positive and mask[click.y, click.x] for click in waiting):
                spent.update(click.id for click in waiting)
                waiting.clear()
    return spent


def is_mask_of(item: Json, request: MaskRequest) -> bool:
    """Whether a saved region has the tag, the page and the labels of the request's mask."""
    value = item.get("value")
    return (
        item.get("type") == request.target.kind
        and item.get("from_name") == request.target.from_name
        and item.get("item_index") == request.target.item_index
        and isinstance(value, dict)
        and isinstance(labels := value.get(request.target.kind), list)
        and set(request.target.labels).issubset(label for label in labels if isinstance(label, str))
    )


def _decoded(item: Json, request: MaskRequest, decode: Decode) -> NDArray[np.bool_] | None:
    try:
        mask: NDArray[np.bool_] = decode(item, request.target.height, request.target.width) > 0
    except ValueError:
        return None  # a damaged region explains no click
    return mask
