"""One training step: encode the photos once, let simulated clicks correct the mask, grade the last answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from skipclick.model import PreparedFeatures, SkipClick
from skipclick.prompts import prompt_maps
from skipclick.simulation import training_click
from train.dataset import Batch
from train.sampler import NUM_SLOTS

Loss = Callable[[Tensor, Tensor], Tensor]


def training_loss(
    model: SkipClick,
    batch: Batch,
    loss: Loss,
    num_next_clicks: int,
    rng: np.random.Generator,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """The batch's mean loss, with gradient, and the probabilities (B * K, H, W) float32 it graded.

    `num_next_clicks` corrections are simulated first: without gradient, in evaluation mode, on the same features, each
    fed the soft probability of the one before (released code). Leaves the model in training mode.
    """
    device_type = batch.image.device.type

    def autocast() -> torch.autocast:
        # A context of its own for each part: weights cast inside no_grad must not be reused by the graded pass.
        return torch.autocast(device_type, torch.bfloat16, enabled=bfloat16)

    num_objects = len(batch.target) // len(batch.image)
    model.train()
    with autocast():
        features = model.encode(batch.image.float() / 255).repeat(num_objects)
    model.eval()
    with torch.no_grad(), autocast():
        previous = _corrected(model, features, batch, num_next_clicks, rng)
    model.train()
    with autocast():
        logits = model.decode(features, _prompt(model, previous, batch))  # (B * K, 1, H, W)
    logits = logits.float()
    return loss(logits, batch.target.unsqueeze(1).float()).mean(), logits.detach().sigmoid().squeeze(1)


def _prompt(model: SkipClick, previous: Tensor, batch: Batch) -> Tensor:
    return prompt_maps(previous, batch.positives, batch.negatives, model.config.click_radius)


def _corrected(
    model: SkipClick, features: PreparedFeatures, batch: Batch, num_clicks: int, rng: np.random.Generator
) -> Tensor:
    """The probability (B * K, 1, H, W) after some simulated corrections; their clicks are written into the batch."""
    previous = torch.zeros_like(batch.target, dtype=torch.float32).unsqueeze(1)
    for i in range(1, num_clicks + 1):
        previous = model.decode(features, _prompt(model, previous, batch)).float().sigmoid()
        add_next_clicks(batch, previous.squeeze(1), slot=NUM_SLOTS - i, rng=rng)
    return previous


def add_next_clicks(batch: Batch, probability: Tensor, slot: int, rng: np.random.Generator) -> None:
    """One simulated click per object into `slot` of its polarity, over whatever was sampled there (released code)."""
    probabilities, targets = probability.cpu().numpy(), batch.target.cpu().numpy()
    for i, (prediction, target) in enumerate(zip(probabilities, targets, strict=True)):
        click = training_click(prediction, target, rng)
        if click is not None:
            points = batch.positives if click.positive else batch.negatives
            points[i, slot] = torch.tensor((click.y, click.x), device=points.device)
