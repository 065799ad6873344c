"""Label Studio's exports of type JSON and JSON-MIN with masks, beside a folder of the photos.

What is an object and which annotation counts: see `label_studio.py`. JSON-MIN knows neither nested regions nor which
annotation is ground truth.

Which photo belongs to a region: the one of the same file name anywhere below the folder. An upload is found under its
own name and under the name it had before, without the random prefix ("25f393b5-skis.jpg" is "skis.jpg"). Where
several photos have the name, the one whose folders agree with the task's address.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.agreement import choose
from skipclick.evaluation.datasets.annotation_file import find_annotations, read_json
from skipclick.evaluation.datasets.image_mask_folders import IMAGE_SUFFIXES
from skipclick.evaluation.datasets.label_studio import (
    MASK_FIELDS,
    AnnotatedObject,
    Annotation,
    Json,
    Reason,
    json_objects,
    mapping,
    mask_shape,
    read_annotation,
    text,
)
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, UnusableError, describe_left_out
from skipclick.evaluation.datasets.sample import Content, Photo, mask_targets, read_photo
from skipclick.masks import BoxMask

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")

MAX_PIXELS = 80_000_000
"""Larger masks are not decoded; the server's default too."""

_KINDS_OF_MIN = {**MASK_FIELDS, "radiusX": "ellipse"}
"""The kind of a region by a field of its value: JSON-MIN has no types."""

NO_TASK = "the entry is not a task with annotations"
NO_ANNOTATION = "the task has no annotation"
NOT_CHOSEN = "another annotation of the task counts: the ground truth, else the one most agree with, else the oldest"
NO_PHOTO = "no photo below the folder has the name that the task gives"
SEVERAL_PHOTOS = "several photos below the folder have the name that the task gives"


@dataclass(frozen=True)
class Task:
    """An entry of an export, or the entries of JSON-MIN for one task."""

    name: str
    data: Json
    file_upload: str
    annotations: tuple[Json, ...]


def list_label_studio(given: Path) -> Listing[Photo]:
    """The photos with objects in the order of the export; a name is the task's id and the photo's name."""
    file, images = find_annotations(given)
    left_out: list[LeftOut] = []
    entries = read_json(file)
    tasks = _tasks(entries[0] if len(entries) == 1 and isinstance(entries[0], list) else entries, left_out)
    if not tasks:
        raise ValueError(f"{file} is not a Label Studio export of type JSON or JSON-MIN, a list of tasks")
    photos_by_name = _photos_by_name(images)
    photos = [photo for task in tasks for photo in _photos(task, photos_by_name, left_out)]
    if not photos:
        why = "".join(f"; {line}" for line in describe_left_out(left_out))
        raise ValueError(f"{file} has no annotation with a mask on a photo{why}")
    return Listing(_with_unique_names(photos), left_out)


def _with_unique_names(photos: list[Photo]) -> list[Photo]:
    names = Counter(photo.name for photo in photos)
    taken: Counter[str] = Counter()
    for index, photo in enumerate(photos):
        taken[photo.name] += 1
        if names[photo.name] > 1:
            photos[index] = replace(photo, name=f"{photo.name}-{taken[photo.name]}")
    return photos


def _tasks(entries: Sequence[Any], left_out: list[LeftOut]) -> list[Task]:
    tasks: dict[str, Task] = {}
    for index, entry in enumerate(entries):
        name = _name(entry, index)
        if isinstance(entry, dict) and isinstance(entry.get("annotations"), list):
            annotations = tuple(json_objects(entry["annotations"]))
            # By its place: two tasks that share an id are still two.
            tasks[f"task {index}"] = Task(
                name, mapping(entry.get("data")), str(entry.get("file_upload") or ""), annotations
            )
        elif isinstance(entry, dict) and "annotation_id" in entry:
            known = tasks.get(name)
            annotations = (*(known.annotations if known else ()), _annotation_of_min(entry))
            tasks[name] = Task(name, entry, "", annotations)
        else:
            left_out.append(LeftOut(NO_TASK, f"entry {index}"))
    for task in tasks.values():
        if not task.annotations:
            left_out.append(LeftOut(NO_ANNOTATION, f"task {task.name}"))
    return list(tasks.values())


def _name(entry: Any, index: int) -> str:
    """The task's id or, if it has none, its place."""
    task_id = entry.get("id") if isinstance(entry, dict) else None
    return str(task_id) if isinstance(task_id, (int, str)) and str(task_id) else f"entry{index}"


def _annotation_of_min(entry: Json) -> Json:
    """The annotation of a JSON-MIN entry: its regions stand under the names of the tags that made them."""
    result = [
        {
            "id": f"{tag}-{index}",
            "type": next((kind for name, kind in _KINDS_OF_MIN.items() if name in value), ""),
            "original_width": value.get("original_width"),
            "original_height": value.get("original_height"),
            "value": value,
        }
        for tag, values in entry.items()
        if isinstance(values, list)
        for index, value in enumerate(json_objects(values))
    ]
    return {
        "id": entry.get("annotation_id"),
        "updated_at": entry.get("updated_at"),
        "completed_by": entry.get("annotator"),
        "result": result,
    }


def _photos(task: Task, photos_by_name: dict[str, list[Path]], left_out: list[LeftOut]) -> Iterator[Photo]:
    """A photo for each image of the task that has objects; which annotation counts is decided when they are read."""
    where = f"task {task.name}"
    annotations = [read_annotation(annotation, partial(_address, task)) for annotation in task.annotations]
    for annotation in annotations:
        left_out += [LeftOut(reason, where, count) for reason, count in annotation.skipped.items()]
    candidates = [one for one in annotations if one.objects]
    for address in dict.fromkeys(one.image for annotation in candidates for one in annotation.objects):
        path = PurePosixPath(address)
        matching = _matching(path, photos_by_name)
        if len(matching) == 1:
            yield Photo(f"{task.name}-{path.stem}", partial(_read, matching[0], where, address, tuple(candidates)))
        else:
            found = "".join(f", {photo}" for photo in matching)
            left_out.append(LeftOut(SEVERAL_PHOTOS if matching else NO_PHOTO, f"{where}, {address}{found}"))


def _address(task: Task, to_name: str, index: int | None) -> str | None:
    """Path of the photo that a region lies on, as far as the task's data tell; None where it may be one of several.

    The labeling config, which says which of the data an image tag shows, is not in the export.
    """
    addresses = {key: path for key, value in task.data.items() if (path := _path(value, index))}
    if to_name in addresses:
        return addresses[to_name]
    if len(addresses) > 1 and len(_image_tags(task)) > 1:
        return None
    return addresses.get("image") or next(iter(addresses.values()), None) or task.file_upload or None


def _image_tags(task: Task) -> set[str]:
    regions = (region for annotation in task.annotations for region in json_objects(annotation.get("result")))
    return {text(region.get("to_name")) for region in regions if mask_shape(region)}


def _path(value: Any, index: int | None) -> str | None:
    """The path in an address of a picture, or in one of a list of them; None for all else."""
    if isinstance(value, list):
        value = value[index or 0] if (index or 0) < len(value) else None
    if not isinstance(value, str):
        return None
    try:
        parts = urlsplit(value)
    except ValueError:
        return None
    local_file = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/photo.jpg
    path = local_file[0] if local_file else unquote(parts.path)
    path = path.replace("\\", "/")
    return path if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES else None


def _photos_by_name(folder: Path) -> dict[str, list[Path]]:
    photos = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos[_saved_name(path.name)].append(path)
    return photos


def _saved_name(name: str) -> str:
    """A file name as Label Studio (Django's `get_valid_filename`) saves an upload, but for the random prefix."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _matching(address: PurePosixPath, photos_by_name: dict[str, list[Path]]) -> list[Path]:
    """The photos that an address may mean: those that share most of its folders, counted from the file up."""
    name = _saved_name(address.name)
    candidates = photos_by_name.get(name) or photos_by_name.get(UPLOAD_PREFIX.sub("", name), [])
    folders = [_common_length(address.parts[-2::-1], path.parts[-2::-1]) for path in candidates]
    return [path for path, length in zip(candidates, folders, strict=True) if length == max(folders)]


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def _read(path: Path, where: str, address: str, candidates: Sequence[Annotation]) -> Content:
    """The photo with the objects of the annotation that counts."""
    image = read_photo(path, complete=False)  # as in the editor, which shows what there is of a damaged file
    size = (image.shape[0], image.shape[1])
    left_out: list[LeftOut] = []
    masks: dict[int, NDArray[np.bool_]] = {}
    chosen, usable = choose(candidates, lambda annotation: list(_usable(annotation, where, left_out)))
    for one, mask in usable:
        if one.image != address:
            continue
        if mask.size == size:
            masks[_number_for(one.region, masks)] = mask.full()
        else:
            left_out.append(LeftOut(Reason.WRONG_SIZE, f"{where}, region {one.region}"))
    if chosen is not None:
        left_out += [LeftOut(NOT_CHOSEN, where) for _ in candidates[1:]]
    return Content(image, mask_targets(masks), tuple(left_out))


def _usable(annotation: Annotation, where: str, left_out: list[LeftOut]) -> Iterator[tuple[AnnotatedObject, BoxMask]]:
    for one in annotation.objects:
        try:
            yield one, BoxMask.of(one.mask(MAX_PIXELS))
        except UnusableError as error:
            left_out.append(LeftOut(error.reason, f"{where}, region {one.region}"))


def _number_for(region: str, taken: Collection[int]) -> int:
    """A number made from a region's id, so that it stays the same when other regions come and go."""
    number = zlib.crc32(region.encode(errors="surrogatepass"))
    while number in taken:
        number += 1
    return number
