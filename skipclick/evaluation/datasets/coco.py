"""COCO instance JSON: polygons and run lengths, decoded by pycocotools.

Each annotation is an object; where they overlap, each has its own pixels. Crowd regions are no objects: what they
cover does not count. Photos without an object are left out.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.annotation_file import find_annotations, read_json
from skipclick.evaluation.datasets.sample import Photo, Targets, mask_targets, read_photo

Annotation = dict[str, Any]


def list_coco(given: Path) -> list[Photo]:
    """The photos with objects, by file name. Raises ValueError if pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("its masks need pycocotools: pip install 'skipclick[eval]'") from None
    file, images = find_annotations(given)
    content = read_json(file)
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    try:
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        entries = sorted(
            (entry["file_name"], entry["id"], entry["height"], entry["width"]) for entry in content["images"]
        )
    except (KeyError, TypeError):
        raise ValueError(f"{file} holds no COCO instances: it needs 'images' and 'annotations'") from None
    photos = [
        Photo(
            str(PurePosixPath(name).with_suffix("")),
            partial(_read, _locate(images, name), by_image[image_id], (height, width)),
        )
        for name, image_id, height, width in entries
        if any(not annotation.get("iscrowd") for annotation in by_image[image_id])
    ]
    if not photos:
        raise ValueError(f"{file} has no photo with an object")
    return photos


def _locate(images: Path, name: str) -> Path:
    """A file name as written, or its last part where the folders before it were not copied."""
    written = images / name
    return written if written.is_file() else images / written.name


def _read(image: Path, annotations: list[Annotation], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Targets]:
    try:
        masks = [(annotation, _mask(annotation, size)) for annotation in annotations]
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from None
    crowds = [mask for annotation, mask in masks if annotation.get("iscrowd")]
    objects = {int(annotation["id"]): mask for annotation, mask in masks if not annotation.get("iscrowd")}
    return read_photo(image), mask_targets(objects, np.any(crowds, axis=0) if crowds else None)


def _mask(annotation: Annotation, size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W). Raises ValueError where the segmentation is damaged."""
    from pycocotools import mask as coco_mask

    try:
        return np.asarray(coco_mask.decode(_run_lengths(annotation.get("segmentation"), size))).astype(np.bool_)
    except Exception as error:  # pycocotools raises bare Exception too
        raise ValueError(f"annotation {annotation.get('id')} has a damaged segmentation ({error})") from None


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """pycocotools' compressed form. Checks what its C code takes on trust: else it reads or asks for wild memory."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list) and segmentation:
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        if any(polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2 for polygon in polygons):
            raise ValueError("a polygon needs three points or more, as x, y, x, y, ...")
        if not all((np.abs(polygon) <= 10 * max(size)).all() for polygon in polygons):
            raise ValueError("a polygon has points far outside the photo")
        return dict(coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)))
    if not isinstance(segmentation, dict):
        raise ValueError("it is neither polygons nor run lengths")
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"its size is {segmentation['size']}, the photo's {list(size)}")
    if isinstance(segmentation["counts"], list):
        if min(segmentation["counts"]) < 0 or sum(segmentation["counts"]) != size[0] * size[1]:
            raise ValueError("its run lengths do not add up to the photo")
        return dict(coco_mask.frPyObjects(segmentation, *size))
    rle = {"size": list(size), "counts": segmentation["counts"].encode()}
    if coco_mask.encode(coco_mask.decode(rle))["counts"] != rle["counts"]:
        raise ValueError("its run lengths do not add up to the photo")
    return rle
