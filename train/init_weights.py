"""The network that a run starts from: a fresh head on a backbone that may have learnt before."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from skipclick.checkpoint import load_checkpoint
from skipclick.model import SkipClick
from train.config import DINOV3_LICENSE, PUBLISHED, TrainConfig


def new_model(config: TrainConfig) -> SkipClick:
    """Built as the configuration says, with the backbone weights it names; `ValueError` where they cannot be had."""
    if config.backbone_weights == PUBLISHED and "dinov3" in config.model.backbone.name:
        print(f"the weights of {config.model.backbone.name} are under Meta's DINOv3 License, {DINOV3_LICENSE}")
    model = SkipClick(config.model, pretrained=config.backbone_weights == PUBLISHED)
    if config.backbone_weights not in (None, PUBLISHED):
        backbone = load_checkpoint(config.backbone_weights).backbone
        take_weights(model.backbone, backbone.state_dict(), f"the backbone of {config.backbone_weights}")
    return model


def take_weights(module: nn.Module, given: Mapping[str, Tensor], name: str) -> None:
    """Copy a module's weights. `given` may hold more of them, such as stages that a preset does without.

    Raises `ValueError` where one is missing or of another shape.
    """
    wanted = module.state_dict()
    if unfit := [key for key, tensor in wanted.items() if key not in given or given[key].shape != tensor.shape]:
        raise ValueError(f"{name} does not fit this network: {len(unfit)} weights differ, the first is {unfit[0]}")
    module.load_state_dict({key: given[key] for key in wanted})
