"""CVAT's export "CVAT for images 1.1": an XML file with masks and polygons, and its photos.

What counts as an object: a mask or a polygon; those of one group and label are one object together, as in CVAT's other
exports. Where objects overlap, each has its own pixels. A pixel belongs to a polygon where its centre does. Boxes,
ellipses, lines and points are not masks: they are left out, as is what cannot be read, each with its reason.

CVAT's export "COCO 1.0" is the data set `coco-with-crowds`, since it marks every mask as a crowd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.annotation_file import find_annotations, find_photo
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, UnusableError, describe_left_out
from skipclick.evaluation.datasets.sample import Content, Photo, mask_targets, read_photo
from skipclick.polygons import rasterize

SUFFIXES = (".xml",)
ROOT = "annotations"
_MASKS = ("mask", "polygon")
_OTHER_SHAPES = ("box", "ellipse", "polyline", "points", "cuboid", "skeleton")


class Reason(StrEnum):
    """Why a photo or a shape is not used."""

    NO_NAME = "the image has no name"
    NOT_FOUND = "the photo is not in the folder of photos"
    NO_SHAPE = "the photo has neither masks nor polygons"
    OTHER_SHAPE = "the shape is not a mask or polygon"
    NO_SIZE = "the image has no width and height"
    OTHER_SIZE = "width and height in the file are not the photo's"
    DAMAGED = "the run lengths of the mask do not fill its box, or the box lies outside the photo"
    NO_POLYGON = "the polygon has fewer than three points, or points that are not numbers"
    EMPTY = "the shape covers no pixel of the photo"


@dataclass(frozen=True)
class Shape:
    """A mask or a polygon: its attributes as texts, and where it stands."""

    kind: str
    place: str
    attributes: Mapping[str, str] = field(repr=False)

    @property
    def group(self) -> tuple[str, str] | None:
        """What shapes of one object share; None for a shape of its own."""
        number = self.attributes.get("group_id", "0")
        return None if number == "0" else (number, self.attributes.get("label", ""))

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Bool (H, W) of the photo's `size`. Raises `UnusableError`."""
        mask = _from_runs(self.attributes, size) if self.kind == "mask" else _from_points(self.attributes, size)
        if not mask.any():
            raise _unusable(Reason.EMPTY)
        return mask


@dataclass(frozen=True)
class Record:
    """An image of the file with its shapes."""

    name: str
    subset: str
    size: tuple[int, int] | None
    """(H, W) as the file says; None where it does not."""
    shapes: tuple[Shape, ...]


def list_cvat(given: Path) -> Listing[Photo]:
    """The photos with masks or polygons, in the order of the file."""
    file, images = find_annotations(given, SUFFIXES)
    left_out: list[LeftOut] = []
    found: dict[Path, Record] = {}
    for record in _records(file, left_out):
        place = find_photo(images / record.subset, record.name) if record.subset else None
        place = place or find_photo(images, record.name)
        if not record.shapes:
            left_out.append(LeftOut(Reason.NO_SHAPE, record.name))
        elif place is None:
            left_out.append(LeftOut(Reason.NOT_FOUND, record.name))
        else:
            found[place[0]] = record
    names = Counter(_stem(record.name) for record in found.values())
    photos = [
        Photo(stem if names[stem := _stem(record.name)] == 1 else record.name, partial(_read, path, record))
        for path, record in found.items()
    ]
    if not photos:
        why = "".join(f"; {line}" for line in describe_left_out(left_out))
        raise ValueError(f"{file} has no photo with a mask or polygon{why}")
    return Listing(photos, left_out)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _records(file: Path, left_out: list[LeftOut]) -> Iterator[Record]:
    """The images of the file, read one by one. Raises ValueError if it is not such an export."""
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import iterparse
    except ModuleNotFoundError:
        raise ValueError("its XML needs defusedxml: pip install 'skipclick[eval]'") from None
    try:
        elements = iterparse(file, events=("start", "end"))
        _, root = next(elements)
        if root.tag != ROOT:
            raise ValueError(f"{file} is not an export of CVAT: it begins with <{root.tag}> and not with <{ROOT}>")
        for event, element in elements:
            if event == "start" or element.tag not in ("image", "track"):
                continue
            if element.tag == "track":
                raise ValueError(f"{file} holds tracks of a video: export the task as CVAT for images 1.1")
            record = _record(element, left_out)
            if record is not None:
                yield record
            root.clear()
    except (ParseError, DefusedXmlException, StopIteration) as error:
        raise ValueError(f"{file} is not XML that can be read ({type(error).__name__}: {error})") from None


def _record(image: Element, left_out: list[LeftOut]) -> Record | None:
    name = image.get("name", "").strip()
    if not name:
        left_out.append(LeftOut(Reason.NO_NAME, f"image {image.get('id')}"))
        return None
    shapes = []
    for number, element in enumerate(image, start=1):
        place = f"{name}, {element.tag} {number}"
        if element.tag in _MASKS:
            shapes.append(Shape(element.tag, place, dict(element.attrib)))
        elif element.tag in _OTHER_SHAPES:
            left_out.append(LeftOut(Reason.OTHER_SHAPE, place))
    height, width = (_whole(image.attrib, side) for side in ("height", "width"))
    size = None if height is None or width is None else (height, width)
    return Record(name, image.get("subset", "").strip(), size, tuple(shapes))


def _whole(attributes: Mapping[str, Any], name: str) -> int | None:
    text = str(attributes.get(name, "")).strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _read(path: Path, record: Record) -> Content:
    """The photo with its objects. Raises ValueError if the photo cannot be read."""
    image = read_photo(path, mask_sizes=[] if record.size is None else [record.size])
    size = (image.shape[0], image.shape[1])
    if record.size != size:
        reason = Reason.NO_SIZE if record.size is None else Reason.OTHER_SIZE
        return Content(image, {}, tuple(LeftOut(reason, shape.place) for shape in record.shapes))
    objects: dict[int, NDArray[np.bool_]] = {}
    left_out: list[LeftOut] = []
    for number, shapes in _grouped(record.shapes).items():
        try:
            objects[number] = np.logical_or.reduce([shape.mask(size) for shape in shapes])
        except UnusableError as error:  # its mask would lack something that the annotator meant
            left_out.append(LeftOut(error.reason, shapes[0].place))
    return Content(image, mask_targets(objects), tuple(left_out))


def _grouped(shapes: Sequence[Shape]) -> dict[int, list[Shape]]:
    """The shapes of each object, by the place of its first one."""
    objects: dict[int, list[Shape]] = {}
    first: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(shapes, start=1):
        leader = number if shape.group is None else first.setdefault(shape.group, number)
        objects.setdefault(leader, []).append(shape)
    return objects


def _from_runs(attributes: Mapping[str, str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask whose `rle` are the lengths of runs, background first, along the rows of its box."""
    left, top, width, height = (_whole(attributes, name) for name in ("left", "top", "width", "height"))
    if left is None or top is None or width is None or height is None:
        raise _unusable(Reason.DAMAGED)
    try:
        lengths = np.array([int(part) for part in attributes.get("rle", "").split(",")], np.int64)
    except (ValueError, OverflowError):
        raise _unusable(Reason.DAMAGED) from None
    is_inside = left + width <= size[1] and top + height <= size[0]
    if not is_inside or (lengths < 0).any() or (lengths > width * height).any() or lengths.sum() != width * height:
        raise _unusable(Reason.DAMAGED)
    mask = np.zeros(size, np.bool_)
    is_object = np.arange(lengths.size) % 2 == 1
    mask[top : top + height, left : left + width] = np.repeat(is_object, lengths).reshape(height, width)
    return mask


def _from_points(attributes: Mapping[str, str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A polygon whose `points` are written x,y;x,y;..."""
    try:
        points = [[float(part) for part in point.split(",")] for point in attributes.get("points", "").split(";")]
        ring = np.array(points, np.float64)
        if ring.ndim != 2 or ring.shape[1] != 2 or (np.abs(ring) > 10 * max(size)).any():
            raise ValueError
        return rasterize([ring], size)
    except ValueError:
        raise _unusable(Reason.NO_POLYGON) from None


def _unusable(reason: Reason) -> UnusableError:
    return UnusableError(reason.value, reason)
