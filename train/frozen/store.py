"""Encoded views on disk, one file each, so that one process can write while another one reads.

VIEWS/about.json               backbone and size, which a training checks
VIEWS/view-00000123.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skipclick.atomic_io import atomic_write
from skipclick.prompts import Click
from train.frozen.views import DrawnView, Start
from train.scene import Scene, SceneObject

FORMAT = "skipclick-view-1"
KEPT_AS = torch.bfloat16  # half the memory, without a measurable effect on learning
_ABOUT = "about.json"


@dataclass(frozen=True, eq=False)
class EncodedView:
    """One view as the head gets it."""

    taps: tuple[Tensor, ...]  # of the backbone, each (1, C_i, h_i, w_i), bfloat16, channels last
    scene: Scene
    start: Start | None


def view_path(folder: Path, number: int) -> Path:
    return folder / f"view-{number:08}.safetensors"


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    with atomic_write(folder / _ABOUT) as temporary:
        temporary.write_text(json.dumps(dict(about), indent=1))


def read_about(folder: Path) -> dict[str, Any]:
    """What the folder's views were made of and with. Raises `ValueError` if it holds none."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError):
        raise ValueError(f"{folder} holds no encoded views: make them with `python -m train encode-views`") from None
    return about


def list_views(folder: Path) -> list[Path]:
    """The views written so far, by number."""
    return sorted(folder.glob("view-*.safetensors"))


def write_view(path: Path, view: DrawnView, taps: tuple[Tensor, ...], photo: str, photo_kind: str | None) -> None:
    """Write a view atomically, with the photo's name and kind. taps: (1, C_i, h_i, w_i) each."""
    tensors = {f"tap{i}": tap.to("cpu", KEPT_AS).permute(0, 2, 3, 1).contiguous() for i, tap in enumerate(taps)}
    planes = {"layers": np.concatenate(view.scene.layers)}  # layers below one another: a PNG has one plane
    if view.scene.ignored is not None:
        planes["ignored"] = view.scene.ignored.astype(np.uint8)
    about: dict[str, Any] = {"photo": photo, "photo_kind": photo_kind, "view": view.kind}
    about["objects"] = [(part.layer, part.value, part.parent) for part in view.scene.objects]
    if view.start is not None:
        planes |= {"target": view.start.target.view(np.uint8), "probability": view.start.probability}
        about["clicks"] = [(click.x, click.y, click.positive) for click in view.start.clicks]
    for name, plane in planes.items():
        _, png = cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        tensors[name] = torch.from_numpy(png.ravel())
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "about": json.dumps(about)})


def read_view(path: Path) -> EncodedView:
    """What `write_view` wrote. Raises `ValueError` if it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = _checked(file.metadata(), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the view {path} cannot be read ({error})") from None
    count = sum(name.startswith("tap") for name in tensors)
    taps = tuple(tensors[f"tap{i}"].permute(0, 3, 1, 2) for i in range(count))
    stacked = _plane(tensors["layers"])
    layers = stacked.reshape(-1, stacked.shape[1], stacked.shape[1])
    ignored = _plane(tensors["ignored"]).astype(np.bool_) if "ignored" in tensors else None
    scene = Scene(layers, tuple(SceneObject(*part) for part in about["objects"]), ignored=ignored)
    start = None
    if "target" in tensors:
        clicks = tuple(Click(x, y, positive) for x, y, positive in about["clicks"])
        start = Start(_plane(tensors["target"]).view(np.int8), clicks, _plane(tensors["probability"]))
    return EncodedView(taps, scene, start)


def _checked(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    if (metadata or {}).get("format") != FORMAT:
        raise ValueError(f"{path} is not an encoded view")
    about: dict[str, Any] = json.loads((metadata or {})["about"])
    return about


def _plane(png: Tensor) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(png.numpy(), cv2.IMREAD_UNCHANGED), np.uint8)
