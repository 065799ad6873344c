"""Settings of a training run, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import cos, pi
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from skipclick.checkpoint import load_checkpoint
from skipclick.config import DINOV2, DINOV3_VITB16, EFFICIENTNET_LITE, TINY, ModelConfig, Preset, preset
from train.augment import AugmentConfig
from train.sampler import SamplerConfig

PUBLISHED = "published"
BACKBONES: dict[str, ModelConfig] = {**DINOV2, "dinov3_vitb16": DINOV3_VITB16, **EFFICIENTNET_LITE}
"""The names that `--backbone` knows. Published weights are downloaded through timm; those of EfficientNet-Lite are read
from installed packages."""

DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
"""Meta's DINOv3 License, which is not an open-source one: its terms also apply to models derived from those weights."""

CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is learnt, and how; constant during a run.

    Defaults are the released code's, which made the published weights.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    backbone_weights: str | None = PUBLISHED  # timm's; or a checkpoint's, "bundled" or a file; None: random ones
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    exclude_kinds: tuple[str, ...] = ()
    steps: int = 55 * 937  # 55 epochs
    batch_size: int = 32  # photos, in all processes together
    epoch_photos: int = 30_000  # drawn with replacement; the last incomplete batch is dropped: 937 steps
    num_objects: int = 1  # objects clicked on each photo; they share its encoding
    max_num_next_clicks: int = 3  # simulated corrections before the graded pass
    next_clicks: Literal["uniform", "fixed"] = "uniform"  # uniform in 0..max; paper: "fixed", always max
    previous_mask: Literal["soft", "binary"] = "soft"  # what the network is fed back; paper: "binary" (Eq. 2)
    loss: Literal["nfl", "focal", "bce_dice"] = "nfl"  # paper: "focal"
    learning_rate: float = 5e-5
    backbone_learning_rate: float | None = None  # of a trained backbone; None: that of the head
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # on matrices and kernels
    schedule: Literal["milestones", "cosine", "constant"] = "milestones"
    milestones: tuple[float, ...] = (50 / 55,)  # shares of the run after which the rate drops tenfold
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network, by autocast
    seed: int = 0

    def __post_init__(self) -> None:
        multiple = self.model.size_multiple
        if self.augment.crop % multiple:
            raise ValueError(
                f"a crop of {self.augment.crop} pixels does not fit the network: use a multiple of {multiple}"
            )
        if self.backbone_learning_rate is not None and not self.model.train_backbone:
            raise ValueError("backbone_learning_rate is given but the backbone is frozen: set model.train_backbone")

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.epoch_photos // self.batch_size)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimisation step `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warmup * self._decay(step / self.steps)

    def num_next_clicks_at(self, step: int) -> int:
        """How many corrections optimisation step `step` simulates; all processes agree."""
        if self.next_clicks == "fixed":
            return self.max_num_next_clicks
        return int(np.random.default_rng((self.seed, step)).integers(self.max_num_next_clicks + 1))

    def _decay(self, progress: float) -> float:
        if self.schedule == "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + cos(pi * min(1.0, progress)))
        if self.schedule == "milestones":
            return float(0.1 ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training runs and what it writes. The result does not depend on it, except for rounding and for batch
    normalisation, which sees only the photos that pass through the network together.
    """

    data: tuple[str, ...]  # sources, as `train.sources` reads them
    output: Path
    device: torch.device = CPU
    num_workers: int = 1  # processes that prepare samples, for each process that trains
    accumulate: int = 1  # parts of a process's share of the batch that pass through the network one after the other
    compile: bool = False  # kernels by torch.compile
    init: Path | None = None  # training checkpoint whose weights to start from
    resume: bool = False
    elastic: bool = False  # start, or continue if `output` holds a run; stopping early raises an error
    save_every_seconds: float = 120.0
    keep: int = 2  # newest checkpoints to keep, besides the best
    log_every: int = 20  # steps
    picture_every: int = 500  # steps
    validate: tuple[tuple[str, Path], ...] = ()  # data sets of the benchmark; empty: the held-out photos
    validate_every: int | None = None  # steps; None: after each epoch; 0: never
    validate_limit: int | None = 50  # photos of each set
    command: tuple[str, ...] = ()  # for the record


_TINY = TrainConfig(
    model=TINY,
    backbone_weights=None,
    augment=AugmentConfig(crop=192, view="window"),
    sampler=SamplerConfig(min_object_area=150, single_centre_prob=0.5),
    batch_size=12,
    num_objects=2,
    loss="bce_dice",
    learning_rate=2e-3,
    weight_decay=0.05,
    schedule="constant",
    warmup_steps=60,
    clip_norm=1.0,
    precision="bfloat16",
)

_TINY_LARGE = replace(
    _TINY,
    augment=replace(_TINY.augment, crop=320),
    sampler=replace(_TINY.sampler, min_object_area=400),
    exclude_kinds=("part", "region"),
    batch_size=8,
    warmup_steps=20,
)

RECIPES: dict[str, TrainConfig] = {
    "paper": TrainConfig(sampler=SamplerConfig(small_as_others=True)),
    # skipclick-tiny from scratch, in three runs: small views at a constant rate, larger views ...
    "tiny": _TINY,
    "tiny-middle": replace(_TINY, augment=replace(_TINY.augment, crop=320), learning_rate=1.5e-3),
    # ... then views of serving size while the rate falls, without regions and garments (see the model card).
    "tiny-finish": replace(
        _TINY_LARGE,
        learning_rate=1e-3,
        schedule="cosine",
        ema_decay=0.99,  # at a constant high rate an average of weights is worse than the last ones: only here
    ),
    # The same at a constant rate: between one finish and the next.
    "tiny-long": replace(_TINY_LARGE, learning_rate=1.2e-3, warmup_steps=60),
}


def with_network(
    config: TrainConfig,
    backbone: str | None = None,
    row: Preset | None = None,
    tap: Literal["released", "paper"] | None = None,
) -> TrainConfig:
    """The recipe with another network: a row of Table 1 (default: "skip") on another backbone.

    backbone: a key of `BACKBONES`, with published weights, or a checkpoint ("bundled" or a file), whose configuration
    and backbone weights are used; None: the recipe's. tap: which block the two baselines tap, "released" by default
    (`skipclick.config.preset`). `ValueError` if the backbone is neither.
    """
    if tap and row not in ("baseline", "frozen"):
        raise ValueError("--tap says which block the baselines tap: use it with --preset baseline or frozen")
    if backbone is None and row is None:
        return config
    base, weights = config.model, config.backbone_weights
    if backbone in BACKBONES:
        base, weights = BACKBONES[backbone], PUBLISHED
    elif backbone is not None:
        base, weights = _config_of(backbone), backbone
    return replace(config, model=preset(row or "skip", base, tap or "released"), backbone_weights=weights)


def _config_of(checkpoint: str) -> ModelConfig:
    try:
        return load_checkpoint(checkpoint).config
    except ValueError as error:
        raise ValueError(f"--backbone is none of {', '.join(BACKBONES)}, and as a checkpoint: {error}") from None
