"""The click protocol of Label Studio's next editor, as in its development branch; no release has it yet. No I/O.

A request is recognized by what it lacks: its prompts have no id, no tag name and no image size. Coordinates are percent
of the picture, whose size only the picture itself tells, and the answer is a picture in which the object is white. The
editor makes a region of it, and sends events to ask what a backend can do and to report that it opens and closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_studio.protocol import (
    KEYPOINT,
    RECTANGLE,
    Json,
    Limits,
    ProtocolError,
    number_of,
    percent_box,
    percent_pixel,
    readable_sign,
)
from backend.prompts import Box, SmartClick
from skipclick import bitmask
from skipclick.masks import BoxMask

CAPABILITIES, PREWARM, RELEASE = "capabilities", "prewarm", "release"

_TARGETS = {"BitmaskLabels": "mask", "RectangleLabels": "bbox", "PolygonLabels": "polygon", "VectorLabels": "polygon"}
_NEVER = ("id", "from_name", "original_width")
"""Fields that every item of the current editor has, and none of the next one's."""


@dataclass(frozen=True)
class Prompts:
    """Points and a box of one object, as received."""

    items: tuple[Json, ...]

    def placed(self, size: tuple[int, int]) -> tuple[tuple[SmartClick, ...], Box | None]:
        """In pixels of a picture of `size` (H, W). Raises `ProtocolError` for malformed items."""
        height, width = size
        clicks, box = [], None
        for index, item in enumerate(self.items):
            if item["type"] == RECTANGLE:
                box = percent_box(item, width, height)
                continue
            sign, unreadable = readable_sign(item)
            if unreadable:
                raise ProtocolError(f'"{unreadable}" of a point must be true or false')
            x, y = percent_pixel(number_of(item, "x"), width), percent_pixel(number_of(item, "y"), height)
            clicks.append(SmartClick(str(index), x, y, sign is not False))
        return tuple(clicks), box


def read_prompts(context: Sequence[Json] | None, limits: Limits) -> Prompts | None:
    """The prompts of a request of the next editor; None for any other request. Raises `ProtocolError` for too many."""
    if not context or any(name in item for item in context for name in _NEVER):
        return None
    if not all(item.get("type") in (KEYPOINT, RECTANGLE) and isinstance(item.get("value"), dict) for item in context):
        return None
    if len(context) > limits.clicks:
        raise ProtocolError(f"an object has {len(context)} clicks, more than REQUEST_MAX_CLICKS={limits.clicks} allows")
    return Prompts(tuple(context))


def capabilities(version: str) -> dict[str, Any]:
    """What the editor may request, and which regions it may make of the answers."""
    targets = [{"tag": tag, "output": output} for tag, output in _TARGETS.items()]
    model = {"name": "SkipClick", "version": version}
    return _answer({"prompts": ["point", "box"], "targets": targets, "model_info": model}, version)


def acknowledged(version: str) -> dict[str, Any]:
    """The answer to all other events."""
    return _answer({}, version)


def picture_response(mask: BoxMask, score: float, version: str) -> dict[str, Any]:
    """The answer with a mask: a picture of the photo's size, white on black."""
    return _answer({"imageDataURL": bitmask.encode_opaque(mask)}, version, score)


def _answer(value: dict[str, Any], version: str, score: float = 0.0) -> dict[str, Any]:
    return {"results": [{"result": [{"value": value}], "score": score, "model_version": version}]}
