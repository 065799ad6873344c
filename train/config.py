"""Settings of a training run, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import Literal

from skipclick.config import TINY, ModelConfig
from train.augment import AugmentConfig
from train.sampler import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Defaults are the released code's, which made the published weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    pretrained: bool = True  # the backbone starts from its published weights
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    exclude_kinds: tuple[str, ...] = ()
    steps: int = 55 * 937  # 55 epochs of 30,000 images in batches of 32
    batch_size: int = 32  # photos
    num_objects: int = 1  # objects clicked on each photo; they share its encoding
    max_num_next_clicks: int = 3  # simulated corrections before the graded pass, uniform in 0..this
    loss: Literal["nfl", "bce_dice"] = "nfl"
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # on matrices and kernels
    schedule: Literal["milestones", "cosine", "constant"] = "milestones"
    milestones: tuple[float, ...] = (50 / 55,)  # shares of the run after which the rate drops tenfold
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float | None = None
    bfloat16: bool = False  # autocast of the network
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimisation step `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warmup * self._decay(step / self.steps)

    def _decay(self, progress: float) -> float:
        if self.schedule == "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + cos(pi * min(1.0, progress)))
        if self.schedule == "milestones":
            return float(0.1 ** sum(progress >= milestone for milestone in self.milestones))
        return 1.0


_TINY = TrainConfig(
    model=TINY,
    pretrained=False,
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
    bfloat16=True,
)

RECIPES: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    # skipclick-tiny from scratch, in three runs: small views at a constant rate, larger views ...
    "tiny": _TINY,
    "tiny-middle": replace(_TINY, augment=replace(_TINY.augment, crop=320), learning_rate=1.5e-3),
    # ... then views of serving size while the rate falls to nothing, without regions and garments (see the model card).
    "tiny-finish": replace(
        _TINY,
        augment=replace(_TINY.augment, crop=320),
        sampler=replace(_TINY.sampler, min_object_area=400),
        exclude_kinds=("part", "region"),
        batch_size=8,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=20,
        ema_decay=0.99,  # at a constant high rate an average of weights is worse than the last ones: only here
    ),
}
