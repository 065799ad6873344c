"""What Label Studio says about annotations, as values: bodies of its webhook and tasks of its REST interface. No I/O.

What counts as an object:

* a brush region (`type` is "brushlabels" or "brush" and it has an RLE); keypoints left over in an annotation and copies
  of a mask under another type do not, and of several results with one region id the first one does;
* regions that the annotator put under another one (`parentID`) are further pieces of it if they have its label.

What does not become an object is counted with its `Reason`. No annotation is ever an error: one that makes no sense at
all is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.label_studio.labeling_config import ConfigError, LabelingConfig, image_reference, parse_labeling_config
from backend.label_studio.protocol import Json, region_rle
from skipclick import brush_rle

_SAVED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
_DELETED = ("ANNOTATIONS_DELETED",)
_TASKS_DELETED = ("TASKS_DELETED",)
_BRUSH_TYPES = ("brushlabels", "brush")
_HALF_COVERED = 128  # alpha from which on a pixel is the object's; hand-drawn edges have values in between
_LARGEST_ID = (1 << 63) - 1


class Reason(StrEnum):
    """Why an annotation, or an object in it, is not learnt from."""

    CANCELLED = "the annotator skipped the task"
    NO_REGION = "the annotation has no brush region"
    NO_IMAGE = "the task's data hold no image for the region"
    EMPTY = "the mask is empty"
    WRONG_SIZE = "the mask does not have the size of its image"
    TOO_LARGE = "the mask is larger than IMAGE_MAX_PIXELS"
    UNDECODABLE = "the mask cannot be decoded"


class UnusableError(ValueError):
    """An object has no usable mask, for its `reason`."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Piece:
    """A brush region: its RLE and the size (H, W) that it claims."""

    rle: Sequence[int] = field(repr=False)
    size: tuple[int, int]


@dataclass(frozen=True)
class AnnotatedObject:
    """One object: the id of its (first) region, its label, the image's reference as in the task, and its pieces."""

    region: str
    label: str | None
    image: str
    pieces: tuple[Piece, ...]

    def mask(self, max_pixels: int) -> NDArray[np.bool_]:
        """What its pieces cover together, bool (H, W). Raises `UnusableError`."""
        size = self.pieces[0].size
        if any(piece.size != size for piece in self.pieces) or min(size) < 1:
            raise UnusableError(Reason.WRONG_SIZE)
        if size[0] * size[1] > max_pixels:
            raise UnusableError(Reason.TOO_LARGE)
        mask = np.zeros(size, np.bool_)
        for piece in self.pieces:
            mask |= _decoded(piece)
        if not mask.any():
            raise UnusableError(Reason.EMPTY)
        return mask


@dataclass(frozen=True)
class Annotation:
    """An annotation as far as it can be learnt from. `updated_at` is UTC in ISO format with microseconds, so that texts
    compare as times do; empty if Label Studio does not say."""

    id: int
    task: int
    updated_at: str
    ground_truth: bool
    objects: tuple[AnnotatedObject, ...]
    skipped: Mapping[Reason, int]


@dataclass(frozen=True)
class Event:
    """What changed: annotations as they are now, ids of deleted annotations, ids of deleted tasks."""

    saved: tuple[Annotation, ...] = ()
    deleted: tuple[int, ...] = ()
    deleted_tasks: tuple[int, ...] = ()


def event_project(body: Any) -> int | None:
    """The project whose annotations a /webhook body is about; None for all other bodies."""
    if not isinstance(body, dict) or body.get("action") not in (*_SAVED, *_DELETED, *_TASKS_DELETED):
        return None
    project = body.get("project")
    return _number(project.get("id")) if isinstance(project, dict) else None


def read_event(body: Json, raw: bytes = b"") -> Event:
    """What a /webhook body says. `raw` is needed if `body` comes from `protocol.read_json`, which leaves RLEs there."""
    action = body.get("action")
    if action in _DELETED:
        return Event(deleted=_ids(body.get("annotations")))
    if action in _TASKS_DELETED:
        return Event(deleted_tasks=_ids(body.get("tasks")))
    if action not in _SAVED:
        return Event()
    # bulk events have lists under the same names
    tasks = {_number(task.get("id")): task for task in _objects(body.get("task"))}
    config = _config(_mapping(body.get("project")).get("label_config"))
    annotations = [
        read_annotation(annotation, _mapping(tasks.get(_number(annotation.get("task"))) or {}), config, raw)
        for annotation in _objects(body.get("annotation"))
    ]
    return Event(saved=tuple(annotation for annotation in annotations if annotation is not None))


def read_task(task: Json, config: LabelingConfig) -> tuple[Annotation, ...]:
    """The annotations of a task as `GET /api/tasks/?fields=all` gives it."""
    annotations = [
        read_annotation({"task": task.get("id"), **annotation}, task, config)
        for annotation in _objects(task.get("annotations"))
    ]
    return tuple(annotation for annotation in annotations if annotation is not None)


def read_annotation(annotation: Json, task: Json, config: LabelingConfig, raw: bytes = b"") -> Annotation | None:
    """An annotation with its objects; None if it lacks its own or its task's id."""
    annotation_id, task_id = _number(annotation.get("id")), _number(annotation.get("task"))
    if annotation_id is None or task_id is None:
        return None
    skipped: Counter[Reason] = Counter()
    objects: tuple[AnnotatedObject, ...] = ()
    regions = _brush_regions(annotation.get("result"))
    if annotation.get("was_cancelled"):
        skipped[Reason.CANCELLED] = 1
    elif not regions:
        skipped[Reason.NO_REGION] = 1
    else:
        objects = tuple(_annotated_objects(regions, _mapping(task.get("data")), config, raw, skipped))
    return Annotation(
        id=annotation_id,
        task=task_id,
        updated_at=_moment(annotation.get("updated_at")),
        ground_truth=annotation.get("ground_truth") is True,
        objects=objects,
        skipped=skipped,
    )


def _brush_regions(result: Any) -> dict[str, Json]:
    """Brush regions by id, in order."""
    regions: dict[str, Json] = {}
    for item in _objects(result):
        if (
            item.get("type") in _BRUSH_TYPES
            and "rle" in _mapping(item.get("value"))
            and isinstance(item.get("id"), str)
        ):
            regions.setdefault(item["id"], item)
    return regions


def _annotated_objects(
    regions: Mapping[str, Json], data: Json, config: LabelingConfig, raw: bytes, skipped: Counter[Reason]
) -> Iterator[AnnotatedObject]:
    """Regions joined to objects; those without an image go to `skipped`."""
    pieces: dict[str, list[Json]] = {}
    for region_id, region in regions.items():
        pieces.setdefault(_first_piece(region_id, regions), []).append(region)
    try:
        config = config.for_task(data)
    except ConfigError:
        skipped[Reason.NO_IMAGE] += len(pieces)
        return
    for region_id, members in pieces.items():
        first = regions[region_id]
        try:
            image = image_reference(config, _text(first.get("to_name")), data, _number(first.get("item_index")))
        except ConfigError:
            skipped[Reason.NO_IMAGE] += 1
            continue
        yield AnnotatedObject(region_id, _label(first), image, tuple(_piece(member, raw) for member in members))


def _first_piece(region_id: str, regions: Mapping[str, Json]) -> str:
    """The region at the top of the pieces that a region belongs to."""
    path = [region_id]
    while True:
        region = regions[path[-1]]
        parent_id = _text(region.get("parentID"))
        parent = regions.get(parent_id)
        if parent is None or _belonging(parent) != _belonging(region):
            return path[-1]
        if parent_id in path:
            return min(path[path.index(parent_id) :])  # a circle has no top
        path.append(parent_id)


def _belonging(region: Json) -> tuple[list[str], Any, Any]:
    return _labels(region), region.get("to_name"), region.get("item_index")


def _label(region: Json) -> str | None:
    return next(iter(_labels(region)), None)


def _labels(region: Json) -> list[str]:
    labels = _mapping(region.get("value")).get("brushlabels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def _piece(region: Json, raw: bytes) -> Piece:
    height, width = _number(region.get("original_height")), _number(region.get("original_width"))
    return Piece(region_rle(region, raw), (height or 0, width or 0))


def _decoded(piece: Piece) -> NDArray[np.bool_]:
    height, width = piece.size
    announced = int.from_bytes(bytes(piece.rle[:4]), "big") if _are_bytes(piece.rle[:4]) else None
    try:
        return np.asarray(brush_rle.decode(piece.rle, height, width) >= _HALF_COVERED)
    except ValueError:
        of_other_size = len(piece.rle) >= 8 and announced not in (None, 4 * height * width)
        raise UnusableError(Reason.WRONG_SIZE if of_other_size else Reason.UNDECODABLE) from None


def _are_bytes(values: Sequence[int]) -> bool:
    return all(0 <= value <= 255 for value in values)


def _config(xml: Any) -> LabelingConfig:
    """The labeling config; one without images if it cannot be read."""
    try:
        return parse_labeling_config(_text(xml))
    except ConfigError:
        return LabelingConfig({}, {})


def _ids(items: Any) -> tuple[int, ...]:
    numbers = (_number(item.get("id")) for item in _objects(items))
    return tuple(number for number in numbers if number is not None)


def _objects(value: Any) -> list[Json]:
    """The objects in a list, or a single one as a list."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int | None:
    """A whole number from 0 on that a database can hold."""
    return value if type(value) is int and 0 <= value <= _LARGEST_ID else None


def _moment(text: Any) -> str:
    try:
        moment = datetime.fromisoformat(_text(text))
        return moment.astimezone(UTC).isoformat(timespec="microseconds") if moment.tzinfo else ""
    except (ValueError, OverflowError):
        return ""
