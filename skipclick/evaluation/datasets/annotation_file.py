"""Data sets of one file of annotations and a folder of photos, and the ways to name the two on the command line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

SUFFIXES = (".json", ".jsonl", ".ndjson")
"""The last two hold JSON lines, one value each."""

_HEAD = 4096  # bytes; enough to tell what a file holds


def find_annotations(given: Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[Path, Path]:
    """The annotations and the folder of photos, from what the command line gave:

    - `FILE.json:IMAGES`: these two;
    - `FILE.json`: the photos lie in `images/` beside the file, or else beside the file;
    - a folder: its only .json, or the only one in its `annotations/`; the photos lie in its `images/`, or else in it.

    suffixes: of the file; the first one names its kind. Photos of a file `instances_SUBSET` may also lie in
    `images/SUBSET/`, as CVAT exports them. Raises ValueError if there is no such file or folder, or if the file
    is not the only one.
    """
    file, images = split_given(given)
    if images is None:
        folder = file if file.is_dir() else file.parent
        file = _only_file(file, suffixes) if file.is_dir() else file
        images = folder / "images" if (folder / "images").is_dir() else folder
        subset = images / file.stem.removeprefix("instances_")
        images = subset if file.stem.startswith("instances_") and subset.is_dir() else images
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if not images.is_dir():
        raise ValueError(f"there is no folder {images}")
    return file, images


def split_given(given: Path) -> tuple[Path, Path | None]:
    """The two parts of `FILE.json:IMAGES`; without a colon, the path itself."""
    if found := re.fullmatch(r"(.+\.(?:jsonl?|ndjson|xml)):(.+)", str(given), re.IGNORECASE):
        return Path(found[1]), Path(found[2])
    return given, None


def annotation_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files that `find_annotations` chooses from in a folder."""
    for place in (folder, folder / "annotations"):
        if place.is_dir() and (files := [path for path in sorted(place.iterdir()) if path.suffix.lower() in suffixes]):
            return files
    return []


def _only_file(folder: Path, suffixes: Sequence[str]) -> Path:
    files, kind = annotation_files(folder, suffixes), suffixes[0]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{folder} needs one {kind} with the annotations, found {found}: name it as FILE{kind}:IMAGES")
    return files[0]


def read_head(file: Path) -> str:
    """The beginning of a JSON file, whatever its encoding, without leading whitespace and byte order mark."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return head.decode(json.detect_encoding(head), errors="ignore").lstrip("\ufeff \t\r\n")


def read_json(file: Path) -> list[Any]:
    """The values in a JSON file, one or (JSON lines) one per line, in UTF-8, 16 or 32, with or without byte order mark.

    A later line that is not JSON, such as the last one of a file that was cut off, gives None. Raises ValueError if the
    file holds no JSON.
    """
    content = file.read_bytes()
    try:
        return [json.loads(content)]
    except (ValueError, RecursionError) as error:
        try:
            return list(_json_lines(content.decode(json.detect_encoding(content))))
        except (ValueError, RecursionError):
            raise ValueError(f"{file} is not JSON ({error})") from None


def _json_lines(text: str) -> Iterator[Any]:
    first, *others = [line for line in text.lstrip("\ufeff").split("\n") if line.strip()]
    yield json.loads(first)
    if not others:
        raise ValueError("a single line is one value")
    for line in others:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def find_photo(images: Path, file_name: str) -> tuple[Path, bool] | None:
    """The photo that a record's file name means, and whether it lies where the name says; None if there is none.

    Tools write names with either slash, from the folder of photos or from the one above it. Where the folders of the
    name were not copied, its last part decides.
    """
    posix = posix_name(file_name)
    written = [images / file_name, images / posix]
    if PurePosixPath(posix).parts[:1] == (images.name,):
        written.append(images.parent / posix)
    for path in written:
        if os.path.isfile(path):  # unlike Path.is_file also where the name is too long or holds a zero byte
            return path, True
    last = PurePosixPath(posix).name
    for name in (last, unquote(last)):
        if name and os.path.isfile(images / name):
            return images / name, False
    return None


def posix_name(file_name: str) -> str:
    """A file name with forward slashes, none of them doubled or at its end."""
    return str(PurePosixPath(file_name.replace("\\", "/")))
