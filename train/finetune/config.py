"""Settings of fine-tuning, and reports of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The recipe; docs/results/finetune.md was measured with its defaults."""

    steps: int = 200
    batch_size: int = 8  # objects
    learning_rate: float = 3e-4  # at its peak; falls to zero along a cosine
    warmup: float = 0.08  # share of the run
    replay: float = 0.25  # share of the drawn objects that are the starting model's answers beside the accepted masks
    views: int = 6  # of each training image, encoded once
    loss: Literal["nfl", "focal", "bce_dice"] = "bce_dice"
    clip_norm: float = 1.0
    checks: int = 4  # measurements of NoC on held-out objects during the run; the best weights are kept
    patience: int = 2  # checks in a row without improvement that end the run
    min_objects: int = 8
    max_held_out: int = 40  # objects to measure on, from the images that come first
    retention_margin: float = 0.5  # additional clicks that the retention set may need on average; see `interpolate`
    proposal_images: int = 0  # maximum of held-out, and of accepted, images to evaluate proposals on; 0: none
    max_views: int = 800  # of all images together; more would hardly be drawn
    max_bytes: int = 2 << 30  # of these views in memory
    max_seconds: float = 360.0  # of learning, checks included; a slow machine has a shorter schedule
    zoom: bool = True  # learn and measure with zoom-in, as the head will be served
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] | None = None  # None: whichever is faster here

    def __post_init__(self) -> None:
        counts = (
            self.steps,
            self.batch_size,
            self.views,
            self.checks,
            self.patience,
            self.max_held_out,
            self.max_views,
        )
        if min(counts) < 1:
            raise ValueError("steps, batch_size, views, checks, patience, max_held_out, max_views must be at least 1")
        if not 0 <= self.replay < 1 or self.learning_rate <= 0:
            raise ValueError("replay must be in [0, 1) and the learning rate above 0")


@dataclass(frozen=True)
class Progress:
    """Progress of the work."""

    stage: Literal["encoding", "measuring", "learning"]
    share: float = 0.0
    """Share of this stage that is done, in [0, 1]."""
    step: int = 0
    loss: float | None = None
    noc: dict[str, float] | None = None
    """The last measurement on held-out objects: "NoC@85" and "NoC@90"."""
    seconds_left: float | None = None
    """Of this stage."""
