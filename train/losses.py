"""Losses over logits (B, 1, H, W) and float targets (B, 1, H, W): 1 object, 0 background, -1 ignored."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
EPS = 1e-12


def focal_loss(
    logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0, *, normalised: bool = False
) -> Tensor:
    """Focal loss of each sample, (B,), which the paper names (Lin et al.; alpha as in the released code)."""
    valid = target >= 0
    probability = logits.sigmoid()
    agreement = torch.where(valid, 1 - (target - probability).abs(), 1.0)  # p_t
    focus = (1 - agreement) ** gamma
    num_valid = valid.sum(dim=(1, 2, 3)).to(logits.dtype)
    factor = torch.ones_like(num_valid)
    if normalised:
        factor = (num_valid / (focus.sum(dim=(1, 2, 3)) + EPS)).detach()
    weight = torch.where(target > 0.5, alpha, 1 - alpha) * focus * factor.view(-1, 1, 1, 1)
    loss = -weight * (agreement + EPS).clamp(max=1.0).log() * valid
    return loss.sum(dim=(1, 2, 3)) / (num_valid + EPS)


def normalised_focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Normalised focal loss of each sample, (B,) (Sofiiuk et al., AdaptIS; the released code's setting is alpha 0.5).

    The focal weights of a sample are rescaled to sum to its number of valid pixels; the factor carries no gradient.
    """
    return focal_loss(logits, target, alpha, gamma, normalised=True)


def bce_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice of each sample, (B,): from scratch, it learns faster than the focal loss."""
    valid = (target >= 0).to(logits.dtype)
    label = target.clamp(min=0)
    num_valid = valid.sum(dim=(1, 2, 3)).clamp(min=1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, label, weight=valid, reduction="none")
    probability, label = logits.sigmoid() * valid, label * valid
    overlap = 2 * (probability * label).sum(dim=(1, 2, 3)) + 1
    dice = 1 - overlap / (probability.sum(dim=(1, 2, 3)) + label.sum(dim=(1, 2, 3)) + 1)
    return cross_entropy.sum(dim=(1, 2, 3)) / num_valid + dice


LOSSES: dict[str, Loss] = {"nfl": normalised_focal_loss, "focal": focal_loss, "bce_dice": bce_dice_loss}
