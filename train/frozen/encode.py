"""Encoding of views, once for all heads that are trained on the same backbone at the same size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipclick import Predictor
from skipclick.head import backbone_digest
from skipclick.model import SkipClick
from train.frozen.store import read_about, view_path, write_about, write_view
from train.frozen.views import draw_view
from train.scene import Scene
from train.sources import Photo, Split, open_sources

MAX_BROKEN = 20  # photos in a row


def encode_views(
    model: SkipClick,
    data: Sequence[str],
    output: Path,
    *,
    crop: int,
    num_views: int,
    first_look: Predictor,
    kind_weights: Mapping[str, float],
    split: Split = "train",
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write views 0 to `num_views` - 1; existing ones stay, so that an interrupted run continues.

    View `number` depends on (seed, number), the sources and the models alone. kind_weights: how often photos of a kind
    are drawn, by default 1. Raises `ValueError` if the folder holds views of another backbone or size.
    """
    multiple = model.config.size_multiple
    if crop % multiple:
        raise ValueError(f"a view of {crop} pixels does not fit the network: use a multiple of {multiple}")
    photos = [photo for source in open_sources(data, split).parts for photo in source.photos]
    if unknown := set(kind_weights) - {photo.kind for photo in photos}:
        raise ValueError(f"{', '.join(data)}: no photos of kind {', '.join(sorted(unknown))}")
    weights = np.array([kind_weights.get(photo.kind or "", 1.0) for photo in photos])
    about: dict[str, Any] = {
        "backbone": backbone_digest(model),
        "crop": crop,
        "seed": seed,
        "split": split,
        "sources": [str(Path(one).name) for one in data],
        "kind_weights": dict(kind_weights),
        "first_look": first_look.version,
    }
    output.mkdir(parents=True, exist_ok=True)
    if not any(output.iterdir()):
        write_about(output, about)
    elif read_about(output) != about:
        raise ValueError(f"{output} holds views of another backbone, size or data: name another --output")
    backbone = model.backbone.eval().to(memory_format=torch.channels_last)
    for number in range(num_views):
        path = view_path(output, number)
        if not path.exists():
            rng = np.random.default_rng((seed, number))
            photo, image, scene = _load(photos, weights / weights.sum(), rng)
            view = draw_view(image, scene, crop, first_look, rng)
            pixels = torch.from_numpy(view.image).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                taps = backbone(pixels.contiguous(memory_format=torch.channels_last))
            write_view(path, view, taps, photo.name, photo.kind)
        on_progress(number + 1)


def _load(
    photos: Sequence[Photo], probabilities: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Photo, NDArray[np.uint8], Scene]:
    """A random photo that can be read. Raises ValueError if `MAX_BROKEN` photos in a row are broken."""
    for trial in range(MAX_BROKEN):
        photo = photos[int(rng.choice(len(photos), p=probabilities))]
        try:
            return photo, *photo.load()
        except ValueError as error:
            if trial == MAX_BROKEN - 1:
                raise
            print(f"train: skipped: {error}", file=sys.stderr)
    raise AssertionError("unreachable")
