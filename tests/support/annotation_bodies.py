"""Webhook bodies and tasks in the form of the recorded ones (fixtures/label_studio), with drawn masks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.label_studio.labeling_config import EXAMPLE
from skipclick import brush_rle

CONFIG = EXAMPLE.replace('<Label value="Object" background="#1e88e5"/>', '<Label value="Ski"/><Label value="Helmet"/>')
HEIGHT, WIDTH = 30, 40


def drawn(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    """A rectangle, bool (HEIGHT, WIDTH)."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def region(region_id: str, mask: NDArray[np.bool_], label: str = "Ski", **changes: Any) -> dict[str, Any]:
    """A brush region of an annotation's result."""
    return {
        "id": region_id,
        "type": "brushlabels",
        "from_name": "mask",
        "to_name": "image",
        "origin": "manual",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]},
    } | changes


def annotation(number: int, task: int, result: Any, seconds: int = 0, **changes: Any) -> dict[str, Any]:
    """An annotation, last changed `seconds` after noon."""
    return {
        "id": number,
        "task": task,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": f"2026-11-20T12:{seconds // 60:02}:{seconds % 60:02}.000000Z",
    } | changes


def task(number: int, *annotations: dict[str, Any]) -> dict[str, Any]:
    """A task as the REST interface gives it with fields=all."""
    return {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}, "annotations": list(annotations)}


def photographed_task(number: int) -> tuple[dict[str, Any], bytes]:
    """A task with the mask of a bright square, and its picture (128 x 96 pixels) as a PNG file."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
    mask = np.zeros((96, 128), np.bool_)
    top, left = rng.integers(8, 40, 2)
    mask[top : top + 44, left : left + 52] = True
    image[mask] += 140
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return task(number, annotation(number, number, [region("a", mask)])), file.getvalue()


def project(number: int) -> dict[str, Any]:
    return {"id": number, "title": f"project {number}", "label_config": CONFIG}


def saved(one: dict[str, Any], project_id: int = 1, action: str = "ANNOTATION_CREATED") -> dict[str, Any]:
    """The body that tells of a created or updated annotation."""
    shown = {name: value for name, value in task(one["task"]).items() if name != "annotations"}
    return {"action": action, "annotation": one, "task": shown, "project": project(project_id)}


def deleted(*numbers: int, project_id: int = 1) -> dict[str, Any]:
    """The body that tells of deleted annotations."""
    annotations = [{"id": number} for number in numbers]
    return {"action": "ANNOTATIONS_DELETED", "annotations": annotations, "project": project(project_id)}
