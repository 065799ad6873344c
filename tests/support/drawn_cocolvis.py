"""COCO 2017 and LVIS v1 in small: drawn photos with their annotations, in files of the published form.

Each photo has two regions of stuff, objects that only one of the sets has, objects that both have, a crowd, parts of
objects, outlines with a hole, objects in two pieces, repetitions and specks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SKY, GROUND, THING = 187, 193, 1
CATEGORIES = [
    {"id": THING, "name": "person", "isthing": 1},
    {"id": SKY, "name": "sky", "isthing": 0},
    {"id": GROUND, "name": "ground", "isthing": 0},
]


@dataclass(frozen=True)
class Drawing:
    """One photo and its annotations."""

    name: str
    photo: NDArray[np.uint8]
    ids: NDArray[np.int64]
    """(H, W), COCO's panoptic map."""
    segments: list[dict[str, Any]]
    lvis: list[list[list[float]]]


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, num_corners: int = 48) -> list[float]:
    """A wavy outline x, y, x, y, ... with two decimals, as LVIS has them."""
    angles = np.linspace(0, 2 * np.pi, num_corners, endpoint=False)
    waves = sum(rng.normal(0, 0.12 / k) * np.sin(k * angles + rng.uniform(0, 6)) for k in range(2, 6))
    radii = radius * (1 + waves)
    x = centre[0] + radii * np.cos(angles)
    y = centre[1] + rng.uniform(0.6, 1) * radii * np.sin(angles)
    corners = np.stack([x, y], axis=1)
    return [float(value) for value in np.round(corners, 2).ravel()]


def moved(outline: list[float], by: float) -> list[float]:
    return [round(value + by, 2) for value in outline]


def draw(name: str, size: tuple[int, int], seed: int, *, num_coco: int = 4, num_lvis: int = 3) -> Drawing:
    """A photo of `size` (H, W). num_coco: objects of COCO; num_lvis: more that only LVIS has."""
    rng = np.random.default_rng(seed)
    height, width = size

    def some_blob(smallest: float, largest: float) -> list[float]:
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        return blob(rng, centre, rng.uniform(smallest, largest) * min(size))

    ids = np.full(size, 70_002)
    ids[: int(rng.uniform(0.3, 0.7) * height)] = 3_000_001
    segments = [{"id": segment, "category_id": stuff} for segment, stuff in ((3_000_001, SKY), (70_002, GROUND))]
    lvis: list[list[list[float]]] = []
    photo = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    for number in range(num_coco):
        outline = some_blob(0.1, 0.25)
        segment = int(rng.integers(1, 1 << 24))
        corners = np.round(np.reshape(outline, (-1, 2))).astype(np.int32)
        painted = np.zeros(size, np.uint8)
        cv2.fillPoly(painted, [corners], 1)
        ids[painted == 1] = segment
        photo[painted == 1] = rng.integers(0, 255, 3)
        segments.append({"id": segment, "category_id": THING, "iscrowd": int(number == 1)})
        if number % 2 == 0:
            lvis.append([moved(outline, rng.uniform(-0.6, 0.6))])  # LVIS has it too
            middle = (np.mean(outline[0::2]).item(), np.mean(outline[1::2]).item())
            lvis.append([blob(rng, middle, 0.06 * min(size))])  # and a part of it
    ids[2:6, 2:6] = 999
    segments.append({"id": 999, "category_id": THING, "iscrowd": 0})  # a speck
    lvis += [[some_blob(0.05, 0.2)] for _ in range(num_lvis)]
    lvis.append([some_blob(0.05, 0.1), some_blob(0.05, 0.1)])  # in two pieces
    lvis.append([blob(rng, (width / 2, height / 2), share * min(size)) for share in (0.2, 0.1)])  # with a hole
    lvis.append([moved(lvis[0][0], 0.1)])  # a repetition
    lvis.append([[1.0, 1.0, 4.0, 1.0, 4.0, 4.0]])  # a speck
    return Drawing(name, photo, ids, segments, lvis)


def write_official(folder: Path, drawings: list[Drawing], split: str = "train", only_coco: str | None = None) -> None:
    """folder/coco and folder/lvis with these photos. only_coco: one of the names, which LVIS does not know."""
    coco, lvis = folder / "coco", folder / "lvis"
    maps = coco / "annotations" / f"panoptic_{split}2017"
    for path in (maps, coco / f"{split}2017", lvis):
        path.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        cv2.imwrite(str(coco / f"{split}2017" / f"{drawing.name}.jpg"), drawing.photo)
        rgb = np.stack([drawing.ids % 256, drawing.ids // 256 % 256, drawing.ids // 65536], axis=-1).astype(np.uint8)
        cv2.imwrite(str(maps / f"{drawing.name}.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    panoptic = {
        "categories": CATEGORIES,
        "annotations": [
            {"file_name": f"{one.name}.png", "image_id": int(one.name), "segments_info": one.segments}
            for one in drawings
        ],
    }
    known = [one for one in drawings if one.name != only_coco]
    images = [
        {
            "id": int(one.name),
            "height": one.photo.shape[0],
            "width": one.photo.shape[1],
            "coco_url": f"http://images.cocodataset.org/{split}2017/{one.name}.jpg",
        }
        for one in known
    ]
    only_lvis = "http://images.cocodataset.org/val2017/000000900000.jpg"
    images.append({"id": 900, "height": 9, "width": 9, "coco_url": only_lvis})
    annotations = [{"image_id": 900, "segmentation": [[0, 0, 8, 0, 8, 8]]}]
    annotations += [{"image_id": int(one.name), "segmentation": polygons} for one in known for polygons in one.lvis]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    content = {"images": images, "annotations": annotations, "categories": []}
    (coco / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(panoptic))
    (lvis / f"lvis_v1_{split}.json").write_text(json.dumps(content))
