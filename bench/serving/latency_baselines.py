"""What `latency.py` compares: a click by this project, by the authors' design, and by the decoders of SAM's family.

Each contender is a function that answers one click on a photo that it already knows, up to the mask at the photo's size
in host memory. Weights may be random: speed does not depend on values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from skipclick import Click, Predictor
from skipclick.evaluation.evaluate import ClickModel
from skipclick.features import ImageFeatures
from skipclick.masks import MASK_THRESHOLD
from skipclick.mixer import Attention, Block
from skipclick.model import SkipClick
from skipclick.predictor import ClickRequest
from skipclick.prompts import click_points, prompt_maps, scale_clicks
from skipclick.pyramid import ParallelPyramid

if TYPE_CHECKING:
    from bench.baselines.sam import SegmentAnything

Mask = NDArray[np.bool_]

SHALLOW: dict[str, dict[str, Any]] = {
    "sam": {"vision_config": {"num_hidden_layers": 1, "global_attn_indexes": [0]}},
    "sam-hq": {"vision_config": {"num_hidden_layers": 1, "global_attn_indexes": [0]}},
    "sam3": {
        "vision_config": {
            "model_type": "sam3_vision_model",
            "backbone_config": {"model_type": "sam3_vit_model", "num_hidden_layers": 1, "global_attn_indexes": [0]},
        }
    },
    "edgetam": {  # as published; the configuration's own defaults do not fit each other
        "vision_config": {
            "backbone_config": {
                "model_type": "timm_wrapper",
                "architecture": "repvit_m1",
                "num_classes": 2,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
            }
        }
    },
}
"""By family of SAM, a configuration whose image encoder is quick; sizes of what it hands on are those of its smallest
published model."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class ClickOnce:
    """One click that can be repeated, up to the mask in host memory."""

    click: Callable[[], Mask]
    """What is timed."""
    before: Callable[[], object] = _nothing
    """Untimed, goes before each click: puts the method into the state after the clicks before."""

    def __call__(self) -> Mask:
        """The mask of the click."""
        self.before()
        return self.click()


def served(predictor: Predictor, features: ImageFeatures, clicks: Sequence[Click]) -> ClickOnce:
    """What annotators get: `Predictor.predict`."""
    (before,) = predictor.predict([ClickRequest(features, clicks[:-1])])

    def click() -> Mask:
        return predictor.predict([ClickRequest(features, clicks, before.state)])[0].mask.pixels

    return ClickOnce(click)


def plain(predictor: Predictor, features: ImageFeatures, clicks: Sequence[Click]) -> ClickOnce:
    """The forward by the released protocol, the whole photo enlarged, on features that are prepared once."""
    before = predictor.click(features, clicks[:-1])

    def click() -> Mask:
        return predictor.click(features, clicks, before) > MASK_THRESHOLD

    return ClickOnce(click)


@torch.inference_mode()
def authors_design(
    model: SkipClick,
    taps: Sequence[Tensor],
    clicks: Sequence[Click],
    size: tuple[int, int],
    resolution: tuple[int, int],
) -> ClickOnce:
    """As the released demo clicks: the backbone's taps are kept, all else is computed for every click.

    Features are fused for every click, attention matrices are materialised, the pyramid convolves the concatenation of
    mixed and image features, the decoder fuses a concatenation at the finest size, and the previous mask travels at the
    size of the photo. Dense maps keep PyTorch's default memory format. Equal to `plain` but for rounding.

    Args:
        model: float32, with a `ParallelPyramid`.
        taps: of `model.backbone`, for one photo of `size` (H, W).
    """
    pyramid = model.pyramid
    assert isinstance(pyramid, ParallelPyramid)
    kernels = [_joined(*pair) for pair in zip(pyramid.mixed, pyramid.skips, strict=True)]
    device = taps[0].device
    taps = [tap.contiguous() for tap in taps]

    @torch.inference_mode()
    def probability(clicks: Sequence[Click], previous: Tensor) -> Tensor:
        small = F.interpolate(previous, size=resolution, mode="bilinear", align_corners=True)
        points = click_points([scale_clicks(clicks, size, resolution)], device)
        prompt = prompt_maps(small, *points, model.config.click_radius)
        grid = taps[0].shape[-2:]
        x = model.fuse_taps(taps) + model.prompts(prompt) + model.mixer.positions((grid[0], grid[1]))
        for block in model.mixer.blocks:
            assert isinstance(block, Block)
            x = x + _materialised(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        mixed = x.transpose(1, 2).reshape(1, -1, *grid)
        firsts = [
            _convolved(torch.cat([mixed, tap], dim=1), first, kernel)
            for first, kernel, tap in zip(pyramid.mixed, kernels, taps, strict=True)
        ]
        levels = [refine(first) for refine, first in zip(pyramid.refine, firsts, strict=True)]
        finest = levels[0].shape[-2:]
        projected = [F.relu(layer(level)) for layer, level in zip(model.decoder.levels, levels, strict=True)]
        resized = [F.interpolate(level, finest, mode="bilinear", align_corners=False) for level in projected]
        logits = model.decoder.classify(F.relu(model.decoder.fusion(torch.cat(resized, dim=1))))
        enlarged = F.interpolate(logits, resolution, mode="bilinear", align_corners=True).sigmoid()
        return F.interpolate(enlarged, size, mode="bilinear", align_corners=True)

    before = probability(clicks[:-1], torch.zeros(1, 1, *size, device=device))

    def click() -> Mask:
        mask: Mask = (probability(clicks, before)[0, 0].cpu() > MASK_THRESHOLD).numpy()
        return mask

    return ClickOnce(click)


def _joined(mixed: nn.Module, image: nn.Module) -> Tensor:
    """The kernel over [mixed, image], of the two halves that this project keeps apart."""
    assert isinstance(mixed, (nn.Conv2d, nn.ConvTranspose2d))
    assert isinstance(image, (nn.Conv2d, nn.ConvTranspose2d))
    inputs = 0 if isinstance(mixed, nn.ConvTranspose2d) else 1
    return torch.cat([mixed.weight, image.weight], dim=inputs).contiguous()


def _convolved(x: Tensor, first: nn.Module, kernel: Tensor) -> Tensor:
    assert isinstance(first, (nn.Conv2d, nn.ConvTranspose2d))
    convolve = F.conv_transpose2d if isinstance(first, nn.ConvTranspose2d) else F.conv2d
    return convolve(x, kernel, first.bias, stride=first.stride)


def _materialised(attention: Attention, x: Tensor) -> Tensor:
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    projected: Tensor = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    return projected


def evaluated(model: ClickModel[Any], photo: NDArray[np.uint8], clicks: Sequence[Click]) -> ClickOnce:
    """A model as `noc.py` evaluates it. The photo, uint8 RGB (H, W, 3), is encoded here, once."""
    features = model.encode(photo)
    previous = [model.click(features, clicks[:-1], None)]

    def before() -> None:
        previous[0] = model.click(features, clicks[:-1], None)

    return ClickOnce(lambda: model.click(features, clicks, previous[0]) > 0.5, before)


def random_sam(family: str, device: str) -> SegmentAnything:
    """A model of SAM's family at its own resolution, with random weights and a shallow image encoder.

    Raises `ImportError` without transformers.
    """
    import transformers

    from bench.baselines.sam import FAMILIES, SegmentAnything

    kind = FAMILIES[family]
    model, processor = getattr(transformers, kind.model), getattr(transformers, kind.processor)
    torch.manual_seed(0)
    network = model(model.config_class(**SHALLOW.get(family, {})))
    images = getattr(transformers, kind.image_processor)()
    return SegmentAnything(family, network, processor(images), f"{family} with random weights", device)
