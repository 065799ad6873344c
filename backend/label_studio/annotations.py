"""What Label Studio says about annotations, as values: bodies of its webhook and tasks of its REST interface. No I/O.

What counts as an object is defined in `skipclick.evaluation.datasets.label_studio`, which exports use too, so that
training sees the same objects here and from an export; the labeling config adds which image a region lies on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from backend.label_studio.labeling_config import ConfigError, LabelingConfig, image_reference, parse_labeling_config
from backend.label_studio.protocol import region_rle
from skipclick.evaluation.datasets import label_studio
from skipclick.evaluation.datasets.label_studio import Annotation, Json, Reason, json_objects, mapping, number, text
from skipclick.evaluation.datasets.left_out import UnusableError

__all__ = [
    "Annotation",
    "Event",
    "Reason",
    "UnusableError",
    "event_project",
    "num_annotations",
    "read_annotation",
    "read_event",
    "read_task",
]

_SAVED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
_DELETED = ("ANNOTATIONS_DELETED",)
_TASKS_DELETED = ("TASKS_DELETED",)


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
    return number(project.get("id")) if isinstance(project, dict) else None


def num_annotations(body: Any) -> int:
    """How many annotations a /webhook body holds."""
    return len(json_objects(mapping(body).get("annotation")))


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
    tasks = {number(task.get("id")): task for task in json_objects(body.get("task"))}
    config = _config(mapping(body.get("project")).get("label_config"))
    annotations = [
        read_annotation(annotation, mapping(tasks.get(number(annotation.get("task"))) or {}), config, raw)
        for annotation in json_objects(body.get("annotation"))
    ]
    return Event(saved=tuple(annotation for annotation in annotations if annotation is not None))


def read_task(task: Json, config: LabelingConfig) -> tuple[Annotation, ...]:
    """The annotations of a task as `GET /api/tasks/?fields=all` gives it."""
    annotations = [
        read_annotation({"task": task.get("id"), **annotation}, task, config)
        for annotation in json_objects(task.get("annotations"))
    ]
    return tuple(annotation for annotation in annotations if annotation is not None)


def read_annotation(annotation: Json, task: Json, config: LabelingConfig, raw: bytes = b"") -> Annotation | None:
    """An annotation with its objects; None if it lacks its own or its task's id."""
    if number(annotation.get("id")) is None or number(annotation.get("task")) is None:
        return None
    data = mapping(task.get("data"))
    image_of: label_studio.ImageOf
    try:
        image_of = partial(_image_of, config.for_task(data), data)
    except ConfigError:
        image_of = _no_image
    return label_studio.read_annotation(annotation, image_of, lambda region: region_rle(region, raw))


def _no_image(to_name: str, item_index: int | None) -> None:
    """For a task whose data do not fit the labeling config."""


def _image_of(config: LabelingConfig, data: Json, to_name: str, item_index: int | None) -> str | None:
    try:
        return image_reference(config, to_name, data, item_index)
    except ConfigError:
        return None


def _config(xml: Any) -> LabelingConfig:
    """The labeling config; one without images if it cannot be read."""
    try:
        return parse_labeling_config(text(xml))
    except ConfigError:
        return LabelingConfig({}, {})


def _ids(items: Any) -> tuple[int, ...]:
    ids = (number(item.get("id")) for item in json_objects(items))
    return tuple(one for one in ids if one is not None)
