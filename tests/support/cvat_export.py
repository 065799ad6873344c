"""Drawn exports of CVAT, in both formats that hold masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from cvat_sdk.masks import encode_mask
from numpy.typing import NDArray

from tests.support.coco_files import run_lengths
from tests.support.drawn_pictures import HEIGHT, WIDTH, save


def mask_shape(mask: NDArray[np.bool_], label: str = "ski", **attributes: Any) -> str:
    """A <mask> by CVAT's own coder."""
    *lengths, left, top, right, bottom = map(int, encode_mask(mask))
    facts = {"label": label, "rle": ", ".join(map(str, lengths)), "left": left, "top": top}
    return shape("mask", **(facts | {"width": right - left + 1, "height": bottom - top + 1} | attributes))


def polygon_shape(points: list[tuple[float, float]], label: str = "ski", **attributes: Any) -> str:
    """A <polygon>."""
    return shape("polygon", label=label, points=";".join(f"{x:.2f},{y:.2f}" for x, y in points), **attributes)


def shape(tag: str, **attributes: Any) -> str:
    """Any shape, with an attribute of its label inside as exports have it."""
    written = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
    return f'<{tag} source="semi-auto" occluded="0" z_order="0" {written}><attribute name="wet">no</attribute></{tag}>'


def image(name: str, *shapes: str, **changes: Any) -> str:
    """An <image> of the drawn photo's size."""
    facts = {"id": 0, "name": name, "width": WIDTH, "height": HEIGHT} | changes
    written = " ".join(f"{key}={quoteattr(str(value))}" for key, value in facts.items() if value is not None)
    return f"<image {written}>{''.join(shapes)}</image>"


def write_xml(folder: Path, *images: str, photos: tuple[str, ...] = ("a.jpg",)) -> Path:
    """The export "CVAT for images 1.1", with photos."""
    for name in photos:
        save(folder / "images" / name)
    head = "<version>1.1</version><meta><task><id>3</id><name>skis</name></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{head}{"".join(images)}</annotations>\n'
    (folder / "annotations.xml").write_text(text, encoding="utf-8")
    return folder


def write_coco(folder: Path, masks: Mapping[str, list[NDArray[np.bool_]]], subset: str = "default") -> Path:
    """The export "COCO 1.0" of photos by name: masks as run lengths, marked as crowds; photos by subset."""
    images, annotations = [], []
    for number, (name, drawn) in enumerate(masks.items(), start=1):
        save(folder / "images" / subset / name)
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations += [
            {"id": len(annotations) + place, "image_id": number, "category_id": 1, "iscrowd": 1,
             "segmentation": run_lengths(mask)}
            for place, mask in enumerate(drawn, start=1)
        ]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ski"}]}
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / f"instances_{subset}.json").write_text(json.dumps(content))
    return folder
