"""Segment the photos of a folder from a list of clicks.

    python examples/segment_folder.py photos clicks.csv masks
    python examples/segment_folder.py photos clicks.csv masks --checkpoint skipclick.safetensors --device cuda

clicks.csv has a line per click, in the order of clicking, with the columns photo, object, x, y and positive (pixels of
the photo, x to the right and y down; 1 or 0):

    photo,object,x,y,positive
    coffee.jpg,cup,120,80,1
    coffee.jpg,cup,300,200,0

Writes masks/PHOTO-OBJECT.png, 255 for the object. Each photo is encoded once, however many objects it has.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skipclick import Click, Predictor, load_checkpoint
from skipclick.atomic_io import atomic_write

COLUMNS = ("photo", "object", "x", "y", "positive")

ClicksByObject = dict[str, dict[str, list[Click]]]
"""Clicks of each object of each photo, by file name and object name."""


def read_clicks(path: Path) -> ClicksByObject:
    """The clicks of a CSV file. Raises `ValueError` naming the line that cannot be read."""
    found: ClicksByObject = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise ValueError(f"{path} has no column {', '.join(missing)}; its first line must be {','.join(COLUMNS)}")
        for row in rows:
            try:
                click = Click(float(row["x"]), float(row["y"]), positive=bool(int(row["positive"])))
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {rows.line_num}: x and y must be numbers, positive 1 or 0") from None
            found.setdefault(row["photo"], {}).setdefault(row["object"], []).append(click)
    if not found:
        raise ValueError(f"{path} holds no clicks")
    return found


def segment(
    predictor: Predictor, image: NDArray[np.uint8], objects: dict[str, list[Click]]
) -> dict[str, NDArray[np.bool_]]:
    """The mask, bool (H, W), of each object after all its clicks. image: uint8 RGB (H, W, 3)."""
    features = predictor.encode(image)
    masks = {}
    for name, clicks in objects.items():
        probability = None
        for count in range(1, len(clicks) + 1):  # one after the other, as an annotator would
            probability = predictor.click(features, clicks[:count], probability)
        assert probability is not None
        masks[name] = probability > 0.5
    return masks


def run(photos: Path, clicks: Path, masks: Path, checkpoint: str, device: str) -> int:
    """Write all masks; their number. Raises `ValueError` for a photo or click that cannot be used."""
    to_do = read_clicks(clicks)
    masks.mkdir(parents=True, exist_ok=True)
    predictor, written = Predictor(load_checkpoint(checkpoint), device=device), 0
    for name, objects in tqdm(to_do.items(), unit="photo", disable=None):
        pixels = cv2.imread(str(photos / name), cv2.IMREAD_COLOR_RGB)  # turned as its EXIF orientation says
        if pixels is None:
            raise ValueError(f"{photos / name} is missing or is not a picture")
        try:
            found = segment(predictor, np.asarray(pixels, np.uint8), objects)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        for object_name, mask in found.items():
            with atomic_write(masks / f"{Path(name).stem}-{object_name}.png") as temporary:
                temporary.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())
            written += 1
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("clicks", type=Path, help="CSV file of clicks")
    parser.add_argument("masks", type=Path, help="folder for the masks")
    parser.add_argument("--checkpoint", default="bundled", help="'bundled' or a checkpoint file (default: bundled)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    options = parser.parse_args(arguments)
    try:
        written = run(options.photos, options.clicks, options.masks, options.checkpoint, options.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {written} masks to {options.masks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
