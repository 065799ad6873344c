"""The files of COCO 2017 and LVIS v1 as published: where they are, and their annotations of each photo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.cocolvis.combine import Polygons


@dataclass(frozen=True)
class OfficialFiles:
    """One split on disk."""

    lvis: Path
    """lvis_v1_SPLIT.json."""
    panoptic: Path
    """panoptic_SPLIT2017.json."""
    panoptic_maps: Path
    """The folder of its PNG files."""
    photos: Path
    """The folder of NAME.jpg."""


@dataclass(frozen=True)
class PanopticEntry:
    """COCO's annotations of a photo besides its panoptic map."""

    file_name: str
    """Of the map."""
    segments: Mapping[int, int]
    """The category of each id in the map."""


@dataclass(frozen=True)
class LvisEntry:
    """LVIS's annotations of a photo."""

    size: tuple[int, int]
    """(H, W) in pixels."""
    objects: list[Polygons] = field(default_factory=list)
    """The outlines of each."""


@dataclass(frozen=True)
class Annotations:
    """All photos of a split, by name (`000000000009`)."""

    coco: Mapping[str, PanopticEntry]
    lvis: Mapping[str, LvisEntry]
    """Photos without objects are left out."""
    things: frozenset[int]
    """COCO's categories of objects; all others are stuff."""
    checksums: Mapping[str, str]
    """SHA-256 of the JSON files by file name."""


def find_official(coco: Path, lvis: Path, split: str) -> OfficialFiles:
    """The files of a split, "train" or "val", in the usual places. ValueError names the places if one is missing."""
    annotations, maps = f"panoptic_{split}2017.json", f"panoptic_{split}2017"
    return OfficialFiles(
        lvis=_find("--lvis", lvis, f"lvis_v1_{split}.json", ("", "annotations")),
        panoptic=_find("--coco", coco, annotations, ("annotations", "")),
        panoptic_maps=_find("--coco", coco, maps, ("annotations", "", "annotations/panoptic"), folder=True),
        photos=_find("--coco", coco, f"{split}2017", ("", "images"), folder=True),
    )


def _find(option: str, root: Path, name: str, places: tuple[str, ...], *, folder: bool = False) -> Path:
    candidates = [root / place / name for place in places]
    for path in candidates:
        if path.is_dir() if folder else path.is_file():
            return path
    archives = [path.with_name(f"{name}.zip") for path in candidates]
    if packed := next((path for path in archives if path.is_file()), None):
        raise ValueError(f"{option}: {packed} has to be unpacked first: unzip {packed} -d {packed.parent}")
    expected = " or ".join(f"{path}/" if folder else str(path) for path in candidates)
    raise ValueError(f"{option}: found no {'folder' if folder else 'file'} {name}, expected {expected}")


def read_annotations(files: OfficialFiles) -> Annotations:
    """The content of a split's JSON files. ValueError if one is not what its name says.

    The files are read as a stream. In memory LVIS' outlines take about as much as on disk, 8 bytes for a coordinate.
    """
    coco, things = _read_panoptic(files.panoptic)
    checksums = {file.name: _sha256(file) for file in (files.panoptic, files.lvis)}
    return Annotations(coco, _read_lvis(files.lvis), things, checksums)


def _read_panoptic(file: Path) -> tuple[dict[str, PanopticEntry], frozenset[int]]:
    try:
        things = frozenset(int(one["id"]) for one in _items(file, "categories") if one["isthing"])
        entries = {
            PurePosixPath(one["file_name"]).stem: PanopticEntry(
                one["file_name"], {int(segment["id"]): int(segment["category_id"]) for segment in one["segments_info"]}
            )
            for one in _items(file, "annotations")
        }
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} holds no panoptic annotations of COCO: it needs 'categories' with 'isthing' and 'annotations' "
            "with 'file_name' and 'segments_info'"
        ) from None
    return entries, things


def _read_lvis(file: Path) -> dict[str, LvisEntry]:
    by_id: dict[int, LvisEntry] = {}
    names: dict[str, int] = {}
    try:
        for one in _items(file, "images"):
            by_id[one["id"]] = LvisEntry((one["height"], one["width"]))
            names[PurePosixPath(one["coco_url"]).stem] = one["id"]
        for one in _items(file, "annotations"):
            by_id[one["image_id"]].objects.append(_outlines(file, one["id"], one["segmentation"]))
    except (KeyError, TypeError):
        raise ValueError(
            f"{file} holds no annotations of LVIS v1: it needs 'images' with 'id', 'coco_url', 'height' and 'width', "
            "and 'annotations' with 'id', 'image_id' and 'segmentation'"
        ) from None
    return {name: by_id[image] for name, image in names.items() if by_id[image].objects}


def _outlines(file: Path, annotation: int, segmentation: Any) -> list[NDArray[np.float64]]:
    try:
        return [np.array(outline, np.float64) for outline in segmentation]
    except (TypeError, ValueError):
        raise ValueError(f"{file}: the 'segmentation' of annotation {annotation} is not a list of polygons") from None


def _items(file: Path, key: str) -> Iterator[dict[str, Any]]:
    """The entries of a list in a JSON file, one at a time."""
    try:
        import ijson
    except ModuleNotFoundError:
        raise ValueError(f"{file} is read with ijson: pip install -r requirements/train.txt") from None
    empty = True
    try:
        with file.open("rb") as stream:
            for item in ijson.items(stream, f"{key}.item", use_float=True):
                empty = False
                yield item
    except ijson.JSONError as error:
        raise ValueError(f"{file} is not JSON, or was cut off: {' '.join(str(error).split())}") from None
    if empty:
        raise ValueError(f"{file} has no '{key}'")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_panoptic_map(path: Path) -> NDArray[np.uint32]:
    """(H, W): the id of each pixel's segment, R + 256 G + 65536 B. ValueError if it is missing or damaged."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if pixels is None:
        raise ValueError(f"{path.name} {'is damaged' if path.is_file() else f'is missing in {path.parent}'}")
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGBA)
    rgba[..., 3] = 0
    return np.asarray(rgba.view("<u4")[..., 0], np.uint32)
