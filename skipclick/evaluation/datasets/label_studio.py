"""Label Studio's annotations as objects, read the same way from exports here and from webhooks in the backend.

What counts as an object:

* a brush region with an RLE, a bitmask with a PNG, or a polygon (`type` is "brushlabels" or "brush", and so on); a copy
  of it under the same id is not a second one, and keypoints and rectangles, left over from prompting, are none;
* regions under another one (`parentID`) are further pieces of it if they have its label;
* a pixel belongs to a region where its brush covers half of it, or its centre lies in the polygon.

Which annotation of a task counts, of those that were not skipped and have an object: see `agreement`. Drafts do not
count.

What does not become an object is counted with its `Reason`. However malformed an annotation is, reading it never fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skipclick import bitmask, brush_rle
from skipclick.evaluation.datasets.left_out import UnusableError
from skipclick.polygons import rasterize

Json = Mapping[str, Any]

Shape = Literal["brush", "bitmask", "polygon"]

MASK_FIELDS: dict[str, Shape] = {"rle": "brush", "imageDataURL": "bitmask", "points": "polygon"}
"""The field of a region's value that holds its mask, and what the `type` of such a region begins with."""
_OTHER_SHAPES = ("ellipselabels", "ellipse")
_HALF_COVERED = 128  # minimum alpha of the object's pixels: hand-drawn edges have values in between
_MAX_ID = (1 << 63) - 1


class Reason(StrEnum):
    """Why an annotation, or an object in it, is not used."""

    CANCELLED = "the annotator skipped the task"
    NO_REGION = "the annotation has no brush, bitmask or polygon region"
    NO_IMAGE = "the task's data hold no image for the region"
    OTHER_SHAPE = "the region is an ellipse: only brush, bitmask and polygon regions are masks"
    EMPTY = "the mask is empty"
    WRONG_SIZE = "the mask does not have the size of its image"
    TOO_LARGE = "the mask is larger than IMAGE_MAX_PIXELS"
    UNDECODABLE = "the mask cannot be decoded"


@dataclass(frozen=True)
class Piece:
    """A region: its kind, the size (H, W) of the photo that it claims, and the field that holds its mask."""

    shape: Shape
    size: tuple[int, int]
    rle: Sequence[int] = field(default=(), repr=False)
    bitmask: str = field(default="", repr=False)
    points: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """In percent of the photo's width and height."""

    def mask(self) -> NDArray[np.bool_]:
        """Bool (H, W). Raises `UnusableError` for a mask that cannot be read, or of another size."""
        height, width = self.size
        try:
            if self.shape == "brush":
                return np.asarray(brush_rle.decode(self.rle, height, width) >= _HALF_COVERED)
            if self.shape == "bitmask":
                return bitmask.decode(self.bitmask, height, width)
            return rasterize(
                [np.array(self.points, np.float64).reshape(-1, 2) * (width / 100, height / 100)], self.size
            )
        except ValueError:
            raise _unusable(Reason.WRONG_SIZE if self._is_of_another_size() else Reason.UNDECODABLE) from None

    def _is_of_another_size(self) -> bool:
        if self.shape == "brush" and len(self.rle) >= 8 and _are_bytes(self.rle[:4]):
            return int.from_bytes(bytes(self.rle[:4]), "big") != 4 * self.size[0] * self.size[1]
        if self.shape == "bitmask":
            with suppress(ValueError):
                return bitmask.size_of(self.bitmask) != self.size
        return False


@dataclass(frozen=True)
class AnnotatedObject:
    """One object: the id of its (first) region, its label, the image's reference as in the task, and its pieces."""

    region: str
    label: str | None
    image: str
    pieces: tuple[Piece, ...]

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises `UnusableError` unless all pieces claim the `size` (H, W) of the image."""
        if any(piece.size != size for piece in self.pieces):
            raise _unusable(Reason.WRONG_SIZE)

    def mask(self, max_pixels: int) -> NDArray[np.bool_]:
        """What its pieces cover together, bool (H, W). Raises `UnusableError`: where a piece cannot be read, the whole
        object is left out, since its mask would lack something that the annotator meant."""
        size = self.pieces[0].size
        if min(size) < 1:
            raise _unusable(Reason.WRONG_SIZE)
        self.check_size(size)
        if size[0] * size[1] > max_pixels:
            raise _unusable(Reason.TOO_LARGE)
        mask = np.zeros(size, np.bool_)
        for piece in self.pieces:
            mask |= piece.mask()
        if not mask.any():
            raise _unusable(Reason.EMPTY)
        return mask


@dataclass(frozen=True)
class Annotation:
    """An annotation as far as it can be used. `updated_at` is UTC in ISO format with microseconds, so that texts
    compare as times do; empty if Label Studio does not say. `id` and `task` are 0 where they are not numbers."""

    id: int
    task: int
    updated_at: str
    ground_truth: bool
    objects: tuple[AnnotatedObject, ...]
    skipped: Mapping[Reason, int]
    annotator: int | None = None
    """Who made it, by the id of the user; None if Label Studio does not say."""


ImageOf = Callable[[str, int | None], str | None]
"""The reference that a task holds for an image tag (its name) and, of several images, an index; None: there is none."""


def plain_rle(region: Json) -> bytes:
    """The RLE of a region; empty if it has none or its values are not bytes."""
    rle = mapping(region.get("value")).get("rle")
    try:
        return bytes(map(int, rle)) if isinstance(rle, list) else b""
    except (TypeError, ValueError, OverflowError):
        return b""


def read_annotation(
    annotation: Json, image_of: ImageOf, rle_of: Callable[[Json], Sequence[int]] = plain_rle
) -> Annotation:
    """An annotation with its objects, as Label Studio's webhook, REST interface and export have it."""
    skipped: Counter[Reason] = Counter()
    objects: tuple[AnnotatedObject, ...] = ()
    regions = _mask_regions(annotation.get("result"), rle_of)
    if annotation.get("was_cancelled"):
        skipped[Reason.CANCELLED] = 1
    else:
        if not regions:
            skipped[Reason.NO_REGION] = 1
        if num_other := _num_other_shapes(annotation.get("result")):
            skipped[Reason.OTHER_SHAPE] = num_other
        objects = tuple(_annotated_objects(regions, image_of, rle_of, skipped))
    return Annotation(
        id=number(annotation.get("id")) or 0,
        task=number(annotation.get("task")) or 0,
        updated_at=_moment(annotation.get("updated_at")),
        ground_truth=annotation.get("ground_truth") is True,
        objects=objects,
        skipped=skipped,
        annotator=_annotator(annotation.get("completed_by")),
    )


def _annotator(completed_by: Any) -> int | None:
    """A user's id: Label Studio writes the id alone, or an object that holds it."""
    return number(mapping(completed_by).get("id") if isinstance(completed_by, dict) else completed_by)


def _mask_regions(result: Any, rle_of: Callable[[Json], Sequence[int]]) -> dict[str, Json]:
    """Regions with a mask by id, in order. One whose id is missing, or is another region's, gets a new one."""
    regions: dict[str, Json] = {}
    digests: dict[str, set[bytes]] = {}  # of the masks of ids that come more than once; each is looked at once
    for index, item in enumerate(json_objects(result)):
        if mask_shape(item) is None:
            continue
        name = _region_id(item.get("id"))
        if name in regions:
            known = digests.setdefault(name, {_digest(region_piece(regions[name], rle_of))})
            if (digest := _digest(region_piece(item, rle_of))) in known:
                continue  # a copy, as the editor makes it for each further tag that has a label selected
            known.add(digest)
        while not name or name in regions:
            name += f"#{index}"
        regions[name] = item
    return regions


def _digest(piece: Piece) -> bytes:
    return sha256(repr((piece.rle, piece.bitmask, piece.points)).encode(errors="surrogatepass")).digest()


def _num_other_shapes(result: Any) -> int:
    ids = (
        _region_id(item.get("id")) or f"#{index}"
        for index, item in enumerate(json_objects(result))
        if item.get("type") in _OTHER_SHAPES and "radiusX" in mapping(item.get("value"))
    )
    return len(set(ids))


def _region_id(value: Any) -> str:
    """An id as a text; empty where there is none."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _annotated_objects(
    regions: Mapping[str, Json],
    image_of: ImageOf,
    rle_of: Callable[[Json], Sequence[int]],
    skipped: Counter[Reason],
) -> Iterator[AnnotatedObject]:
    """Regions joined to objects; those without an image go to `skipped`."""
    pieces: dict[str, list[Json]] = {}
    shared = {region_id: _what_pieces_share(region) for region_id, region in regions.items()}
    for region_id, root in _roots({one: _parent(one, regions, shared) for one in regions}).items():
        pieces.setdefault(root, []).append(regions[region_id])
    for region_id, members in pieces.items():
        first = regions[region_id]
        image = image_of(text(first.get("to_name")), number(first.get("item_index")))
        if image is None:
            skipped[Reason.NO_IMAGE] += 1
        else:
            yield AnnotatedObject(region_id, _label(first), image, tuple(region_piece(one, rle_of) for one in members))


def _parent(region_id: str, regions: Mapping[str, Json], shared: Mapping[str, Any]) -> str | None:
    """The region that a region is a further piece of; `shared`: what pieces share, by the region's id."""
    parent_id = _region_id(regions[region_id].get("parentID"))
    return parent_id if parent_id in regions and shared[parent_id] == shared[region_id] else None


def _roots(parents: Mapping[str, str | None]) -> dict[str, str]:
    """The root of each one's chain of parents, in the order of `parents`; for a cycle, which has none, its smallest id.

    Each is visited once, however long the chains are.
    """
    roots: dict[str, str] = {}
    for one in parents:
        chain: dict[str, None] = {}
        at = one
        while at not in roots and at not in chain:
            chain[at] = None
            at = parents[at] or at
        if at in chain:  # new: it has no parent, or the chain has come back to it
            names = list(chain)
            root = min(names[names.index(at) :])
        else:
            root = roots[at]
        roots.update(dict.fromkeys(chain, root))
    return {one: roots[one] for one in parents}


def _what_pieces_share(region: Json) -> tuple[list[str], Any, Any]:
    return _labels(region), region.get("to_name"), region.get("item_index")


def _label(region: Json) -> str | None:
    return next(iter(_labels(region)), None)


def _labels(region: Json) -> list[str]:
    labels = mapping(region.get("value")).get(f"{mask_shape(region)}labels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def mask_shape(region: Json) -> Shape | None:
    """What kind of mask a region has; None if it is none."""
    value, kind = mapping(region.get("value")), region.get("type")
    return next(
        (shape for name, shape in MASK_FIELDS.items() if name in value and kind in (shape, f"{shape}labels")), None
    )


def region_piece(region: Json, rle_of: Callable[[Json], Sequence[int]] = plain_rle) -> Piece:
    """The piece that a region with a `mask_shape` is."""
    shape, value = mask_shape(region), mapping(region.get("value"))
    size = (number(region.get("original_height")) or 0, number(region.get("original_width")) or 0)
    if shape == "bitmask":
        return Piece(shape, size, bitmask=text(value.get("imageDataURL")))
    if shape == "polygon":
        return Piece(shape, size, points=_points(value.get("points")))
    return Piece("brush", size, rle_of(region))


def _points(value: Any) -> tuple[tuple[float, float], ...]:
    """Points as numbers; none if one of them is not a pair of numbers."""
    points = value if isinstance(value, list) else []
    pairs = [tuple(point) for point in points if isinstance(point, (list, tuple)) and len(point) == 2]
    are_numbers = len(pairs) == len(points) and all(
        type(one) in (int, float) and abs(one) < 1e9 for p in pairs for one in p
    )
    return tuple((float(x), float(y)) for x, y in pairs) if are_numbers else ()


def _are_bytes(values: Sequence[int]) -> bool:
    return all(0 <= value <= 255 for value in values)


def _unusable(reason: Reason) -> UnusableError:
    return UnusableError(reason.value, reason)


def json_objects(value: Any) -> list[Json]:
    """The objects in a list, or a single one as a list."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def mapping(value: Any) -> Json:
    """The object itself; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """The text itself; an empty one for anything else."""
    return value if isinstance(value, str) else ""


def number(value: Any) -> int | None:
    """A whole number from 0 on that a database can hold."""
    return value if type(value) is int and 0 <= value <= _MAX_ID else None


def _moment(value: Any) -> str:
    try:
        moment = datetime.fromisoformat(text(value))
        return moment.astimezone(UTC).isoformat(timespec="microseconds") if moment.tzinfo else ""
    except (ValueError, OverflowError):
        return ""
