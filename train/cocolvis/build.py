"""Builds the combined set from the official files, photo by photo on all cores; an interrupted build can be continued.

For each split, in OUT/train and OUT/val:

    images/NAME.jpg       the photo, linked or copied
    masks/NAME.pickle     (layers: list of PNG files, uint8 (n,) each; list of each mask's (layer, value))
    hannotation.pickle    {NAME: {"num_instance_masks": n, "hierarchy": {i: None or {"children", "parent",
                          "node_level"}}}} for i < n; the masks from n on are stuff
    records.jsonl         a line for each photo: its hierarchy, and what was kept and dropped
    summary.json          sums over these, and what was wrong with photos that failed

The first three have the format of RITM's published annotations. A photo's files are written atomically, and its line is
appended after them: a run that is killed loses only the photos in progress, the same command continues it, and the
result is the same byte for byte.

Memory: one split's annotations are held in this process and take about as much as LVIS' JSON, 1.1 GB for the training
split (0.11 GB of synthetic ones were measured to take 0.13 GB); each worker gets those of one photo.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skipclick.atomic_io import atomic_write
from train.cocolvis.combine import CombineCounts, Combined, combine
from train.cocolvis.layers import pack_layers
from train.cocolvis.official import (
    Annotations,
    LvisEntry,
    OfficialFiles,
    find_official,
    read_annotations,
    read_panoptic_map,
)
from train.cocolvis.records import Record, annotation, append_record, read_records, write_records
from train.cocolvis.workers import map_in_processes

Split = Literal["train", "val"]
PhotoFiles = Literal["link", "copy"]
SPLITS, PHOTO_FILES = get_args(Split), get_args(PhotoFiles)

PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    *(cv2.IMWRITE_PNG_COMPRESSION, 9),
)
"""For ids: 40 % of the size of OpenCV's own choice, and read in a quarter of the time; reading limits training."""


@dataclass(frozen=True)
class Work:
    """One photo to be processed: its annotations, and where it goes."""

    name: str
    photo: Path
    panoptic_map: Path
    segments: dict[int, int]
    """Category of each id in the panoptic map."""
    things: frozenset[int]
    """The categories of objects; all others are stuff."""
    lvis: LvisEntry
    out: Path
    """The split's folder."""
    photo_files: PhotoFiles


@dataclass(frozen=True)
class BuildProblem:
    """A photo that failed."""

    name: str
    message: str


@dataclass(frozen=True)
class BuildSummary:
    """What became of a split."""

    split: Split
    photos: int
    """Written."""
    without_objects: int
    """Photos left out, as are the next two."""
    only_in_coco: int
    only_in_lvis: int
    masks: CombineCounts
    problems: dict[str, str]
    """Messages by name of the photo."""

    def __str__(self) -> str:
        m = self.masks
        lines = [
            f"{self.split}: {self.photos:,} photos, {m.coco_kept + m.lvis_kept:,} objects ({m.parts:,} of them part of "
            f"another), {m.stuff_kept:,} stuff regions",
            f"  COCO objects {m.coco_kept:>11,} kept {m.coco_small:>9,} too small {m.coco_duplicate:>9,} also in LVIS",
            f"  LVIS objects {m.lvis_kept:>11,} kept {m.lvis_small:>9,} too small {m.lvis_duplicate:>9,} repeated",
            f"  COCO stuff   {m.stuff_kept:>11,} kept {m.stuff_small:>9,} too small",
            f"  photos left out: {self.without_objects:,} without objects, {self.only_in_coco:,} only in COCO, "
            f"{self.only_in_lvis:,} only in LVIS, {len(self.problems):,} with a problem",
            *(f"    {name}: {message}" for name, message in list(self.problems.items())[:5]),
        ]
        return "\n".join(lines)


def build_cocolvis(
    coco: Path, lvis: Path, out: Path, *, splits: Sequence[Split], photo_files: PhotoFiles, jobs: int
) -> list[BuildSummary]:
    """Build the combined set or continue building it; what is done already is kept.

    Args:
        coco: folder of COCO 2017 with train2017/, annotations/panoptic_train2017.json and the PNG files unpacked.
        lvis: folder of LVIS v1 with lvis_v1_train.json.
        photo_files: symbolic links to COCO's photos, or copies.
        jobs: worker processes.

    Raises ValueError if a file is missing or not what its name says, `out` was begun from other files, all photos
    failed, or the disk is full.
    """
    files = {split: find_official(coco, lvis, split) for split in splits}
    try:
        return [_build_split(split, files[split], out / split, photo_files, jobs) for split in files]
    except OSError as error:
        raise ValueError(f"{error}. The same command continues from here") from None
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, perhaps for lack of memory: the same command with fewer --jobs continues from here"
        ) from None


def _build_split(split: Split, files: OfficialFiles, out: Path, photo_files: PhotoFiles, jobs: int) -> BuildSummary:
    print(f"{split}: reading {files.lvis.name} and {files.panoptic.name}", flush=True)
    annotations = read_annotations(files)
    names = sorted(annotations.coco.keys() & annotations.lvis.keys())
    if not names:
        raise ValueError(f"{files.panoptic} and {files.lvis} have no photo in common")
    journal = out / "records.jsonl"
    done = {record.name: record for record in read_records(journal, annotations.checksums) if _is_there(record, out)}
    if done:
        print(f"{split}: {len(done):,} of {len(names):,} photos are done already", flush=True)
    _remove_unfinished(out)
    write_records(journal, annotations.checksums, done.values())
    works = (_work(name, files, annotations, out, photo_files) for name in names if name not in done)
    problems: dict[str, str] = {}
    progress = tqdm(total=len(names), initial=len(done), desc=split, unit="photo", disable=None)
    with progress:
        for result in map_in_processes(build_photo, works, jobs):
            if isinstance(result, BuildProblem):
                problems[result.name] = result.message
            else:
                append_record(journal, result)
                done[result.name] = result
            progress.update()
    if not done:
        name, message = next(iter(problems.items()))
        raise ValueError(f"all photos of {split} failed; the first, {name}: {message}")
    return _finish(split, out, annotations, [done[name] for name in names if name in done], problems)


def _work(name: str, files: OfficialFiles, annotations: Annotations, out: Path, photo_files: PhotoFiles) -> Work:
    entry = annotations.coco[name]
    return Work(
        name,
        files.photos / f"{name}.jpg",
        files.panoptic_maps / entry.file_name,
        dict(entry.segments),
        annotations.things,
        annotations.lvis[name],
        out,
        photo_files,
    )


def _photo_path(out: Path, name: str) -> Path:
    return out / "images" / f"{name}.jpg"


def _masks_path(out: Path, name: str) -> Path:
    return out / "masks" / f"{name}.pickle"


def _is_there(record: Record, out: Path) -> bool:
    return not record.nodes or (_photo_path(out, record.name).exists() and _masks_path(out, record.name).exists())


def _remove_unfinished(out: Path) -> None:
    """Remove what a killed run was just writing."""
    for folder in (out, out / "images", out / "masks"):
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)


def build_photo(work: Work) -> Record | BuildProblem:
    """Write one photo and its masks, unless it has no objects. Raises OSError if that fails."""
    try:
        combined = _combined(work)
    except ValueError as error:
        return BuildProblem(work.name, str(error))
    if combined.nodes:
        _write_masks(_masks_path(work.out, work.name), combined)
        _put_photo(work.photo, _photo_path(work.out, work.name), work.photo_files)
    return Record(work.name, combined.nodes, combined.counts)


def _combined(work: Work) -> Combined:
    if not work.photo.is_file():
        raise ValueError(f"{work.photo.name} is missing in {work.photo.parent}")
    ids = read_panoptic_map(work.panoptic_map)
    if ids.shape != work.lvis.size:
        found, expected = (f"{height} x {width}" for height, width in (ids.shape, work.lvis.size))
        raise ValueError(f"{work.panoptic_map.name} is {found} pixels; LVIS says {expected}")
    return combine(ids, work.segments, work.things, work.lvis.objects)


def _write_masks(path: Path, combined: Combined) -> None:
    layers, places = pack_layers(combined.masks, combined.masks[0].size)
    encoded = [cv2.imencode(".png", layer, PNG_OPTIONS)[1] for layer in layers]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        pickler.dispatch_table = {np.ndarray: _as_bytes}
        pickler.dump((encoded, places))


def _as_bytes(array: NDArray[np.uint8]) -> tuple[Any, ...]:
    """An array as every version of NumPy can read it, RITM's too: NumPy's own pickles name modules that have moved."""
    return np.frombuffer, (array.tobytes(), "u1")


def _put_photo(source: Path, target: Path, photo_files: PhotoFiles) -> None:
    if photo_files == "copy":
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    link = target.with_name(f".{target.name}.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(source.resolve())
    link.replace(target)


def _finish(
    split: Split, out: Path, annotations: Annotations, records: Sequence[Record], problems: dict[str, str]
) -> BuildSummary:
    """Write the files about all photos."""
    write_records(out / "records.jsonl", annotations.checksums, records)
    with_objects = [record for record in records if record.nodes]
    with atomic_write(out / "hannotation.pickle") as temporary:
        content = {record.name: annotation(record) for record in with_objects}
        temporary.write_bytes(pickle.dumps(content, protocol=4))
    in_both = len(records) + len(problems)
    summary = BuildSummary(
        split,
        photos=len(with_objects),
        without_objects=len(records) - len(with_objects),
        only_in_coco=len(annotations.coco) - in_both,
        only_in_lvis=len(annotations.lvis) - in_both,
        masks=_sum(record.counts for record in records),
        problems=problems,
    )
    with atomic_write(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _sum(counts: Iterable[CombineCounts]) -> CombineCounts:
    return CombineCounts(*(sum(of_one_kind) for of_one_kind in zip(*map(astuple, counts), strict=True)))
