"""Protects the configuration: presets are the rows of Table 1, every field matters, files round-trip."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from skipclick.config import (
    DINOV2,
    DINOV3_VITB16,
    PRESETS,
    TINY,
    ModelConfig,
    preset,
)
from skipclick.model import SkipClick
from skipclick.prompts import prompt_maps
from tests.support.small_models import SMALL, SMALL_CONV


@torch.no_grad()
def fingerprint(config: ModelConfig) -> list[float]:
    """What a network of this configuration answers with weights drawn from a fixed seed, and its size."""
    torch.manual_seed(0)
    model = SkipClick(config).eval()
    side = 2 * config.size_multiple * (3 if config.patch_size == 14 else 1)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[side / 2, side / 2]]])
    prompt = prompt_maps(torch.zeros(1, 1, side, side), points, points - 5, config.click_radius)
    logits = model.decode(model.encode(image), prompt)
    return [float(logits.mean()), float(logits.std()), sum(p.numel() for p in model.parameters() if p.requires_grad)]


CHANGED = {
    "backbone": replace(SMALL.backbone, depth=5, taps=(0, 1, 2, 4)),
    "train_backbone": True,
    "patch_size": 7,
    "skip_connections": False,
    "mixer_depth": 2,
    "mixer_heads": 3,
    "mixer_grid": 5,
    "pyramid_channels": (8, 8, 16, 32),
    "decoder_channels": 16,
    "click_radius": 3.0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
TESTED_ELSEWHERE = {
    "resolution": "the predictor's default (test_predictor.py)",
    "antialias": "how the predictor resizes (test_predictor.py)",
    "fuse": "needs another number of taps (presets below)",
    "pyramid": "goes with the kind of backbone (below)",
    "mixer_width": "must be a width the heads divide (below)",
}


def test_every_field_is_tested_somewhere() -> None:
    assert {f.name for f in fields(ModelConfig)} == CHANGED.keys() | TESTED_ELSEWHERE.keys()


@pytest.mark.parametrize("name", CHANGED)
def test_every_field_changes_the_model(name: str) -> None:
    assert fingerprint(replace(SMALL, **{name: CHANGED[name]})) != fingerprint(SMALL)


def test_wider_mixer_changes_the_model() -> None:
    assert fingerprint(replace(SMALL, mixer_width=32)) != fingerprint(SMALL)


def test_the_four_presets_are_table_1() -> None:
    base = DINOV2["dinov2_vitb14_reg"]
    rows = {name: preset(name, base) for name in PRESETS}
    assert [rows[name].train_backbone for name in PRESETS] == [True, False, False, False]
    assert [rows[name].skip_connections for name in PRESETS] == [False, False, False, True]
    assert [rows[name].num_taps for name in PRESETS] == [1, 1, 4, 4]
    assert rows["skip"].backbone.taps == (2, 5, 8, 11)  # type: ignore[union-attr]
    assert rows["skip"] == ModelConfig()


@pytest.mark.parametrize("name", ["baseline", "frozen"])
def test_the_baselines_tap_the_third_block_as_released_or_the_last_as_in_the_paper(name: str) -> None:
    released = preset(name, tap="released")  # type: ignore[arg-type]
    paper = preset(name, tap="paper")  # type: ignore[arg-type]
    assert released.backbone.taps == (2,)  # type: ignore[union-attr]
    assert not released.fuse
    assert paper.backbone.taps == (11,)  # type: ignore[union-attr]
    assert paper.fuse


def test_stages_of_a_convnet_stand_for_quarters_of_a_vit() -> None:
    rows = {name: preset(name, TINY, "paper") for name in PRESETS}
    assert [rows[name].backbone.taps for name in PRESETS] == [(3,), (3,), (0, 1, 2, 3), (0, 1, 2, 3)]  # type: ignore[union-attr]
    assert [rows[name].tap_widths for name in ("frozen", "skip")] == [(256,), (48, 96, 192, 256)]
    assert preset("frozen", TINY, "released").backbone.taps == (0,)  # type: ignore[union-attr]
    assert replace(rows["skip"], train_backbone=True) == TINY


@pytest.mark.parametrize("base", [replace(SMALL, backbone=replace(SMALL.backbone, depth=4)), SMALL_CONV])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tap", ["released", "paper"])
def test_every_preset_can_be_built_and_run(name: str, tap: str, base: ModelConfig) -> None:
    assert all(torch.isfinite(torch.tensor(fingerprint(preset(name, base, tap)))))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [*DINOV2.values(), DINOV3_VITB16, TINY], ids=[*DINOV2, "dinov3", "tiny"])
def test_every_published_backbone_can_be_built(config: ModelConfig) -> None:
    with torch.device("meta"):  # shapes only: the large ones would take seconds to fill
        model = SkipClick(config)
    widths = {tuple(p.shape) for p in model.prompts.parameters()}
    assert (config.mixer_width, 3, config.patch_size, config.patch_size) in widths


def test_vit_b_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        model = SkipClick(ModelConfig())
    unused_in_release = 768 + 768  # mask token; the class token's position, which timm folds into the token
    upsampling_head = 185_472  # head.up_conv1 and up_conv2: in every released file, never used
    released = 153_164_417
    ours = sum(p.numel() for p in model.parameters())
    assert released - ours == unused_in_release + upsampling_head


def test_json_round_trip() -> None:
    for config in (SMALL, TINY, preset("baseline")):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_and_missing_fields_are_named() -> None:
    values = SMALL.to_dict()
    del values["mixer_depth"]
    values["depth"] = 3
    with pytest.raises(ValueError, match=r"missing fields \['mixer_depth'\], unknown fields \['depth'\]"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pyramid": "top_down"}, "share one grid"),
        ({"fuse": False}, "single tap"),
        ({"backbone": replace(SMALL.backbone, taps=(3,))}, "four taps"),
        ({"mixer_heads": 5}, "not a multiple"),
        ({"backbone": replace(SMALL.backbone, taps=(0, 1, 2, 4))}, "beyond"),
        ({"backbone": replace(SMALL.backbone, taps=(0, 1, 1, 3))}, "increase"),
    ],
)
def test_impossible_combinations_are_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **change)  # type: ignore[arg-type]
