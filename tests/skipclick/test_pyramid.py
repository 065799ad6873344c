"""Protects what the pyramid keeps of an image: computed once or, to save memory, anew for every click."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from skipclick.config import ModelConfig, preset
from skipclick.model import SkipClick
from tests.support.small_models import SMALL, SMALL_CONV


def kept_bytes(model: SkipClick, compact: bool) -> int:
    device = next(model.parameters()).device
    taps = model.backbone(torch.zeros(1, 3, *model.config.resolution, device=device))
    features = model.prepare(taps, compact=compact)
    return sum(tensor.nbytes for tensor in (features.tokens, *features.skips))


@pytest.mark.parametrize("config", [SMALL, preset("frozen", SMALL), SMALL_CONV], ids=["vit", "no skips", "convnet"])
@torch.inference_mode()
def test_compact_features_give_the_same_logits(config: ModelConfig) -> None:
    torch.manual_seed(0)
    side = 4 * config.size_multiple
    model = SkipClick(config).eval()
    taps = model.backbone(torch.rand(2, 3, side, side))
    prompt = torch.rand(2, 3, side, side)
    full = model.decode(model.prepare(taps), prompt)
    compact = model.decode(model.prepare(taps, compact=True), prompt)
    torch.testing.assert_close(compact, full, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_compact_features_of_the_papers_model_fit_a_gpus_budget() -> None:
    """35 MB for an image at 896 pixels in bfloat16: shapes alone decide, so no weights are needed."""
    with torch.device("meta"):
        model = SkipClick(replace(ModelConfig(), resolution=(896, 896)))
    assert kept_bytes(model, compact=True) / 2 <= 35_000_000 < kept_bytes(model, compact=False) / 2
