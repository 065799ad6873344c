"""What training reads: several sources, each of a kind recognised by what lies there, mixed by weights.

A source is written `[WEIGHT*][KIND:]PATH`, for example `/data/cocolvis`, `2*/data/own` or `0.5*hqseg-44k:/data/hq`.
All photos are drawn alike, those of a source with a weight so many times as often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from train.sources.annotated import list_coco, list_label_studio
from train.sources.cocolvis import ANNOTATIONS, list_cocolvis
from train.sources.folder import list_folder
from train.sources.hqseg import HQSEG_TRAINING_PARTS, list_hqseg
from train.sources.photo import Photo, Split, is_held_out

__all__ = ["KINDS", "Kind", "Photo", "Source", "Sources", "Split", "is_held_out", "open_sources"]

TRIALS = 3


@dataclass(frozen=True)
class Kind:
    """A way to lie on disk."""

    expects: str
    """What the path must hold, in a line."""
    list_photos: Callable[[Path, Split], list[Photo]]
    """Raises ValueError, saying what is missing."""
    recognises: Callable[[Path], bool]
    """Whether a path looks like it."""


def _json_begins(path: Path, first: bytes) -> bool:
    """Whether the annotation file that a path stands for (`evaluation/datasets/annotation_file.py`) begins so."""
    files = sorted(path.glob("*.json")) or sorted((path / "annotations").glob("*.json")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].suffix != ".json":
        return False
    with files[0].open("rb") as file:
        return file.read(64).lstrip().startswith(first)


def _before_colon(path: Path) -> Path:
    """The file of `FILE.json:IMAGES`."""
    name, colon, _ = str(path).partition(".json:")
    return Path(f"{name}.json") if colon else path


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
        list_coco,
        lambda path: _json_begins(_before_colon(path), b"{"),
    ),
    "label-studio": Kind(
        "Label Studio's export as JSON with its photos: FILE.json:IMAGES, or a folder with one .json and images/",
        list_label_studio,
        lambda path: _json_begins(_before_colon(path), b"["),
    ),
}


@dataclass(frozen=True)
class Source:
    """Photos from one place."""

    kind: str
    path: Path
    weight: float
    photos: tuple[Photo, ...]


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

    def draw(self, rng: np.random.Generator) -> Photo:
        """A photo at random; where there is one source alone, no random number is spent on choosing it."""
        source = self.parts[int(rng.choice(len(self.parts), p=self.shares))] if len(self.parts) > 1 else self.parts[0]
        return source.photos[int(rng.integers(len(source.photos)))]

    def __str__(self) -> str:
        return "\n".join(
            f"{source.kind} {source.path}: {len(source.photos):,} photos, {share:.1%} of the samples"
            for source, share in zip(self.parts, self.shares, strict=True)
        )


def open_sources(specs: Sequence[str], split: Split = "train", exclude_kinds: Collection[str] = ()) -> Sources:
    """The sources that the command line names; lists photos, and tries to read a few.

    exclude_kinds: kinds of photos to leave out, where a source tells them apart. Raises ValueError, in one line, where
    a source is not of its kind, has no photo in the split, or none of its first photos can be read.
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
        photos = KINDS[kind].list_photos(path, split)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}; expected {KINDS[kind].expects}") from None
    return Source(kind, path, weight, tuple(photos))


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
    if not _before_colon(path).exists():
        raise ValueError(f"there is no folder {path}; a source is [WEIGHT*][KIND:]PATH, KIND one of {', '.join(KINDS)}")
    for name, kind in KINDS.items():
        if kind.recognises(path):
            return name
    raise ValueError(
        f"{path} holds neither images/ and masks/ nor any other source of masks that is known "
        f"({', '.join(KINDS)}): name its kind as KIND:{path} to see what is missing"
    )


def _without_kinds(source: Source, exclude_kinds: Collection[str]) -> Source:
    photos = tuple(photo for photo in source.photos if photo.kind not in exclude_kinds)
    if not photos:
        raise ValueError(f"{source.path}: there is no photo left in it; expected {KINDS[source.kind].expects}")
    return replace(source, photos=photos)


def _try(source: Source) -> None:
    """Raises ValueError where none of the first photos can be read: rather now than in the middle of training."""
    for index, photo in enumerate(source.photos[:TRIALS]):
        try:
            photo.load()
            return
        except ValueError:
            if index + 1 == min(TRIALS, len(source.photos)):
                raise
