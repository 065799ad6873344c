"""Protects annotators from weights that load and answer, but know nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.factory import build_service
from backend.known_picture import check_known_picture, known_mask
from backend.settings import Settings
from skipclick import Predictor, load_checkpoint
from skipclick.checkpoint import save_checkpoint


def test_the_bundled_model_knows_the_picture() -> None:
    check_known_picture(Predictor(load_checkpoint("bundled")))
    assert 0.1 < known_mask().mean() < 0.2


@pytest.mark.parametrize("damage", ["zeros", "another order"])
def test_weights_that_answer_with_nothing_or_noise_never_serve(tmp_path: Path, damage: str) -> None:
    model = load_checkpoint("bundled")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if damage == "zeros":
                parameter.zero_()
            else:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, version="damaged")
    with pytest.raises(ValueError, match="the weights do not segment: on a known photo"):
        build_service(
            Settings(checkpoint=str(path), device="cpu", runtime="torch", dtype="float32", model_dir=tmp_path)
        )
