"""CVAT's requests to an interactor as values, and masks as its answers. No I/O: imports neither Flask nor torch.

CVAT asks Nuclio's dashboard for its functions, and sends each click to one of them: the encoded picture and all points
of the object. Nothing identifies the task, the frame or the annotator, so the picture's content is its only name.
Written against CVAT 2.73 (server and browser) and `cvat-sdk` 2.80.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from backend.cvat.click_order import canonical_order
from backend.cvat.masks import rows, run_lengths
from backend.label_studio import json_bodies
from backend.prompts import Box, SmartClick
from skipclick import __version__
from skipclick.masks import BoxMask

Point = tuple[float, float]
"""x, y in pixels of the picture, from the outer corner of its first pixel."""

AnswerForm = Literal["shapes", "mask"]
"""`shapes` since CVAT 2.60, `mask` before."""

_INTERFACE = "2"
"""Version of an interactor; with a lower one, CVAT's button "Interact" stays disabled."""


class InteractionError(ValueError):
    """The request cannot be answered; the message tells the annotator why."""


@dataclass(frozen=True)
class Prompts:
    """An annotator's prompts for one object: points by sign, each in the order of clicking, and a box."""

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    corners: tuple[Point, Point] | None = None
    """Two opposite corners of the box."""

    @property
    def has_positive(self) -> bool:
        """Whether any prompt says where the object is; negative points alone only say where it is not."""
        return self.corners is not None or bool(self.positive)

    def clicks(self, size: tuple[int, int]) -> tuple[SmartClick, ...]:
        """The clicks on a picture of `size` (H, W), in the canonical order; points outside it move to the nearest
        pixel."""
        return canonical_order(
            [_click(f"+{index}", point, size, positive=True) for index, point in enumerate(self.positive)],
            [_click(f"-{index}", point, size, positive=False) for index, point in enumerate(self.negative)],
        )

    def box(self, size: tuple[int, int]) -> Box | None:
        """The part of the box inside a picture of `size` (H, W). Raises `InteractionError` if it is empty."""
        if self.corners is None:
            return None
        (x0, y0), (x1, y1) = self.corners
        left, right = _within(x0, x1, size[1])
        top, bottom = _within(y0, y1, size[0])
        if left == right or top == bottom:
            raise InteractionError("the box contains no pixel of the picture; draw it again")
        return Box(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class Interaction:
    """One request: an encoded picture and the prompts on it."""

    picture: bytes = field(repr=False)
    prompts: Prompts


def read_interaction(raw: bytes, max_points: int) -> Interaction:
    """The body of an invocation. Raises `InteractionError`."""
    try:
        with json_bodies.turn(len(raw)):
            body = json_bodies.loads(raw)
    except orjson.JSONDecodeError:
        raise InteractionError("the request is not JSON; is this address called by CVAT?") from None
    if not isinstance(body, dict):
        raise InteractionError("the request must be a JSON object with an image and points")
    if body.get("text_prompts"):
        raise InteractionError("SkipClick understands points and boxes, but not text; choose another model for text")
    prompts = Prompts(_points(body, "pos_points"), _points(body, "neg_points"), _corners(body.get("obj_bbox")))
    check_number(prompts, max_points)
    return Interaction(_picture(body.get("image")), prompts)


def check_number(prompts: Prompts, max_points: int) -> None:
    """Raise `InteractionError` if the object has more points than the server allows."""
    count = len(prompts.positive) + len(prompts.negative)
    if count > max_points:
        raise InteractionError(f"the object has {count} points, more than REQUEST_MAX_CLICKS={max_points} allows")


def describe_function(name: str, version: str, *, ready: bool, port: int) -> dict[str, Any]:
    """A function as Nuclio's dashboard describes it. CVAT needs each of these keys: without one it shows no model at
    all. Every annotation is a text; `startswith_box` must be absent, since any text there means yes."""
    annotations = {
        "name": "SkipClick" if name == FUNCTION else f"SkipClick ({name.removeprefix(f'{FUNCTION}-')})",
        "type": "interactor",
        "version": _INTERFACE,
        "spec": "[]",
        "framework": "pytorch",
        "min_pos_points": "1",
        "min_neg_points": "0",
        "startswith_box_optional": "true",
        "help_message": "Click on the object; the right button marks what does not belong to it. A box is optional.",
    }
    return {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"description": f"SkipClick {__version__}, weights {version}"},
        "status": {"state": "ready" if ready else "building", "httpPort": port},
    }


FUNCTION = "skipclick"
"""The function that uses the weights that the server was started with."""


def function_name(project: int | None) -> str:
    """The function that uses a project's fine-tuned weights."""
    return FUNCTION if project is None else f"{FUNCTION}-project-{project}"


def answer(mask: BoxMask, form: AnswerForm) -> dict[str, Any]:
    """A mask for CVAT's browser; in the form `mask`, NumPy rows, which orjson serializes. It has no confidence: below
    0.5 the browser would hide the mask."""
    if form == "mask":
        return {"mask": rows(mask)}
    return {"shapes": [] if mask.empty else [{"type": "mask", "points": run_lengths(mask), "attributes": []}]}


def _picture(text: Any) -> bytes:
    if not isinstance(text, str) or not text:
        raise InteractionError('the request has no picture: "image" must be its file in base64')
    try:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            return base64.b64decode("".join(text.split()), validate=True)  # broken into lines
    except ValueError:  # binascii.Error is one
        raise InteractionError('the picture cannot be read: "image" is not base64') from None


def _points(body: Mapping[str, Any], name: str) -> tuple[Point, ...]:
    points = body.get(name) or []
    if not isinstance(points, list):
        raise InteractionError(f'"{name}" must be a list of points [x, y]')
    return tuple(_point(point, name) for point in points)


def _corners(box: Any) -> tuple[Point, Point] | None:
    if not box:
        return None
    if not isinstance(box, list) or len(box) != 2:
        raise InteractionError('"obj_bbox" must be two corners [x, y]')
    return _point(box[0], "obj_bbox"), _point(box[1], "obj_bbox")


def _point(point: Any, name: str) -> Point:
    is_pair = isinstance(point, Sequence) and len(point) == 2 and all(type(one) in (int, float) for one in point)
    if not is_pair or not all(math.isfinite(one) and abs(one) < 1e9 for one in point):
        raise InteractionError(f'"{name}" contains something that is not a point [x, y] in pixels')
    return float(point[0]), float(point[1])


def _click(name: str, point: Point, size: tuple[int, int], *, positive: bool) -> SmartClick:
    x, y = (min(max(math.floor(one), 0), side - 1) for one, side in zip(point, (size[1], size[0]), strict=True))
    return SmartClick(name, x, y, positive)


def _within(one: float, other: float, side: int) -> tuple[float, float]:
    """Two ends in order, clipped to the range from 0 to `side`."""
    return min(max(min(one, other), 0.0), side), min(max(one, other, 0.0), side)
