"""Label Studio's requests as values and our values as its answers. No I/O: imports neither Flask nor torch.

What Label Studio sends, and what it does with answers, is not specified anywhere; the recorded requests
that the tests replay (`tests/fixtures/label_studio`) are the ground truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from backend.label_studio import json_bodies
from backend.label_studio.labeling_config import (
    PROMPT_KINDS,
    LabelingConfig,
    choose_mask_tag,
    image_reference,
    is_paged,
    parse_labeling_config,
    prompted_image,
    tag_of_label,
)
from backend.prompts import Box, ImageReference, SmartClick

if TYPE_CHECKING:
    from skipclick.strokes import Stroke

Json = Mapping[str, Any]
_MAX_ITEMS = 10_000  # of a context: the clicks on one object, and few others
_MAX_LABELS = 1000  # of a click
_LONGEST_NAME = 200  # of what is remembered or logged; Label Studio's have 10

KEYPOINT, RECTANGLE, BRUSH = "keypointlabels", "rectanglelabels", "brushlabels"
_SHAPES = ("keypoint", "rectangle", "ellipse", "polygon", "vector")
_DRAWN = {*_SHAPES, *(f"{shape}labels" for shape in _SHAPES)}
"""Types of what is drawn on an image and is not a mask."""
_HOLD_A_MASK = {"rle", "imageDataURL"}
_SIGNS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

Recall = Callable[[str, str], bool | None]
"""(task, keypoint id) -> the sign that the keypoint had in an earlier request, or None. See `task_key`."""

ReadStroke = Callable[[Json, bool, int, int], "Stroke"]
"""(region, sign, height, width) -> the painted stroke. Raises `ValueError` for one that does not fit."""

MAX_MASK_PIXELS = 400 << 20
"""Pixels of all masks together that are decoded for one request, and of all its strokes: a body has room for thousands,
and each takes milliseconds."""


class ProtocolError(ValueError):
    """The request is not one that Label Studio sends; the message says why."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request: clicks on one object, and pixels of the displayed image."""

    clicks: int = 100
    pixels: int = 80_000_000


@dataclass(frozen=True)
class RegionTarget:
    """Where in the annotation a mask belongs: kind and name of the control, the image's name, labels, and fields that
    the answer must repeat."""

    kind: str
    from_name: str
    to_name: str
    labels: tuple[str, ...]
    width: int
    height: int
    image_rotation: float = 0
    item_index: int | None = None


@dataclass(frozen=True)
class MaskRequest:
    """One object to segment: clicks in order, and the box it started with, if any. A stroke is represented by some
    clicks that have its id."""

    image: ImageReference
    clicks: tuple[SmartClick, ...]
    box: Box | None
    target: RegionTarget
    strokes: Mapping[str, Stroke] = field(default_factory=dict)
    """What was painted, by the id of its clicks."""

    @property
    def has_positive(self) -> bool:
        """Whether any prompt says where the object is; negative clicks alone only say where it is not."""
        return self.box is not None or any(click.positive for click in self.clicks)


@dataclass(frozen=True)
class PredictBody:
    """A /predict body, parsed but not yet interpreted. `context` is None unless an annotator asks for a mask."""

    tasks: tuple[Json, ...]
    project: str
    label_config: str
    context: tuple[Json, ...] | None
    start: str = ""
    """Sent by this server's page, not by Label Studio: the mask that the clicks correct, a PNG's data URL."""
    event: str = ""
    """What the next editor reports or asks, see `next_editor.py`; empty for clicks."""
    login: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SetupBody:
    """A /setup body: Label Studio connects, or checks the connection. `hostname` is what it calls itself."""

    project: str
    label_config: str
    hostname: str = ""


_RLE_KEY = b'"rle":'


def read_json(raw: bytes) -> Any:
    """The body's JSON, in which the list under an "rle" key is replaced by the text "first:last", its place in `raw`.

    Every click carries all masks of its task as lists of integers; turning them into Python integers costs 8 ms per MB,
    and hardly any is ever used. `region_rle` reads those that are. Texts are valid Unicode and numbers finite, see
    `json_bodies.py`, and nothing is nested deeper than 1024 levels. Raises `ProtocolError`.
    """
    with json_bodies.turn(len(raw)):
        if json_bodies.count(raw, _RLE_KEY) > json_bodies.MAX_CONTAINERS:  # before there is a piece of it for each
            raise ProtocolError(f"the body has more than {json_bodies.MAX_CONTAINERS:,} masks")
        try:
            return json_bodies.loads(_without_masks(raw))
        except orjson.JSONDecodeError:
            pass  # some "rle" was no list of numbers, or the body is broken anyway
        try:
            return json_bodies.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the body is not JSON: {error}") from None


def _without_masks(raw: bytes) -> bytes:
    pieces, position = [], 0
    while (key := json_bodies.find(raw, _RLE_KEY, position)) >= 0:
        first = key + len(_RLE_KEY)
        first += raw[first : first + 1] == b" "
        pieces.append(raw[position:first])
        position = first
        if raw[first : first + 1] == b"[":
            last = raw.find(b"]", first)
            if last < 0:
                break  # the list does not end
            pieces.append(b'"%d:%d"' % (first + 1, last))
            position = last + 1
    return b"".join([*pieces, raw[position:]]) if pieces else raw


def region_rle(region: Json, raw: bytes) -> list[int]:
    """The RLE of a region that `read_json` found in `raw`; empty if it has none or its values are not integers."""
    rle = _mapping(region.get("value")).get("rle")
    try:
        if isinstance(rle, str):
            first, last = rle.split(":")
            rle = raw[int(first) : int(last)].split(b",")
        return [int(byte) for byte in rle or ()]
    except (TypeError, ValueError, OverflowError):
        return []


def read_predict(body: Any) -> PredictBody:
    """A /predict body's parts. Raises `ProtocolError` for anything that no version of Label Studio sends."""
    body = _whole(body)
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ProtocolError('"tasks" must be a list of objects')
    for number, task in enumerate(tasks):
        _check_task(task, f"tasks[{number}]")
    params = _object(body, "params", "params")
    context = _object(params, "context", "params.context")
    # without a result, a task was opened or predictions are retrieved: nobody clicked
    items = tuple(_objects(context, "result", "params.context.result")) if "result" in context else None
    if items is not None and len(items) > _MAX_ITEMS:
        raise ProtocolError(f'"params.context.result" has {len(items)} items, more than {_MAX_ITEMS:,}')
    return PredictBody(
        tasks=tuple(tasks),
        project=name_of(body.get("project"), "project"),
        label_config=_text(body, "label_config", "label_config"),
        context=items,
        start=_text(context, "start", "params.context.start"),
        event=_text(context, "event", "params.context.event"),
        login=_text(params, "login", "params.login") or None,
        password=_text(params, "password", "params.password") or None,
    )


def read_setup(body: Any) -> SetupBody:
    """A /setup body's parts. Raises `ProtocolError`."""
    body = _whole(body)
    hostname = body.get("hostname")
    return SetupBody(
        project=name_of(body.get("project"), "project"),
        label_config=_text(body, "schema", "schema"),
        hostname=hostname if isinstance(hostname, str) else "",
    )


def read_webhook(body: Any) -> str:
    """The action that a /webhook body reports, such as "START_TRAINING". Raises `ProtocolError`."""
    return _text(_whole(body), "action", "action")


def project_number(name: object) -> int | None:
    """The project's id from a request's "project", such as "1.1795166086" (id and time of creation), 1, or an object
    with an "id"; None if there is none, as in requests that do not come from Label Studio."""
    if isinstance(name, dict):
        name = name.get("id")
    number = str(name).partition(".")[0] if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else None


def _check_task(task: Json, where: str) -> None:
    """Raise `ProtocolError` unless the fields of a task that are read later have the types that Label Studio sends."""
    name_of(task.get("id"), f"{where}.id")
    name_of(task.get("project"), f"{where}.project")
    _object(task, "data", f"{where}.data")
    for source in ("drafts", "annotations"):
        _objects(task, source, f"{where}.{source}")


def task_image(body: PredictBody, task: Json) -> ImageReference:
    """The image of a task: that of the first smart tag. Raises `ConfigError`."""
    config = _config(body, task)
    return _reference(body, task, config, prompted_image(config), None)


@dataclass(frozen=True)
class UntouchedTask:
    """A task that nobody has annotated: its only image, and where masks on it belong."""

    name: str
    """Of the task, unique in this Label Studio."""
    image: ImageReference
    to_name: str
    config: LabelingConfig

    def target(self, label: str, size: tuple[int, int]) -> RegionTarget | None:
        """Where a mask of a label belongs on the image of `size` (H, W); None if no mask tag has that label."""
        tag = tag_of_label(self.config, self.to_name, label)
        labels = (label,) if label else ()
        if tag is None:
            return None
        return RegionTarget(tag.kind, tag.name, self.to_name, labels, width=size[1], height=size[0])


def untouched_task(body: PredictBody) -> UntouchedTask | None:
    """The only task of a body, if nobody has annotated it and it shows one image and no pages. Raises `ConfigError`."""
    task = body.tasks[0]
    data = _object(task, "data", "data")
    config = _config(body, task)
    image = prompted_image(config)
    is_begun = any(_objects(task, source, source) for source in ("drafts", "annotations"))
    if len(body.tasks) > 1 or is_begun or is_paged(config, image, data):
        return None
    return UntouchedTask(task_key(task), _reference(body, task, config, image, None), image, config)


def mask_request(
    body: PredictBody, recall: Recall, limits: Limits = Limits(), read_stroke: ReadStroke | None = None
) -> MaskRequest | None:
    """The object that the clicks of `body.context` ask for, or None if none of them is a prompt.

    The object is that of the newest smart keypoint or rectangle: its label, its image, its kind of region. Items that
    share all of these are its prompts; everything else in the context is ignored. Of several rectangles the newest
    counts: the editor keeps sending the earlier ones, and each was drawn to start an object.

    A region of a smart BrushLabels tag is a stroke, positive unless it says otherwise; it belongs to the keypoints of
    its label. Without `read_stroke` strokes are ignored.

    A keypoint without `is_positive` was either made without the smart tool, so that it is an annotation and not a
    prompt, or it is a click that the editor restored after a reload, losing its sign. The sign of a restored click is
    in the draft or annotation that it was restored from, which comes with the request; once that has been saved again,
    only a server that saw the click before knows it (`recall`). A keypoint whose sign is found in neither is not a
    click, unless the context contains nothing but such keypoints: then all are positive.

    Raises `ConfigError` if the labeling config lacks what the answer needs, `ProtocolError` for malformed items, for
    more than `limits` allow, and if the context contains only clicks that cannot be used.
    """
    if not body.context:
        return None
    if len(body.tasks) != 1:
        raise ProtocolError(f"a request with clicks concerns one task, this one has {len(body.tasks)}")
    task = body.tasks[0]
    config = _config(body, task)
    prompts = [item for item in body.context if _is_prompt(item, config, with_strokes=read_stroke is not None)]
    if not prompts:
        _explain(body.context, config)
    signs = _signs(task, prompts, recall)
    prompts = [item for item in prompts if item["type"] != KEYPOINT or _id(item) in signs]
    if not prompts:
        return None
    newest = prompts[-1]
    group = [item for item in prompts if _are_of_one_object(item, newest)]
    if len(group) > limits.clicks:
        raise ProtocolError(f"an object has {len(group)} clicks, more than REQUEST_MAX_CLICKS={limits.clicks} allows")
    width, height = _size(newest, limits)
    painted = [item for item in group if item["type"] == BRUSH]
    if len(painted) * width * height > MAX_MASK_PIXELS:
        raise ProtocolError(f"{len(painted)} strokes are more than a photo of {width} x {height} pixels can have")
    strokes = {_id(item): _stroke(item, read_stroke, width, height) for item in painted if read_stroke is not None}
    tag, image, item_index, _ = _group(newest)
    mask_tag, labels = choose_mask_tag(config, config.controls[tag], image, _labels(newest))
    return MaskRequest(
        image=_reference(body, task, config, image, item_index),
        clicks=tuple(click for item in group for click in _clicks(item, signs, strokes, width, height)),
        strokes=strokes,
        box=percent_box(newest, width, height) if newest["type"] == RECTANGLE else None,
        target=RegionTarget(
            kind=mask_tag.kind,
            from_name=mask_tag.name,
            to_name=image,
            labels=labels,
            width=width,
            height=height,
            image_rotation=_image_rotation(newest),
            item_index=item_index,
        ),
    )


def saved_results(task: Json) -> Iterator[Sequence[Json]]:
    """The result lists that Label Studio has stored for a task: the requesting user's drafts, then all annotations."""
    for source in ("drafts", "annotations"):
        for saved in _objects(task, source, source):
            result = saved.get("result")
            if isinstance(result, list):
                yield [item for item in result if isinstance(item, dict)]


def empty_response(model_version: str) -> dict[str, Any]:
    """The answer "no mask" to clicks. Not for a request without context: Label Studio would store it as a
    prediction."""
    return {"results": [{"result": [], "score": 0.0, "model_version": model_version}]}


def one_by_one(model_version: str) -> dict[str, Any]:
    """The answer to several tasks that makes Label Studio send each of them alone, with its own time limit: a single
    result, which it does not store. An answer to all would be lost after 100 seconds."""
    return empty_response(model_version)


def nothing_to_store() -> dict[str, Any]:
    """The answer to opened tasks and to "retrieve predictions": Label Studio stores nothing and asks again next
    time."""
    return {"results": []}


def _whole(body: Any) -> Json:
    if not isinstance(body, dict):
        raise ProtocolError("the body must be a JSON object")
    return body


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _object(parent: Json, name: str, where: str) -> Json:
    """The object at `name`; empty if there is none. Raises `ProtocolError`, like the functions after it."""
    value = parent.get(name)
    if not value:
        return {}
    if not isinstance(value, dict):
        raise ProtocolError(f'"{where}" must be an object')
    return value


def _objects(parent: Json, name: str, where: str) -> list[Json]:
    """The objects of the list at `name`; empty if there is none."""
    value = parent.get(name)
    if not value:
        return []
    if not isinstance(value, list):
        raise ProtocolError(f'"{where}" must be a list of objects')
    return [one for one in value if isinstance(one, dict)]


def _text(parent: Json, name: str, where: str) -> str:
    """The text at `name`; empty if there is none."""
    value = parent.get(name)
    if value is not None and not isinstance(value, str):
        raise ProtocolError(f'"{where}" must be a text')
    return value or ""


def name_of(value: Any, where: str) -> str:
    """An id or name, a number or a text, as a text; empty for None. Raises `ProtocolError`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
        raise ProtocolError(f'"{where}" must be a number or a text')
    name = "" if value is None else str(value)
    if len(name) > _LONGEST_NAME:
        raise ProtocolError(f'"{where}" has {len(name)} characters, more than {_LONGEST_NAME}')
    return name


def _id(item: Json) -> str:
    return name_of(item.get("id"), "id")


def _config(body: PredictBody, task: Json) -> LabelingConfig:
    return parse_labeling_config(body.label_config).for_task(_object(task, "data", "data"))


def _is_prompt(item: Json, config: LabelingConfig, with_strokes: bool) -> bool:
    """Whether an item is a keypoint, rectangle or stroke of a control of the config, and complete."""
    name = item.get("from_name")
    control = config.controls.get(name) if isinstance(name, str) else None
    if with_strokes and item.get("type") == BRUSH and control is not None and control.kind == BRUSH and control.smart:
        value = _mapping(item.get("value"))
        return item.get("to_name") in control.to_names and "rle" in value and BRUSH in value
    return (
        item.get("type") in (KEYPOINT, RECTANGLE)
        and control is not None
        and control.kind == item["type"]
        and item.get("to_name") in control.to_names
        and (bool(_mapping(item.get("value")).get(item["type"])) or _is_unlabelled(item))
        and not _HOLD_A_MASK & item["value"].keys()  # a mask region that also has the keypoint's label
    )


def _is_unlabelled(item: Json) -> bool:
    """Whether an item is a click made without choosing a label, which tags with allowEmpty permit."""
    return _mapping(item.get("value")).get(str(item.get("type"))) == []


def _explain(context: Sequence[Json], config: LabelingConfig) -> None:
    """Raise `ProtocolError` if the newest region of a context without prompts is a click: otherwise nobody would see
    why there is no mask. Items of other kinds, such as choices, are not clicks."""
    clicks = [item for item in context if _is_region(item)]
    if not clicks:
        return
    item = clicks[-1]
    name, kind, image = (str(item.get(key))[:_LONGEST_NAME] for key in ("from_name", "type", "to_name"))
    control = config.controls.get(name)
    other = "image" if name in config.images else config.other_tags.get(name)
    usable = f"this server takes clicks of {' and '.join(PROMPT_KINDS.values())} tags"
    if control is None and other is None:
        known = ", ".join(one.name for one in config.controls.values() if one.kind in PROMPT_KINDS) or "none"
        why = f'the labeling config of the request has no tag named "{name}"; its tags for clicks: {known}'
    elif control is None or control.kind not in PROMPT_KINDS:
        why = f'"{name}" is a tag of another kind ({other or (control and control.kind)}); {usable}'
    elif control.kind != kind:
        why = f'the {control.title} does not create items of type "{kind}"; {usable}'
    elif image not in control.to_names:
        why = f'the {control.title} is for the image "{", ".join(control.to_names)}", not for "{image}"'
    else:
        why = f'its "value" lacks the list "{kind}" of its labels'
    raise ProtocolError(f"a click cannot be used: {why}")


def _is_region(item: Json) -> bool:
    """Whether an item was drawn on an image as a prompt, not a mask or an answer such as choices."""
    is_drawn = item.get("type") in _DRAWN if isinstance(item.get("type"), str) else False
    return (is_drawn or "is_positive" in item) and not _HOLD_A_MASK & _mapping(item.get("value")).keys()


def _labels(item: Json) -> tuple[str, ...]:
    """All labels of a click, in order."""
    labels = item["value"][item["type"]]
    labels = labels if isinstance(labels, list) else [labels]
    if len(labels) > _MAX_LABELS:
        raise ProtocolError(f"a {item['type']} item has {len(labels)} labels, more than {_MAX_LABELS:,}")
    if not all(isinstance(label, str) for label in labels):
        raise ProtocolError(f'the labels in "value.{item["type"]}" of a {item["type"]} item must be texts')
    return tuple(labels)


def _group(item: Json) -> tuple[str, str, int | None, str]:
    """What the prompts of one object have in common: control, image, page of a multi-page image, and, as in the editor,
    the first label."""
    page = item.get("item_index")
    if page is not None and (isinstance(page, bool) or not isinstance(page, int) or page < 0):
        raise ProtocolError(f'"item_index" of a {item["type"]} item must be a number that is not negative')
    return item["from_name"], item["to_name"], page, next(iter(_labels(item)), "")


def _are_of_one_object(one: Json, other: Json) -> bool:
    """Whether two prompts belong to one object: strokes and keypoints go together, whatever their tags are named."""
    (tag, *place), (other_tag, *other_place) = _group(one), _group(other)
    return place == other_place and (tag == other_tag or {one["type"], other["type"]} == {KEYPOINT, BRUSH})


def _signs(task: Json, prompts: Sequence[Json], recall: Recall) -> dict[str, bool]:
    """Signs of the keypoints that are clicks, by id."""
    keypoints = [item for item in prompts if item["type"] == KEYPOINT]
    signs = {_id(item): sign for item in keypoints if (sign := _sign(item)) is not None}
    unsigned = {_id(item) for item in keypoints} - signs.keys()
    if not unsigned:
        return signs
    for result in saved_results(task):
        for item in result:
            sign = readable_sign(item)[0]
            if sign is not None and (keypoint_id := _id(item)) in unsigned:
                signs.setdefault(keypoint_id, sign)
    for keypoint_id in unsigned - signs.keys():
        remembered = recall(task_key(task), keypoint_id)
        if remembered is not None:
            signs[keypoint_id] = remembered
    return signs or dict.fromkeys(unsigned, True)


def _sign(item: Json) -> bool | None:
    """The sign of a click, None if it has none. Raises `ProtocolError` for one that cannot be read: a wrong guess would
    turn the mask into its opposite."""
    sign, unreadable = readable_sign(item)
    if unreadable:
        raise ProtocolError(f'"{unreadable}" of a {item["type"]} item must be true or false')
    return sign


def readable_sign(item: Json) -> tuple[bool | None, str]:
    """The sign of an item, and the name of the field that should hold it but cannot be read.

    The current editor writes `is_positive` beside the value, the next one `value.positive`; if both are present, the
    first counts. 0 and 1, and texts that spell either, are signs too; null is none.
    """
    fields = {"is_positive": item.get("is_positive"), "value.positive": _mapping(item.get("value")).get("positive")}
    for name, given in fields.items():
        if given is None:
            continue
        spelled = str(given).strip().lower() if isinstance(given, (str, int, float)) else ""
        return (_SIGNS[spelled], "") if spelled in _SIGNS else (None, name)
    return None, ""


def task_key(task: Json) -> str:
    """The task's name in the memory of signs."""
    return f"{name_of(task.get('project'), 'project')}/{name_of(task.get('id'), 'id')}"


def _size(item: Json, limits: Limits) -> tuple[int, int]:
    width, height = item.get("original_width"), item.get("original_height")
    if not isinstance(width, int) or not isinstance(height, int) or width < 1 or height < 1:
        raise ProtocolError("a click lacks original_width and original_height, the size of the displayed image")
    if width * height > limits.pixels:
        raise ProtocolError(
            f"original_width x original_height are {width} x {height} pixels, more than "
            f"IMAGE_MAX_PIXELS={limits.pixels} allows"
        )
    return width, height


def _image_rotation(item: Json) -> float:
    rotation = item.get("image_rotation") or 0
    if not isinstance(rotation, (int, float)):
        raise ProtocolError(f'"image_rotation" of a {item["type"]} item must be a number')
    return rotation


def _stroke(item: Json, read_stroke: ReadStroke, width: int, height: int) -> Stroke:
    try:
        return read_stroke(item, _sign(item) is not False, height, width)
    except ProtocolError:
        raise
    except ValueError as error:
        raise ProtocolError(f"a stroke cannot be read: {error}") from None


def _clicks(
    item: Json, signs: Mapping[str, bool], strokes: Mapping[str, Stroke], width: int, height: int
) -> Iterator[SmartClick]:
    if item["type"] == KEYPOINT:
        yield _click(item, signs, width, height)
    elif item["type"] == BRUSH:
        for click in strokes[_id(item)].clicks():
            yield SmartClick(_id(item), int(click.x), int(click.y), click.positive)


def _click(item: Json, signs: Mapping[str, bool], width: int, height: int) -> SmartClick:
    keypoint_id, sign = _id(item), _sign(item)
    return SmartClick(
        id=keypoint_id,
        x=percent_pixel(number_of(item, "x"), width),
        y=percent_pixel(number_of(item, "y"), height),
        positive=signs[keypoint_id] if sign is None else sign,
    )


def percent_pixel(percent: float, size: int) -> int:
    """The pixel at `percent` of a side of `size` pixels; the far edge belongs to the last pixel."""
    return min(max(int(percent / 100 * size), 0), size - 1)


def percent_box(item: Json, width: int, height: int) -> Box:
    """A rectangle item's box on an image of this size in pixels. Raises `ProtocolError`."""
    return Box(
        x=number_of(item, "x") / 100 * width,
        y=number_of(item, "y") / 100 * height,
        width=number_of(item, "width") / 100 * width,
        height=number_of(item, "height") / 100 * height,
        rotation=number_of(item, "rotation") if item["value"].get("rotation") else 0.0,
    )


def number_of(item: Json, name: str) -> float:
    """A number of an item's value. Raises `ProtocolError`."""
    value = item["value"].get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:  # also refuses NaN
        raise ProtocolError(f'a {item["type"]} item lacks the number "{name}" in its value')
    return float(value)


def _reference(body: PredictBody, task: Json, config: LabelingConfig, image: str, index: int | None) -> ImageReference:
    task_id = task.get("id")
    return ImageReference(
        url=image_reference(config, image, _object(task, "data", "data"), index),
        task_id=task_id if isinstance(task_id, int) else None,
        login=body.login,
        password=body.password,
    )
