"""Protects what `--model` stands for: checkpoint or baseline, the network size for a data set, what cannot be had."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.models import ModelSpec, checkpoint_sha256, is_checkpoint, load_model, network_size, published_row
from skipclick import Predictor
from skipclick.checkpoint import save_checkpoint
from skipclick.config import VitConfig, preset
from skipclick.model import SkipClick
from tests.support.small_models import SMALL

BUNDLED = ModelSpec("bundled", (448, 448), "cpu", "float32", flip=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_checkpoint(SkipClick(SMALL), path, version="small")
    return str(path)


def test_the_published_size_is_for_vits(vit: str) -> None:
    assert network_size(vit, (672, 672), None) == (672, 672)
    assert network_size(vit, None, None) == SMALL.resolution
    assert network_size("bundled", (672, 672), None) == (448, 448)
    for name in (vit, "bundled"):
        assert network_size(name, (672, 672), 224) == (224, 224)
    assert network_size("grabcut", (672, 672), 224) is None


def test_a_spec_becomes_the_predictor_it_describes(vit: str) -> None:
    model = load_model(ModelSpec(vit, (56, 56), "cpu", "bfloat16", flip=True))
    assert isinstance(model, Predictor)
    assert (model.resolution, model.dtype, model.flip, model.version) == ((56, 56), torch.bfloat16, True, "small")


def test_a_spec_names_the_runtime(vit: str) -> None:
    model = load_model(ModelSpec(vit, (56, 56), "cpu", "float32", flip=False, runtime="openvino"))
    assert isinstance(model, Predictor)
    assert model.runtime == "openvino float32"


def test_checkpoints_are_told_from_baselines(vit: str) -> None:
    assert is_checkpoint("bundled")
    assert is_checkpoint(vit)
    assert is_checkpoint("missing.pth")
    for baseline in ("grabcut", "sam:weights.pth", "package.module:factory"):
        assert not is_checkpoint(baseline)


def test_the_hash_is_that_of_the_file(vit: str) -> None:
    assert checkpoint_sha256(vit) == hashlib.sha256(Path(vit).read_bytes()).hexdigest()
    assert len(checkpoint_sha256("bundled") or "") == 64
    assert checkpoint_sha256("grabcut") is None


def test_a_model_stands_beside_the_row_of_its_architecture(vit: str, tmp_path: Path) -> None:
    assert [published_row(vit, number) for number in (1, 2, 4, 5)] == ["+ Skip Connections", "SkipClick"] * 2
    assert published_row(vit, 6) == f"depth {SMALL.mixer_depth}"
    frozen = tmp_path / "frozen.safetensors"
    save_checkpoint(SkipClick(preset("frozen", SMALL, "paper")), frozen, version="frozen")
    assert [published_row(str(frozen), number) for number in (1, 2)] == ["+ Frozen Backbone", None]
    dinov3 = tmp_path / "dinov3.safetensors"
    shape = VitConfig(name="vit_base_patch16_dinov3_qkvb", embed_dim=24, num_heads=2, depth=4, taps=(0, 1, 2, 3))
    save_checkpoint(SkipClick(replace(SMALL, backbone=shape, patch_size=16)), dinov3, version="dinov3")
    assert [published_row(str(dinov3), number) for number in (1, 4)] == [None, "DINOv3"]
    assert published_row("sam-hq:x", 3) == "HQ-SAM"
    assert published_row("sam:x", 1) is published_row("grabcut", 2) is published_row("bundled", 4) is None


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors does not exist"):
        load_model(replace(BUNDLED, name="nowhere.safetensors"))
    with pytest.raises(ValueError, match="nothing"):
        load_model(replace(BUNDLED, name="nothing"))
    with pytest.raises(ValueError, match="multiples of"):
        load_model(replace(BUNDLED, resolution=(100, 100)))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            load_model(replace(BUNDLED, device="cuda"))
