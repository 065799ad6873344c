"""Sources of training data, each of a kind that is recognised by its files, mixed by weights.

A source is written `[WEIGHT*][KIND:]PATH`, for example `/data/cocolvis`, `2*/data/own` or `0.5*hqseg-44k:/data/hq`.
All photos are equally likely to be drawn; those of a source with a WEIGHT are WEIGHT times as likely.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skipclick.evaluation.datasets import LAYOUTS
from skipclick.evaluation.datasets.annotation_file import SUFFIXES, annotation_files, read_head, split_given
from skipclick.evaluation.datasets.cvat import SUFFIXES as CVAT_SUFFIXES
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, describe_left_out, left_out_for
from train.sources.annotated import list_layout
from train.sources.cocolvis import ANNOTATIONS, list_cocolvis
from train.sources.folder import list_folder
from train.sources.hqseg import HQSEG_TRAINING_PARTS, list_hqseg
from train.sources.photo import Photo, Split, is_held_out

__all__ = ["KINDS", "Kind", "Photo", "Source", "Sources", "Split", "is_held_out", "open_sources"]


@dataclass(frozen=True)
class Kind:
    """A layout on disk."""

    expects: str
    """What the path must hold, in a line."""
    list_photos: Callable[[Path, Split], Listing[Photo]]
    """Raises ValueError, saying what is missing."""
    recognises: Callable[[Path], bool]
    """Whether a path looks like this kind."""


def _head(path: Path) -> str:
    """The beginning of the annotation file that a path stands for; empty if there is none, or more than one."""
    file, _ = split_given(path)
    files = annotation_files(file) if file.is_dir() else [file]
    is_one = len(files) == 1 and files[0].is_file() and files[0].suffix.lower() in SUFFIXES
    return read_head(files[0]) if is_one else ""


def _is_xml(path: Path) -> bool:
    """Whether a path stands for an XML file and not for JSON."""
    file, _ = split_given(path)
    if not file.is_dir():
        return file.suffix.lower() in CVAT_SUFFIXES
    return bool(annotation_files(file, CVAT_SUFFIXES)) and not annotation_files(file)


def _begins_as_task(head: str) -> bool:
    """Whether a JSON object is a task of Label Studio, as in JSON lines, by its first key."""
    return re.match(r'\{\s*"(id|data)"', head) is not None


KINDS = {
    "cocolvis": Kind(
        f"train/ (images/ID.jpg, masks/ID.pickle, {ANNOTATIONS}) and, if it is there, val/",
        list_cocolvis,
        lambda path: (path / "train" / ANNOTATIONS).is_file(),
    ),
    "folder": Kind(
        "images/ and masks/ (PNG of one channel, an id per object)",
        list_folder,
        lambda path: (path / "images").is_dir() and (path / "masks").is_dir(),
    ),
    "hqseg-44k": Kind(
        ", ".join(sorted({images for images, _ in HQSEG_TRAINING_PARTS.values()})),
        list_hqseg,
        lambda path: any((path / images).is_dir() for images, _ in HQSEG_TRAINING_PARTS.values()),
    ),
    "coco": Kind(
        "COCO instance JSON with its photos: FILE.json:IMAGES, or a folder with one .json and images/",
        list_layout("coco"),
        lambda path: (head := _head(path)).startswith("{") and not _begins_as_task(head),
    ),
    "coco-with-crowds": Kind(
        LAYOUTS["coco-with-crowds"].expects,
        list_layout("coco-with-crowds"),
        lambda path: False,  # the file does not tell what iscrowd means in it
    ),
    "cvat": Kind(
        LAYOUTS["cvat"].expects,
        list_layout("cvat"),
        _is_xml,
    ),
    "label-studio": Kind(
        "Label Studio's export as JSON or JSON-MIN with its photos: FILE.json:IMAGES, or a folder with one .json and "
        "images/",
        list_layout("label-studio"),
        lambda path: (head := _head(path)).startswith("[") or _begins_as_task(head),
    ),
}


@dataclass(frozen=True)
class Source:
    """Photos from one place."""

    kind: str
    path: Path
    weight: float
    photos: tuple[Photo, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What its files name but cannot be used, as far as that is known before a photo is read."""


@dataclass(frozen=True)
class Sources:
    """All that a run draws from."""

    parts: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(len(source.photos) for source in self.parts)

    @property
    def shares(self) -> list[float]:
        """How often each source is drawn from, summing to 1."""
        weights = [source.weight * len(source.photos) for source in self.parts]
        return [weight / sum(weights) for weight in weights]

    @property
    def left_out(self) -> list[LeftOut]:
        """Of all sources."""
        return [one for source in self.parts for one in source.left_out]

    def draw(self, rng: np.random.Generator) -> Photo:
        """A random photo; with a single source, no random number is used to choose it."""
        source = self.parts[int(rng.choice(len(self.parts), p=self.shares))] if len(self.parts) > 1 else self.parts[0]
        return source.photos[int(rng.integers(len(source.photos)))]

    def __str__(self) -> str:
        return "\n".join(
            f"{source.kind} {source.path}: {len(source.photos):,} photos, {share:.1%} of the samples"
            for source, share in zip(self.parts, self.shares, strict=True)
        )


def open_sources(specs: Sequence[str], split: Split = "train", exclude_kinds: Collection[str] = ()) -> Sources:
    """The sources that the command line names; lists photos, and reads the first one that can be used.

    exclude_kinds: kinds of photos to leave out, where a source tells them apart. Raises ValueError, in one line, if a
    source is not of its kind, has no photo in the split, or none that can be used.
    """
    parts = tuple(_open(spec, split) for spec in specs)
    known = {photo.kind for source in parts for photo in source.photos if photo.kind is not None}
    if unknown := set(exclude_kinds) - known:
        raise ValueError(
            f"{', '.join(specs)}: no photos of kind {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(known)) or 'none'}"
        )
    parts = tuple(_without_kinds(source, exclude_kinds) for source in parts)
    for source in parts:
        _try(source)
    return Sources(parts)


def _open(spec: str, split: Split) -> Source:
    weight, kind, path = parse_source(spec)
    kind = kind or _recognised(path)
    try:
        listing = KINDS[kind].list_photos(path, split)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}; expected {KINDS[kind].expects}") from None
    return Source(kind, path, weight, tuple(listing.photos), tuple(listing.left_out))


def parse_source(spec: str) -> tuple[float, str | None, Path]:
    """Weight, kind (None: to be recognised) and path of `[WEIGHT*][KIND:]PATH`. Raises ValueError."""
    found = re.fullmatch(rf"(?:(\d+\.?\d*|\.\d+)\*)?(?:({'|'.join(KINDS)}):)?(.+)", spec)
    if not found:
        raise ValueError(f"{spec!r} names no source: write [WEIGHT*][KIND:]PATH")
    weight, kind, path = found.groups()
    if weight is not None and float(weight) == 0:
        raise ValueError(f"{spec}: a weight is above 0; leave the source out instead")
    return float(weight or 1), kind, Path(path)


def _recognised(path: Path) -> str:
    if not split_given(path)[0].exists():
        raise ValueError(f"there is no folder {path}; a source is [WEIGHT*][KIND:]PATH, KIND one of {', '.join(KINDS)}")
    for name, kind in KINDS.items():
        if kind.recognises(path):
            return name
    raise ValueError(
        f"{path} holds neither images/ and masks/ nor another known source of masks "
        f"({', '.join(KINDS)}): name its kind as KIND:{path} to see what is missing"
    )


def _without_kinds(source: Source, exclude_kinds: Collection[str]) -> Source:
    photos = tuple(photo for photo in source.photos if photo.kind not in exclude_kinds)
    if not photos:
        raise ValueError(f"{source.path}: there is no photo left in it; expected {KINDS[source.kind].expects}")
    return replace(source, photos=photos)


def _try(source: Source) -> None:
    """Raises ValueError if none of the photos can be used: better now than in the middle of training."""
    left_out: list[LeftOut] = []
    for photo in source.photos:
        try:
            _, scene = photo.load()
        except ValueError as error:
            left_out.append(left_out_for(error))
            continue
        if scene.objects or not scene.left_out:  # a photo annotated as having no object is of use
            return
        left_out += scene.left_out
    raise ValueError(f"{source.path}: none of its photos can be used: {'; '.join(describe_left_out(left_out))}")
