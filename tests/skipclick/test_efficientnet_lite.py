"""Protects the bundled model's backbone: it is timm's network, name by name and bit by bit."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from skipclick.efficientnet_lite import SIZES, EfficientNetLite
from tests.support.efficientnet_lite_golden import photo


def timms(name: str, taps: tuple[int, ...]) -> nn.Module:
    network: nn.Module = timm.create_model(name, features_only=True, out_indices=tuple(tap + 1 for tap in taps))
    return network


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("taps", [(0, 1, 2, 3), (0,)], ids=["all", "first"])
@pytest.mark.parametrize("name", SIZES)
def test_weights_have_timms_names_shapes_and_scale(name: str, taps: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = EfficientNetLite(name, taps).state_dict(), timms(name, taps).state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert (ours[key].shape, ours[key].dtype) == (tensor.shape, tensor.dtype), key
        if tensor.numel() > 1000:
            assert float(ours[key].std()) == pytest.approx(float(tensor.std()), rel=0.1), key


@pytest.mark.parametrize("size", [(288, 224), (127, 94)], ids=["multiples of 32", "odd"])
@pytest.mark.parametrize("name", SIZES)
def test_maps_are_timms(name: str, size: tuple[int, int]) -> None:
    """Also while the statistics of batch norm are learnt, and so are gradients."""
    torch.manual_seed(0)
    theirs = timms(name, (0, 1, 2, 3))
    ours = EfficientNetLite(name, (0, 1, 2, 3))
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.from_numpy(photo("coffee")[: size[0], : size[1]]).permute(2, 0, 1)[None].float() / 255 - 0.5
    for mode in (True, False):
        for found, expected in zip(ours.train(mode)(pixels), theirs.train(mode)(pixels), strict=True):
            assert torch.equal(found, expected)
    assert_equal(ours.state_dict(), theirs.state_dict())
    for network in (ours, theirs):
        sum(stage.mean() for stage in network(pixels)).backward()
    for (key, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, expected.grad), key


def test_a_single_tap_is_the_one_asked_for() -> None:
    network = EfficientNetLite("tf_efficientnet_lite0", (2,)).eval()
    (stage,) = network(torch.zeros(1, 3, 64, 64))
    assert stage.shape == (1, 112, 4, 4)
