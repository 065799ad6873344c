"""`python -m tests.e2e.seed_proposals MODEL_DIR PROJECT FOLDER`: a project whose version in service proposes masks.

The version has the base's own head, but what it proposes is measured as a training does it: on FOLDER/held_out, after
FOLDER/accepted, which hold photos as LABEL-NUMBER.jpg and their masks, white on black, as LABEL-NUMBER.png. Prints what
was measured, as JSON. For a training that learns a head see `test_finetune.py`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.finetune.versions import Versions
from skipclick import Predictor, load_checkpoint
from train.finetune.examples import Example, load_images
from train.finetune.proposals import measured_proposals, prototypes_of


def examples(folder: Path) -> list[Example]:
    """The folder's photos, an object each."""

    def photo(path: Path) -> NDArray[np.uint8]:
        return np.array(Image.open(path).convert("RGB"))

    def target(path: Path) -> NDArray[np.int8]:
        return (np.array(Image.open(path).convert("L")) > 127).astype(np.int8)

    found = []
    for path in sorted(folder.glob("*.jpg")):
        label, mask = path.stem.partition("-")[0], path.with_suffix(".png")
        found.append(Example(path.stem, partial(photo, path), partial(target, mask), label=label))
    return found


def seed(model_dir: Path, project: int, folder: Path) -> dict[str, object]:
    """Writes the version, puts it in service and returns what was measured."""
    base = load_checkpoint("bundled")
    predictor = Predictor(base, keep_taps=True)
    accepted, held_out = examples(folder / "accepted"), examples(folder / "held_out")
    prototypes = prototypes_of(predictor, accepted, len(accepted))
    report = measured_proposals(predictor, prototypes, list(load_images(held_out, [])), held_out)
    measured = report.figures | {"helps": report.helps}
    versions = Versions(model_dir)
    about = {"proposals": measured, "objects": len(accepted)}
    version = versions.write(project, base, base, about=about, report={}, prototypes=prototypes)
    versions.promote(project, version.number)
    return measured


if __name__ == "__main__":
    print(json.dumps(seed(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
