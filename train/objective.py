"""The training objective: encode the photos once, correct the mask by simulated clicks, take the last answer's loss.

B photos with K objects each; (H, W) the view's size. Random numbers are drawn object by object, so that a step is the
same however its batch is divided over processes and over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from skipclick.model import PreparedFeatures, SkipClick
from skipclick.prompts import prompt_maps
from skipclick.simulation import TRAINING_THRESHOLD, training_click
from train.config import PRECISIONS, TrainConfig
from train.dataset import Batch, ObjectBatch
from train.losses import LOSSES, Loss
from train.sampler import NUM_SLOTS


class Graded(NamedTuple):
    """The outcome of a batch."""

    loss: Tensor  # scalar, with gradient: the mean over the objects
    probability: Tensor  # (B * K, H, W) float32: the answer that the loss is of
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
    """Dropout of whole channels that are drawn beforehand, instead of from torch's global generator."""

    factors: Tensor  # (B, C, 1, 1)

    def draw(self, num_channels: int, rngs: Sequence[np.random.Generator], device: torch.device) -> None:
        """Draw the channels that the next forward passes keep; one generator per sample."""
        kept = np.stack([rng.random(num_channels, np.float32) >= self.p for rng in rngs])
        self.factors = torch.from_numpy(kept.astype(np.float32) / (1 - self.p)).to(device)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors.to(x.dtype) if self.training else x


def object_generators(seed: int, positions: Sequence[int], num_objects: int) -> list[np.random.Generator]:
    """A generator for each object of the samples at these positions of the data set's sequence."""
    # The samples themselves use (seed, position): the third number makes these streams different.
    return [np.random.default_rng((seed, position, 1 + k)) for position in positions for k in range(num_objects)]


def graded(
    model: SkipClick, batch: Batch, config: TrainConfig, num_next_clicks: int, rngs: Sequence[np.random.Generator]
) -> Graded:
    """The batch's loss after `num_next_clicks` simulated corrections; `rngs` has a generator for each object.

    Leaves the model in training mode.
    """
    batch = replace(batch, positives=batch.positives.clone(), negatives=batch.negatives.clone())
    precision = PRECISIONS[config.precision]
    if isinstance(model.decoder.dropout, DrawnDropout):
        model.decoder.dropout.draw(model.config.decoder_channels, rngs, batch.image.device)
    model.train()
    with autocast(batch.image.device, precision):
        features = model.encode(batch.image.float() / 255).repeat(len(batch.target) // len(batch.image))
    loss, probability = graded_answer(
        model, features, batch, num_next_clicks, rngs, LOSSES[config.loss], precision, config.previous_mask
    )
    return Graded(loss, probability, batch)


def graded_answer(
    model: SkipClick,
    features: PreparedFeatures,
    objects: ObjectBatch,
    num_next_clicks: int,
    rngs: Sequence[np.random.Generator],
    loss: Loss,
    precision: torch.dtype,
    previous_mask: Literal["soft", "binary"] = "soft",
) -> tuple[Tensor, Tensor]:
    """The mean loss of the answer after some simulated corrections, and the answer: (N, H, W) probabilities.

    features: of each object's view, N of them, with gradient. The corrections are simulated on the same features
    without gradient, in evaluation mode; each gets the previous soft probability (released code) or mask (paper). Their
    clicks are written into `objects`.
    """
    device, is_training = objects.target.device, model.training
    previous = torch.zeros_like(objects.target, dtype=torch.float32).unsqueeze(1)  # (N, 1, H, W)
    model.eval()
    with torch.no_grad(), autocast(device, precision):
        for i in range(1, num_next_clicks + 1):
            probability = model.decode(features, _prompt(model, previous, objects)).float().sigmoid()
            add_next_clicks(objects, probability.squeeze(1), slot=NUM_SLOTS - i, rngs=rngs)
            previous = probability if previous_mask == "soft" else (probability > TRAINING_THRESHOLD).float()
    model.train(is_training)
    with autocast(device, precision):
        logits = model.decode(features, _prompt(model, previous, objects))
    logits = logits.float()
    mean = loss(logits, objects.target.unsqueeze(1).float()).mean()
    return mean, logits.detach().sigmoid().squeeze(1)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision for one part of a step. Each part needs its own context: autocast caches the weights it casts,
    and those cast without gradient must not be reused with gradient."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def _prompt(model: SkipClick, previous: Tensor, objects: ObjectBatch) -> Tensor:
    return prompt_maps(previous, objects.positives, objects.negatives, model.config.click_radius)


def add_next_clicks(objects: ObjectBatch, probability: Tensor, slot: int, rngs: Sequence[np.random.Generator]) -> None:
    """Write one simulated click per object into `slot` of its sign, replacing any sampled click (released code)."""
    probabilities, targets = probability.cpu().numpy(), objects.target.cpu().numpy()
    for i, (prediction, target, rng) in enumerate(zip(probabilities, targets, rngs, strict=True)):
        click = training_click(prediction, target, rng)
        if click is not None:
            points = objects.positives if click.positive else objects.negatives
            points[i, slot] = torch.tensor((click.y, click.x), device=points.device)
