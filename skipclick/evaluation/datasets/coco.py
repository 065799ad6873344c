"""COCO instance JSON as its many tools write it: polygons, decoded by pycocotools, and run lengths.

Each annotation is an object; where they overlap, each has its own pixels. An object's id is its place among the
annotations of its photo, since ids in files are repeated, missing or texts. An annotation refers to its photo
by `image_id`; categories are ignored.

Crowds (`iscrowd`) are not objects: what they cover does not count. `crowds_as_objects` takes them as objects, as is
right for tools that write `iscrowd: 1` for every mask that is stored as run lengths (CVAT).

An annotation that cannot be used leaves the others of its photo alone: it is left out, with its reason. So is a part of
a polygon that encloses nothing; but an object of which a part cannot be read is left out as a whole, since its mask
would lack something. Records of one photo are one photo.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.annotation_file import find_annotations, find_photo, posix_name, read_json
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, UnusableError, describe_left_out
from skipclick.evaluation.datasets.sample import Content, Photo, mask_targets, read_photo

FAR_OUTSIDE = 10  # times the photo's longer side; nobody draws there, and pycocotools would allocate memory up to it


class Reason(StrEnum):
    """Why a photo, an annotation or a part of one is not used."""

    NO_RECORD = "the entry is not a JSON object"
    NO_FILE_NAME = "the record of the photo has no file_name"
    NOT_FOUND = "the photo is not in the folder of photos"
    NOT_TOLD_APART = "several photos have this file name in other folders, which were not copied"
    NO_ID = "the record of the photo has no id"
    REPEATED_ID = "another photo of the file has the same id"
    NO_ANNOTATION = "the photo has no annotation"
    NO_IMAGE_ID = "the annotation has no image_id"
    UNKNOWN_IMAGE_ID = "no photo of the file has the annotation's image_id"
    SHARED_IMAGE_ID = "several photos of the file have the annotation's image_id"
    CROWD = "the annotation is a crowd (iscrowd), which does not count; coco-with-crowds takes crowds as objects"
    NO_MASK = "the annotation has no segmentation (a bounding box alone)"
    NOT_READ = "the segmentation is neither polygons nor run lengths"
    SHORT = "a polygon has fewer than three points"
    ODD = "a polygon has an odd number of coordinates"
    NO_NUMBERS = "a polygon has coordinates that are not finite numbers"
    FAR_OUTSIDE = "a polygon has points far outside the photo"
    OTHER_SIZE = "width and height in the file are not the photo's, so that polygons would be misplaced"
    RUNS_OTHER_SIZE = "the run lengths belong to a photo of another size"
    RUNS_DAMAGED = "the run lengths are damaged or do not add up to the photo"
    EMPTY = "the mask covers no pixel of the photo"
    REPEATED = "another record of the same photo has the same mask"


@dataclass(frozen=True)
class Annotation:
    """An entry of "annotations", and where it stands."""

    place: str
    content: dict[str, Any]

    @property
    def is_crowd(self) -> bool:
        return self.content.get("iscrowd") in (1, "1", "true", "True")

    def is_object(self, crowds_as_objects: bool) -> bool:
        """Whether it may be one, as far as can be told without its photo."""
        return bool(_parts(self.content.get("segmentation"))) and (crowds_as_objects or not self.is_crowd)


@dataclass(frozen=True)
class Record:
    """An entry of "images" with its annotations."""

    file_name: str
    size: tuple[int, int] | None
    """(H, W) as the file says; None where it does not."""
    annotations: tuple[Annotation, ...]


def list_coco(given: Path, *, crowds_as_objects: bool = False) -> Listing[Photo]:
    """The photos with objects, by file name. Raises ValueError if pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("its masks need pycocotools: pip install 'skipclick[eval]'") from None
    file, images = find_annotations(given)
    left_out: list[LeftOut] = []
    records = [record for content in read_json(file) for record in _records(content, file, left_out)]
    found = _photos(images, sorted(records, key=lambda record: record.file_name), crowds_as_objects, left_out)
    names = Counter(_stem(of_photo[0].file_name) for of_photo in found.values())
    photos = [
        Photo(
            stem if names[stem := _stem(of_photo[0].file_name)] == 1 else of_photo[0].file_name,
            partial(_read, path, tuple(of_photo), crowds_as_objects),
        )
        for path, of_photo in found.items()
    ]
    if not photos:
        why = "".join(f"; {line}" for line in describe_left_out(left_out))
        raise ValueError(f"{file} has no photo with an object{why}")
    return Listing(photos, left_out)


def _stem(file_name: str) -> str:
    return str(PurePosixPath(file_name).with_suffix(""))


def _records(content: Any, file: Path, left_out: list[LeftOut]) -> Iterator[Record]:
    """The photos of the file, each with the annotations that refer to it."""
    images, annotations = (
        (content.get("images"), content.get("annotations")) if isinstance(content, dict) else (None, None)
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f"{file} holds no COCO instances: it needs 'images' and 'annotations'")
    by_image = _by_image(annotations, left_out)
    of_id: dict[str | None, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for index, entry in enumerate(images):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.strip():
            of_id[_key(entry.get("id"))][posix_name(name)].append(entry)
        else:
            reason = Reason.NO_FILE_NAME if isinstance(entry, dict) else Reason.NO_RECORD
            left_out.append(LeftOut(reason, f"images[{index}]"))
    for key, by_name in of_id.items():
        mine = by_image.pop(key, [])
        if key is None or len(by_name) > 1:
            reason = Reason.NO_ID if key is None else Reason.REPEATED_ID
            left_out += [LeftOut(reason, name) for name in by_name]
            left_out += [LeftOut(Reason.SHARED_IMAGE_ID, one.place) for one in mine]
            continue
        for name, entries in by_name.items():
            sizes = {size for entry in entries if (size := _size(entry)) is not None}
            yield Record(name, sizes.pop() if len(sizes) == 1 else None, tuple(mine))
    left_out += [LeftOut(Reason.UNKNOWN_IMAGE_ID, one.place) for one in chain.from_iterable(by_image.values())]


def _by_image(entries: list[Any], left_out: list[LeftOut]) -> dict[str | None, list[Annotation]]:
    by_image: dict[str | None, list[Annotation]] = defaultdict(list)
    for index, entry in enumerate(entries):
        key = _key(entry.get("image_id")) if isinstance(entry, dict) else None
        if key is None:
            reason = Reason.NO_IMAGE_ID if isinstance(entry, dict) else Reason.NO_RECORD
            left_out.append(LeftOut(reason, f"annotations[{index}]"))
        else:
            by_image[key].append(Annotation(f"annotations[{index}]", entry))
    return by_image


def _key(value: Any) -> str | None:
    """An id, such that the number and its text are the same; None where there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = _side(entry.get("height")), _side(entry.get("width"))
    return None if height is None or width is None else (height, width)


def _side(value: Any) -> int | None:
    try:
        return int(value) if float(value) == int(value) > 0 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _without_object(record: Record) -> Iterator[LeftOut]:
    if not record.annotations:
        yield LeftOut(Reason.NO_ANNOTATION, record.file_name)
    for one in record.annotations:
        reason = Reason.CROWD if one.is_crowd and _parts(one.content.get("segmentation")) else Reason.NO_MASK
        yield LeftOut(reason, f"{record.file_name}, {one.place}")


def _photos(
    images: Path, records: Sequence[Record], crowds_as_objects: bool, left_out: list[LeftOut]
) -> dict[Path, list[Record]]:
    """The records with objects by their photo, as far as it is there and no other record may mean it."""
    places = {name: find_photo(images, name) for name in dict.fromkeys(record.file_name for record in records)}
    claims = Counter(place[0] for place in places.values() if place is not None)
    as_written = {place[0]: True for place in places.values() if place is not None and place[1]}
    photos: dict[Path, list[Record]] = defaultdict(list)
    for record in records:
        place = places[record.file_name]
        if not any(one.is_object(crowds_as_objects) for one in record.annotations):
            left_out += _without_object(record)
        elif place is None:
            left_out.append(LeftOut(Reason.NOT_FOUND, record.file_name))
        elif not place[1] and (place[0] in as_written or claims[place[0]] > 1):
            left_out.append(LeftOut(Reason.NOT_TOLD_APART, record.file_name))
        else:
            photos[place[0]].append(record)
    return photos


def _read(path: Path, records: Sequence[Record], crowds_as_objects: bool) -> Content:
    """The photo with its objects. Raises ValueError if the photo cannot be read."""
    image = read_photo(path, mask_sizes=_mask_sizes(records))
    size = (image.shape[0], image.shape[1])
    left_out: list[LeftOut] = []
    objects: dict[int, NDArray[np.bool_]] = {}
    crowds: list[NDArray[np.bool_]] = []
    known: set[bytes] = set()  # digests of the masks of earlier records
    number = 0
    for record in records:
        digests = set()
        for annotation in record.annotations:
            number += 1
            example = f"{record.file_name}, {annotation.place}"
            try:
                mask, short = _mask(annotation.content.get("segmentation"), size, record.size)
            except UnusableError as error:
                left_out.append(LeftOut(error.reason, example))
                continue
            left_out += [LeftOut(Reason.SHORT, example)] * short
            digests.add(digest := hashlib.sha256(np.packbits(mask).tobytes()).digest())
            if digest in known:
                left_out.append(LeftOut(Reason.REPEATED, example))
            elif annotation.is_crowd and not crowds_as_objects:
                left_out.append(LeftOut(Reason.CROWD, example))
                crowds.append(mask)
            else:
                objects[number] = mask
        known |= digests
    return Content(image, mask_targets(objects, np.any(crowds, axis=0) if crowds else None), tuple(left_out))


def _mask_sizes(records: Sequence[Record]) -> Iterator[tuple[int, int]]:
    """Sizes that say how the annotated photo lay: what the file says of it, then those of run lengths."""
    for record in records:
        if record.size is not None:
            yield record.size
    for annotation in chain.from_iterable(record.annotations for record in records):
        for part in _parts(annotation.content.get("segmentation")):
            if isinstance(part, dict) and (size := _runs_size(part)) is not None:
                yield size


def _mask(
    segmentation: Any, size: tuple[int, int], size_in_file: tuple[int, int] | None = None
) -> tuple[NDArray[np.bool_], int]:
    """A mask, bool (H, W) of the photo's `size`, and how many parts enclose nothing. Raises UnusableError."""
    parts = _parts(segmentation)
    if not parts:
        raise _unusable(Reason.NO_MASK)
    mask = np.zeros(size, np.bool_)
    polygons = [polygon for part in parts if not isinstance(part, dict) and len(polygon := _polygon(part, size)) >= 6]
    if polygons and size_in_file not in (None, size):
        raise _unusable(Reason.OTHER_SIZE)
    runs = [part for part in parts if isinstance(part, dict)]
    if not polygons and not runs:
        raise _unusable(Reason.SHORT)
    if polygons:
        mask |= _drawn(polygons, size)
    for part in runs:
        mask |= _decoded(part, size)
    if not mask.any():
        raise _unusable(Reason.EMPTY)
    return mask, len(parts) - len(polygons) - len(runs)


def _unusable(reason: Reason) -> UnusableError:
    return UnusableError(reason.value, reason)


def _parts(segmentation: Any) -> list[Any]:
    """Polygons and run lengths of a segmentation; a single polygon may stand there without a list around it, as
    numbers or as pairs of them."""
    if not segmentation:
        return []
    if not isinstance(segmentation, list):
        return [segmentation]
    if not any(isinstance(part, (list, dict)) for part in segmentation):
        return [segmentation]
    if len(segmentation) >= 3 and all(_is_point(part) for part in segmentation):
        return [segmentation]
    return [part for part in segmentation if part not in ([], {})]


def _is_point(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and not any(isinstance(value, (list, dict)) for value in part)


def _polygon(part: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """x, y, x, y, ..., fewer than six where the part encloses nothing. Raises UnusableError."""
    if not isinstance(part, list):
        raise _unusable(Reason.NOT_READ)
    if part and all(_is_point(point) for point in part):
        part = list(chain.from_iterable(part))
    if len(part) < 6:
        return np.empty(0)
    try:
        polygon = np.asarray(part, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _unusable(Reason.NO_NUMBERS) from None
    if polygon.ndim != 1 or not np.isfinite(polygon).all():
        raise _unusable(Reason.NO_NUMBERS)
    if polygon.size % 2:
        raise _unusable(Reason.ODD)
    if (np.abs(polygon) > FAR_OUTSIDE * max(size)).any():
        raise _unusable(Reason.FAR_OUTSIDE)
    return polygon


def _drawn(polygons: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    from pycocotools import mask as coco_mask

    runs = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
    return np.asarray(coco_mask.decode(coco_mask.merge(runs))).astype(np.bool_)


def _runs_size(part: dict[str, Any]) -> tuple[int, int] | None:
    size = part.get("size")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = _side(size[0]), _side(size[1])
    return None if height is None or width is None else (height, width)


def _decoded(part: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of run lengths, compressed to text or not. Raises UnusableError."""
    counts = part.get("counts")
    if not isinstance(counts, (list, str)):
        raise _unusable(Reason.NOT_READ)
    if _runs_size(part) != size:
        raise _unusable(Reason.RUNS_DAMAGED if _runs_size(part) is None else Reason.RUNS_OTHER_SIZE)
    try:
        lengths = np.asarray(_decompressed(counts) if isinstance(counts, str) else counts, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _unusable(Reason.RUNS_DAMAGED) from None
    num_pixels = size[0] * size[1]
    if lengths.ndim != 1 or not ((lengths >= 0) & (lengths <= num_pixels) & (lengths % 1 == 0)).all():
        raise _unusable(Reason.RUNS_DAMAGED)
    if lengths.sum() != num_pixels:
        raise _unusable(Reason.RUNS_DAMAGED)
    is_object = np.arange(lengths.size) % 2 == 1
    return np.repeat(is_object, lengths.astype(np.int64)).reshape(size[1], size[0]).T


def _decompressed(text: str) -> list[int]:
    """Run lengths from COCO's compressed text: 5 bits a character, the lowest first; from the fourth on, each is the
    difference to the one two before.

    Raises ValueError if the text is cut off or has other characters.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more of the same number follows
            continue
        if bits & 16:  # negative, in two's complement
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError
    return lengths
