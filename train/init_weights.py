"""The network that a run starts from: a fresh head on a backbone that may be pretrained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from skipclick.backbone import ConvBackbone
from skipclick.checkpoint import load_checkpoint, load_provenance
from skipclick.model import SkipClick
from train.config import DINOV3_LICENSE, PUBLISHED, TrainConfig
from train.efficientnet_lite import PackagedWeights, is_packaged, read_packaged


def new_model(config: TrainConfig) -> SkipClick:
    """A model by this configuration, with the backbone weights it names; `ValueError` if they cannot be loaded."""
    if config.backbone_weights == PUBLISHED and "dinov3" in config.model.backbone.name:
        print(f"the weights of {config.model.backbone.name} are under Meta's DINOv3 License, {DINOV3_LICENSE}")
    packaged = _packaged(config)
    model = SkipClick(config.model, pretrained=config.backbone_weights == PUBLISHED and packaged is None)
    if packaged is not None and isinstance(model.backbone.encoder, ConvBackbone):
        take_weights(model.backbone.encoder.stages, packaged.state, packaged.origin["package"])
    elif config.backbone_weights not in (None, PUBLISHED):
        backbone = load_checkpoint(config.backbone_weights).backbone
        take_weights(model.backbone, backbone.state_dict(), f"the backbone of {config.backbone_weights}")
    return model


def backbone_origin(config: TrainConfig) -> dict[str, str] | None:
    """Where the backbone's weights come from, their licence and hash, as far as known."""
    packaged = _packaged(config)
    if packaged is not None:
        return dict(packaged.origin)
    if config.backbone_weights in (None, PUBLISHED):
        return None
    origin: dict[str, str] | None = load_provenance(config.backbone_weights).get("backbone")
    return origin


def _packaged(config: TrainConfig) -> PackagedWeights | None:
    if config.backbone_weights != PUBLISHED or not is_packaged(config.model.backbone.name):
        return None
    return read_packaged(config.model.backbone.name)


def take_weights(module: nn.Module, given: Mapping[str, Tensor], name: str) -> None:
    """Copy a module's weights. `given` may hold more of them, such as stages that a preset does not use.

    Raises `ValueError` if one is missing or of another shape.
    """
    wanted = module.state_dict()
    if unfit := [key for key, tensor in wanted.items() if key not in given or given[key].shape != tensor.shape]:
        raise ValueError(f"{name} does not fit this network: {len(unfit)} weights differ, the first is {unfit[0]}")
    module.load_state_dict({key: given[key] for key in wanted})
