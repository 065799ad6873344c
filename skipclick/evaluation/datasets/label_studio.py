"""A Label Studio export of type JSON with brush regions, beside a folder of the photos.

Which annotation counts: of a task's annotations that were not skipped, the one marked as ground truth, else the one
changed last. Tasks without a brush region in it are left out.

What is one object: each brush region is, unless the annotator put it under another brush region in the list of
regions (`parentID`); then the two are one object. A pixel belongs to a region where its brush covers half of it.

Which photo belongs to a task: the one of the same file name anywhere below the folder. An upload is found under its
own name and under the name it had before, without the random prefix ("25f393b5-skis.jpg" is "skis.jpg"). Where
several photos have the name, the one whose folders agree with the task's address.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from skipclick import brush_rle
from skipclick.evaluation.datasets.annotation_file import find_annotations, read_json
from skipclick.evaluation.datasets.image_mask_folders import IMAGE_SUFFIXES
from skipclick.evaluation.datasets.sample import Photo, Targets, mask_targets, read_photo

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
HALF_COVERED = 128

Region = dict[str, Any]


def list_label_studio(given: Path) -> list[Photo]:
    """The tasks with brush regions in the order of the export; a name is the task's id and the photo's name."""
    file, images = find_annotations(given)
    tasks = read_json(file)
    photos_by_name = _photos_by_name(images)
    try:
        photos = [
            Photo(f"{task['id']}-{address.stem}", partial(_read, _matching(address, photos_by_name), address, regions))
            for task in tasks
            if (regions := brush_regions(task)) and (address := photo_address(task, regions[0]))
        ]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{file} is no Label Studio export of type JSON (not JSON-MIN): a list of tasks with annotations"
        ) from None
    if not photos:
        raise ValueError(f"{file} has no annotation with a brush region")
    return photos


def brush_regions(task: dict[str, Any]) -> list[Region]:
    """The brush regions of the annotation that counts."""
    valid = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
    if not valid:
        return []
    annotation = max(valid, key=lambda a: (bool(a.get("ground_truth")), a.get("updated_at") or "", a.get("id") or 0))
    return [region for region in annotation.get("result", ()) if region.get("value", {}).get("format") == "rle"]


def photo_address(task: dict[str, Any], region: Region) -> PurePosixPath:
    """Path of the photo that a region lies on, as far as Label Studio's address tells it."""
    data = task.get("data", {})
    addresses = [data.get(region.get("to_name")), data.get("image"), *data.values()]
    for text in (address for address in addresses if isinstance(address, str)):
        parts = urlsplit(text)
        local_file = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/photo.jpg
        path = PurePosixPath(local_file[0] if local_file else unquote(parts.path))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return path
    return PurePosixPath(str(task.get("file_upload") or "no address of a photo"))


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
    """The photos that an address may mean: those that agree with it for most folders, counted from the file up."""
    name = _saved_name(address.name)
    candidates = photos_by_name.get(name) or photos_by_name.get(UPLOAD_PREFIX.sub("", name), [])
    folders = [_common_length(address.parts[-2::-1], path.parts[-2::-1]) for path in candidates]
    return [path for path, length in zip(candidates, folders, strict=True) if length == max(folders)]


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def _read(matching: list[Path], address: PurePosixPath, regions: list[Region]) -> tuple[NDArray[np.uint8], Targets]:
    if len(matching) != 1:
        found = ", ".join(str(path) for path in matching) or "none"
        raise ValueError(f"{address}: one photo of this name must lie below the folder of photos, found {found}")
    try:
        # As it was annotated: of a damaged file the editor shows the part that is there.
        return read_photo(matching[0], complete=False), region_targets(regions)
    except KeyError as error:
        raise ValueError(f"{address}: a brush region lacks {error}") from None


def region_targets(regions: list[Region]) -> Targets:
    """Each object's target under a number made from its region's id, so that no other region can change it.

    Raises KeyError where a region lacks a field, ValueError where its run lengths are damaged.
    """
    parents: dict[str, str | None] = {region["id"]: region.get("parentID") for region in regions}
    masks: dict[int, NDArray[np.bool_]] = {}
    for region in regions:
        object_id = zlib.crc32(_root(region["id"], parents).encode())
        mask = _mask(region)
        known = masks.get(object_id, mask)
        if known.shape != mask.shape:
            raise ValueError(f"region {region['id']} belongs to a photo of another size than the other regions")
        masks[object_id] = known | mask
    return mask_targets(masks)


def _root(region_id: str, parents: dict[str, str | None]) -> str:
    for _ in parents:  # a chain is no longer than this, a circle is left here too
        parent = parents[region_id]
        if parent is None or parent not in parents:
            break
        region_id = parent
    return region_id


def _mask(region: Region) -> NDArray[np.bool_]:
    try:
        alpha = brush_rle.decode(region["value"]["rle"], region["original_height"], region["original_width"])
    except ValueError as error:
        raise ValueError(f"region {region['id']}: {error}") from None
    return np.asarray(alpha >= HALF_COVERED)
