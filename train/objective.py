"""One training step: encode the photos once, let simulated clicks correct the mask, grade the last answer.

B photos with K objects each; (H, W) the view's size. All that is drawn at random is drawn object by object, so that a
step is the same however its batch is divided over processes and over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skipclick.model import PreparedFeatures, SkipClick
from skipclick.prompts import prompt_maps
from skipclick.simulation import TRAINING_THRESHOLD, training_click
from train.config import PRECISIONS, TrainConfig
from train.dataset import Batch
from train.losses import LOSSES
from train.sampler import NUM_SLOTS


class Graded(NamedTuple):
    """What came out of a batch."""

    loss: Tensor  # scalar, with gradient: the mean over the objects
    probability: Tensor  # (B * K, H, W) float32: the answer that was graded
    batch: Batch  # with the clicks that led to it


class Objective(nn.Module):
    """The loss of a batch as a module's forward, which is what `DistributedDataParallel` wraps."""

    def __init__(self, model: SkipClick, config: TrainConfig) -> None:
        super().__init__()
        model.decoder.dropout = DrawnDropout(model.decoder.dropout.p)
        self.model = model
        self.config = config

    def forward(self, batch: Batch, num_next_clicks: int, rngs: Sequence[np.random.Generator]) -> Graded:
        return graded(self.model, batch, self.config, num_next_clicks, rngs)


class DrawnDropout(nn.Dropout2d):
    """Dropout of whole channels that were drawn beforehand, and not from torch's one stream of random numbers."""

    factors: Tensor  # (B, C, 1, 1)

    def draw(self, num_channels: int, rngs: Sequence[np.random.Generator], device: torch.device) -> None:
        """The channels that the next forward passes keep, a generator for each sample."""
        kept = np.stack([rng.random(num_channels, np.float32) >= self.p for rng in rngs])
        self.factors = torch.from_numpy(kept.astype(np.float32) / (1 - self.p)).to(device)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors.to(x.dtype) if self.training else x


def object_generators(seed: int, positions: Sequence[int], num_objects: int) -> list[np.random.Generator]:
    """A generator for each object of the samples at these positions of the data set's sequence."""
    # The samples themselves are drawn from (seed, position): the third number keeps clear of theirs.
    return [np.random.default_rng((seed, position, 1 + k)) for position in positions for k in range(num_objects)]


def graded(
    model: SkipClick, batch: Batch, config: TrainConfig, num_next_clicks: int, rngs: Sequence[np.random.Generator]
) -> Graded:
    """The batch's loss after `num_next_clicks` simulated corrections; `rngs` has a generator for each object.

    The corrections are simulated without gradient, in evaluation mode, on the same features, each fed the soft
    probability of the one before (released code) or its mask (paper). Leaves the model in training mode.
    """
    batch = replace(batch, positives=batch.positives.clone(), negatives=batch.negatives.clone())
    device_type = batch.image.device.type
    precision = PRECISIONS[config.precision]

    def autocast() -> torch.autocast:
        # A context of its own for each part: weights cast inside no_grad must not be reused by the graded pass.
        return torch.autocast(device_type, precision, enabled=precision != torch.float32)

    if isinstance(model.decoder.dropout, DrawnDropout):
        model.decoder.dropout.draw(model.config.decoder_channels, rngs, batch.image.device)
    model.train()
    with autocast():
        features = model.encode(batch.image.float() / 255).repeat(len(batch.target) // len(batch.image))
    model.eval()
    with torch.no_grad(), autocast():
        previous = _corrected(model, features, batch, config, num_next_clicks, rngs)
    model.train()
    with autocast():
        logits = model.decode(features, _prompt(model, previous, batch))  # (B * K, 1, H, W)
    logits = logits.float()
    loss = LOSSES[config.loss](logits, batch.target.unsqueeze(1).float()).mean()
    return Graded(loss, logits.detach().sigmoid().squeeze(1), batch)


def _prompt(model: SkipClick, previous: Tensor, batch: Batch) -> Tensor:
    return prompt_maps(previous, batch.positives, batch.negatives, model.config.click_radius)


def _corrected(
    model: SkipClick,
    features: PreparedFeatures,
    batch: Batch,
    config: TrainConfig,
    num_clicks: int,
    rngs: Sequence[np.random.Generator],
) -> Tensor:
    """The previous mask (B * K, 1, H, W) after some simulated corrections; their clicks are written into the batch."""
    previous = torch.zeros_like(batch.target, dtype=torch.float32).unsqueeze(1)
    for i in range(1, num_clicks + 1):
        probability = model.decode(features, _prompt(model, previous, batch)).float().sigmoid()
        add_next_clicks(batch, probability.squeeze(1), slot=NUM_SLOTS - i, rngs=rngs)
        previous = probability if config.previous_mask == "soft" else (probability > TRAINING_THRESHOLD).float()
    return previous


def add_next_clicks(batch: Batch, probability: Tensor, slot: int, rngs: Sequence[np.random.Generator]) -> None:
    """One simulated click per object into `slot` of its polarity, over whatever was sampled there (released code)."""
    probabilities, targets = probability.cpu().numpy(), batch.target.cpu().numpy()
    for i, (prediction, target, rng) in enumerate(zip(probabilities, targets, rngs, strict=True)):
        click = training_click(prediction, target, rng)
        if click is not None:
            points = batch.positives if click.positive else batch.negatives
            points[i, slot] = torch.tensor((click.y, click.x), device=points.device)
