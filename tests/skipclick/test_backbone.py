"""Protects the image encoder: published weights come in through timm, frozen means frozen."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from skipclick import timm_networks
from skipclick.backbone import Backbone
from skipclick.config import EFFICIENTNET_LITE, ConvNetConfig, ModelConfig
from skipclick.released import convert_released
from tests.support.parity_files import for_each_golden
from tests.support.rule_weights import released_parameters, rule_state
from tests.support.small_models import SMALL, SMALL_CONV


@for_each_golden("layout_tiny_skip.json")
def test_timm_reads_the_hubs_weights_as_we_read_released_ones(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pretrained=True` with a file in the place of the download: timm's own conversion must agree with ours."""
    layout = json.loads(golden.read_text())
    state = rule_state(layout)
    prefix = "feature_extractor.dinov2."
    hub = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    torch.save(hub, tmp_path / "hub.pth")
    config, converted = convert_released(state, released_parameters(layout))
    local = partial(timm.create_model, pretrained_cfg_overlay={"file": str(tmp_path / "hub.pth")})
    monkeypatch.setattr(timm_networks.timm, "create_model", local)
    loaded = Backbone(config, pretrained=True).state_dict()
    assert loaded
    for key, tensor in loaded.items():
        assert torch.equal(tensor, converted[f"backbone.{key}"]), key


def test_weights_that_cannot_be_fetched_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm_networks.timm, "create_model", no_network)
    with pytest.raises(ValueError, match="vit_base_patch14_reg4_dinov2 could not be loaded"):
        Backbone(ModelConfig(), pretrained=True)


@pytest.mark.parametrize("config", [SMALL, SMALL_CONV], ids=["vit", "convnet"])
def test_taps_have_the_announced_widths_and_strides(config: ModelConfig) -> None:
    side = 2 * config.size_multiple
    taps = Backbone(config).eval()(torch.rand(1, 3, side, side))
    assert tuple(tap.shape[1] for tap in taps) == config.tap_widths
    strides = [side // tap.shape[2] for tap in taps]
    assert strides == ([4, 8, 16, 32] if config is SMALL_CONV else [config.patch_size] * 4)


def test_a_frozen_backbone_asks_for_no_gradient() -> None:
    frozen = Backbone(SMALL).train()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.encoder.training
    (tap, *_) = frozen(torch.rand(1, 3, 28, 28, requires_grad=True))
    assert not tap.requires_grad


def test_stages_of_any_convnet_are_checked() -> None:
    named = ConvNetConfig(name="mobilenetv3_large_100", depths=None, widths=(24, 40, 112, 960), stem_width=None)
    config = replace(SMALL_CONV, backbone=named)
    taps = Backbone(config).eval()(torch.rand(1, 3, 64, 64))
    assert [(64 // tap.shape[2], tap.shape[1]) for tap in taps] == [(4, 24), (8, 40), (16, 112), (32, 960)]
    wrong = replace(SMALL_CONV, backbone=replace(named, widths=(24, 40, 112, 320)))
    with pytest.raises(ValueError, match=r"\(32, 960\).*\(32, 320\)"):
        Backbone(wrong)
    with pytest.raises(ValueError, match="give both, or None for both"):
        replace(named, depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="must be four"):
        replace(named, widths=(24, 40))


def test_a_network_of_timm_without_timm_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image for CPUs has neither timm nor torchvision, which timm imports."""
    monkeypatch.delitem(sys.modules, "skipclick.timm_networks")
    monkeypatch.setitem(sys.modules, "timm", None)
    for config in (SMALL, SMALL_CONV):
        with pytest.raises(ValueError, match=f"{config.backbone.name} needs timm, .* use the full image"):
            Backbone(config)


def test_the_bundled_backbone_is_checked_against_the_configuration() -> None:
    lite = EFFICIENTNET_LITE["efficientnet_lite2"]
    wrong = replace(lite, backbone=replace(lite.backbone, widths=(24, 40, 112, 320)))
    with pytest.raises(ValueError, match=r"\(24, 48, 120, 352\) channels.*\(24, 40, 112, 320\)"):
        Backbone(wrong)


def test_statistics_from_elsewhere_stay_while_weights_learn() -> None:
    backbone = Backbone(SMALL_CONV)
    backbone.fixed_statistics = True
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items() if "running" in key}
    taps = backbone.train()(torch.rand(2, 3, 64, 64))
    assert all(tap.requires_grad for tap in taps)
    assert before
    for key, tensor in backbone.state_dict().items():
        assert key not in before or torch.equal(tensor, before[key]), key
