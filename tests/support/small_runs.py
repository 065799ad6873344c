"""Training runs that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.small_models import SMALL_CONV
from train.augment import AugmentConfig
from train.config import Run, TrainConfig
from train.sampler import SamplerConfig

QUICK = TrainConfig(
    model=SMALL_CONV,
    backbone_weights=None,
    augment=AugmentConfig(crop=64, view="window"),
    sampler=SamplerConfig(min_object_area=20, single_centre_prob=0.5),
    steps=6,
    batch_size=4,
    loss="bce_dice",
    learning_rate=3e-3,
    schedule="cosine",
    ema_decay=0.5,
)


def run(folder: Path, output: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"num_workers": 0, "log_every": 1, "validate_every": 0}
    return Run(data=(str(folder),), output=output, **(settings | changes))
