"""Data sets of one JSON file and a folder of photos, and the ways to name the two on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def find_annotations(given: Path) -> tuple[Path, Path]:
    """The annotations and the folder of photos, from what the command line gave:

    - `FILE.json:IMAGES`: these two;
    - `FILE.json`: the photos lie in `images/` beside the file, or else beside the file;
    - a folder: its only .json, or the only one in its `annotations/`; the photos lie in its `images/`, or else in it.

    Raises ValueError where there is no such file or folder, or where the file is not the only one.
    """
    file_name, colon, images_name = str(given).partition(".json:")
    if colon:
        file, images = Path(f"{file_name}.json"), Path(images_name)
    else:
        folder = given if given.is_dir() else given.parent
        file = _only_json(given) if given.is_dir() else given
        images = folder / "images" if (folder / "images").is_dir() else folder
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if not images.is_dir():
        raise ValueError(f"there is no folder {images}")
    return file, images


def _only_json(folder: Path) -> Path:
    files = sorted(folder.glob("*.json")) or sorted((folder / "annotations").glob("*.json"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{folder} needs one .json with the annotations, found {found}: name it as FILE.json:IMAGES")
    return files[0]


def read_json(file: Path) -> Any:
    """Raises ValueError if the file holds no JSON."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from None
