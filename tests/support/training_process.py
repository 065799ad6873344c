"""A small training run as a process of its own, for tests that kill it or start several of it.

python tests/support/training_process.py DATA OUTPUT '{"steps": 8, "preset": "frozen"}' '{"accumulate": 2}'

The network has no batch normalisation, so that a batch may be divided without changing anything but rounding.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from skipclick.config import preset
from tests.support.small_models import SMALL
from train.augment import AugmentConfig
from train.config import Run, TrainConfig
from train.fit import fit
from train.sampler import SamplerConfig

SMALL_VIT = TrainConfig(
    model=replace(SMALL, resolution=(56, 56)),
    backbone_weights=None,
    augment=AugmentConfig(crop=56, view="window"),
    sampler=SamplerConfig(min_object_area=20, single_centre_prob=0.5),
    num_objects=2,
    steps=8,
    batch_size=8,
    learning_rate=1e-3,
    schedule="constant",
    clip_norm=1.0,
)


def main() -> None:
    data, output, given, run = sys.argv[1:]
    settings = json.loads(given)
    if "preset" in settings:
        settings["model"] = preset(settings.pop("preset"), SMALL_VIT.model)
    torch.set_num_threads(1)
    options = {"log_every": 1, "validate_every": 0} | json.loads(run)
    options["device"] = torch.device(options.get("device", "cpu"))
    Path(f"{output}.pid{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    fit(replace(SMALL_VIT, **settings), Run(data=(data,), output=Path(output), **options))


if __name__ == "__main__":
    main()
